"""A run in Weights & Biases: its config, rows, samples and artifacts. Only this module imports `wandb`."""

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gptlab.checkpoints.manifest import MANIFEST, MODEL, Checkpoint, list_checkpoints
from gptlab.errors import GptlabError
from gptlab.mirror.environment import USED_SETTINGS
from gptlab.mirror.modes import WANDB_MODES, Mode
from gptlab.mirror.server import POLL_INTERVAL_S, Server
from gptlab.tracking.metrics import Row
from gptlab.tracking.records import Start
from gptlab.tracking.run import Run

ANSWER_TIMEOUT_S = 15.0
"""Time for the server to say, before the first row is sent, which rows it has."""
SETTINGS = {
    "init_timeout": 15,
    "finish_timeout_raises": True,
    "x_transaction_log_flush_interval": 1,
    "console": "off",
    "silent": True,
    # The run's directory records code, machine and packages. W&B gets no command line and no environment.
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "sagemaker_disable": True,  # it replaces the run's id
}
"""Settings of the client; those that the installed version does not know are left out."""
MIN_FREE_BYTES = 1 << 20


def import_wandb() -> Any:
    """Import and return wandb.

    Raises:
        GptlabError: The installation is broken.
    """
    try:
        import wandb
    except Exception as error:  # a broken installation may raise anything
        raise GptlabError(f"wandb does not work: {error}") from error
    return wandb


@cache
def wandb_settings() -> Any:
    """Return W&B's global settings: the user's values of `USED_SETTINGS` and `mode`, and W&B's defaults for the rest.

    Raises:
        GptlabError: The user's settings are invalid.
    """
    wandb = import_wandb()
    os.environ.pop("WANDB_MODE", None)  # gptlab has chosen the mode; wandb fails for one that it does not know
    used = USED_SETTINGS | {"mode"}
    try:
        settings = wandb.setup().settings
        # Read once more, because wandb ignores a settings file with an invalid entry, whatever the entry is.
        entries = settings.read_system_settings().all()
        given = wandb.Settings(**{"host": settings.host, **{name: entries[name] for name in used & entries.keys()}})
        given.update_from_env_vars(dict(os.environ))  # which has only `USED_VARIABLES`
    except Exception as error:  # wandb may raise anything
        raise GptlabError(f"wandb does not work: {error}") from error
    for name in wandb.Settings.model_fields:
        setattr(settings, name, getattr(given, name))
    return settings


def configured_server() -> Server | None:
    """Return the server and API key of the user's settings; None without a key.

    Raises:
        GptlabError: The installation is broken or the user's settings are invalid.
    """
    settings = wandb_settings()
    settings.mode = "online"  # wandb looks for no key in other modes
    if not import_wandb().login(prompt=False, verify=False) or not settings.api_key:
        return None
    return Server(
        settings.base_url.rstrip("/"),
        settings.api_key,
        {scheme: proxy for scheme in ("http", "https") if (proxy := getattr(settings, f"{scheme}_proxy"))},
        settings.x_extra_http_headers or {},
        not settings.insecure_disable_ssl,
    )


def choose_mode(requested: Mode | None) -> tuple[Mode, str]:
    """Return a mode and its reason.

    As requested, else by `WANDB_MODE`, else by W&B's settings files, else online if a server accepts the API key.

    Raises:
        GptlabError: wandb does not work.
    """
    if requested is not None:
        return requested, "requested"
    if mode := WANDB_MODES.get(os.environ.get("WANDB_MODE", "")):
        return mode, "set by WANDB_MODE"
    mode = WANDB_MODES.get(wandb_settings().mode, "offline")
    if mode != "online":
        return mode, "set by W&B's settings file"
    server = configured_server()
    if server is None:
        return "offline", "no API key; `wandb login` sets one"
    reason = server.unavailable_reason()
    return ("offline", reason) if reason else ("online", server.url)


class WandbRun:
    """A run that is open in W&B.

    Online, the W&B run with the same id is resumed, and only rows after its last one are sent. Offline, each attempt
    writes a new segment with all rows. In both modes older offline segments are moved aside, so that readers and
    `wandb sync` see one curve.
    """

    def __init__(
        self,
        run: Run,
        wandb_parent: Path,
        mode: Literal["online", "offline"],
        finish_timeout_s: float,
        training_pid: int | None,
    ) -> None:
        """Connect to W&B.

        Args:
            run: The run.
            wandb_parent: The directory in which W&B creates `wandb/` for its own files.
            mode: Online or offline.
            finish_timeout_s: Time for uploads at the end.
            training_pid: The process whose system metrics W&B records; None for no system metrics.

        Raises:
            GptlabError: W&B opened another run, or the server does not say which rows it has.
        """
        self._source, self._best_loss, self._last_sent = run, float("inf"), -1
        self._directory = wandb_parent / "wandb"
        self._directory.mkdir(exist_ok=True)
        os.environ |= {"WANDB_DATA_DIR": str(self._directory), "WANDB_CACHE_DIR": str(self._directory / "cache")}
        _move_segments_aside(self._directory, run.record.wandb_id)
        wandb, chosen = import_wandb(), wandb_settings()
        chosen.mode = mode
        self._server = configured_server() if mode == "online" else None  # `init` removes the key from the settings
        settings = SETTINGS | {"finish_timeout": finish_timeout_s, "x_disable_stats": training_pid is None}
        settings |= {"x_stats_pid": training_pid} if training_pid else {}
        record, start = run.record, run.history().starts[-1]
        self._run: Any = wandb.init(
            project=chosen.project or "gptlab",
            id=record.wandb_id,
            name=f"{record.spec.name}-s{record.seed}",
            group=run.id.removesuffix(f"-s{record.seed}"),
            job_type="train",
            notes=start.get("notes") or record.spec.why,
            tags=start.get("tags"),
            config=config(run, start),
            dir=wandb_parent,
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(**{k: v for k, v in settings.items() if k in wandb.Settings.model_fields}),
        )
        if self._run.id != record.wandb_id:
            raise GptlabError(f"W&B opened the run {self._run.id} instead of {record.wandb_id}; nothing was sent")
        self._resumed_from = max(self._run.starting_step - 1, self._last_step_on_server(ANSWER_TIMEOUT_S))
        """The step of the last row that the server has.

        W&B derives `starting_step` from it, but does not always recognize a run whose first attempt ended early. So the
        server is also asked for the row itself; its summary may be stale.
        """
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    @property
    def url(self) -> str | None:
        """The run's URL, if online."""
        return self._run.url or None

    def log_rows(self, rows: Iterable[Row]) -> None:
        """Send the rows that the server does not have, and update the best validation loss in the summary.

        Raises:
            GptlabError: The disk is full, which W&B itself does not report.
        """
        if shutil.disk_usage(self._directory).free < MIN_FREE_BYTES:
            raise GptlabError(f"the disk of {self._directory} is full")
        for row in rows:
            step = row["step"]
            if step > max(self._resumed_from, self._last_sent):
                self._run.log({"_timestamp" if k == "time" else k: v for k, v in row.items()}, step=step, commit=True)
            self._last_sent = step
            if "val/loss" in row and self._source.record.validates_at(step):
                self._update_best(row["val/loss"], step)

    def _update_best(self, loss: float, step: int) -> None:
        if loss < self._best_loss:
            self._best_loss = loss
            self._run.summary.update({"best/val_loss": loss, "best/step": step})

    def log_samples(self) -> None:
        """Add the samples to the summary as a table. In the history they would need an extra row."""
        if samples := self._source.samples():
            data = [[sample["step"], sample["prompt"], sample["text"]] for sample in samples]
            self._run.summary["samples"] = import_wandb().Table(columns=["step", "prompt", "text"], data=data)

    def log_artifact(self) -> None:
        """Upload the checkpoint that the last attempt requested, if any, without copying it."""
        requested = self._source.history().starts[-1].get("artifacts")
        checkpoints = list_checkpoints(self._source.directory)
        if not requested or not checkpoints:
            return
        newest = checkpoints[-1]
        best_step = newest.manifest.progress.best_step
        step = best_step if requested == "best" else newest.step
        for checkpoint in (c for c in checkpoints if c.step == step):
            aliases = {"best": step == best_step, "latest": step == newest.step, f"step-{step}": True}
            metadata = _artifact_metadata(self._source, checkpoint)
            artifact = import_wandb().Artifact(self._source.id, type="model", metadata=metadata)
            for name in (MODEL, MANIFEST):
                artifact.add_file(str(checkpoint.directory / name), policy="immutable", skip_cache=True)
            logged = self._run.log_artifact(artifact, aliases=[name for name, applies in aliases.items() if applies])
            if self.url:
                logged.wait(int(self._run.settings.finish_timeout))

    def _last_step_on_server(self, timeout_s: float) -> int:
        if not self._server:
            return -1
        return self._server.last_step(self._run.entity, self._run.project, self._run.id, timeout_s)

    def finish(self, exit_code: int) -> None:
        """Close the run and check that the server has every row.

        Raises:
            TimeoutError: The upload takes too long.
            GptlabError: The server lacks rows, or does not say which rows it has.
        """
        timeout = self._run.settings.finish_timeout
        self._run.finish(exit_code=exit_code)
        if not self._server:
            return
        # The client silently drops rows that a server rejects, so only the server knows.
        deadline = time.monotonic() + timeout / 6  # rows may appear some seconds late
        while (last := self._last_step_on_server(max(POLL_INTERVAL_S, deadline - time.monotonic()))) < self._last_sent:
            if time.monotonic() > deadline:
                raise GptlabError(f"{self._server.url} has {'no row' if last < 0 else f'no row after step {last}'}")
            time.sleep(POLL_INTERVAL_S)  # the server does not say when it has stored them


def config(run: Run, start: Start) -> dict[str, Any]:
    """Return the config of a run in W&B."""
    record = run.record
    return {
        **record.parent_facts(),
        **record.spec.model_dump(mode="json", include={"model", "data", "train"}),
        "run": run.id,
        "seed": record.seed,
        "precision": record.precision,
        "parameters": record.model_size.parameters,
        "git_sha": start.get("git_commit"),
        "dirty": start.get("git_dirty"),
        "text_sha256": record.text.sha256,
        "tokenizer_sha256": record.tokenizer_sha256,
        "fingerprint": start.get("fingerprint"),
    }


def _artifact_metadata(run: Run, checkpoint: Checkpoint) -> Mapping[str, Any]:
    return {
        "run": run.id,
        "step": checkpoint.step,
        "best_step": checkpoint.manifest.progress.best_step,
        "best_val_loss": checkpoint.manifest.progress.best_val_loss,
        "text_sha256": checkpoint.manifest.text_sha256,
        "tokenizer_sha256": checkpoint.manifest.tokenizer_sha256,
    }


def _move_segments_aside(wandb_directory: Path, wandb_id: str) -> None:
    for segment in wandb_directory.glob(f"offline-run-*-{wandb_id}"):
        replaced = wandb_directory / "replaced"
        replaced.mkdir(exist_ok=True)
        shutil.move(segment, replaced / segment.name)
