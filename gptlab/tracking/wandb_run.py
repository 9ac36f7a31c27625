"""What a run is in Weights & Biases: its name, config, rows, samples and artifacts. All calls of `wandb` are here."""

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from gptlab.errors import GptlabError
from gptlab.tracking.checkpoints import MANIFEST, MODEL, Checkpoint, list_checkpoints
from gptlab.tracking.metrics import Row
from gptlab.tracking.mirror import WANDB_MODES, Mode
from gptlab.tracking.records import Start
from gptlab.tracking.run import Run
from gptlab.tracking.wandb_server import Server

SETTINGS = {
    "init_timeout": 15,
    "finish_timeout_raises": True,
    "x_transaction_log_flush_interval": 1,
    "console": "off",
    "silent": True,
    # A run's own directory says which code, machine and packages made it; W&B gets no command line, no environment.
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""Of these the installed version takes those that it knows."""
ASK_EVERY_S = 0.5
ROOM_BYTES = 1 << 20


def client() -> Any:
    """The wandb package."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def server() -> Server | None:
    """The server that the user's settings name, with the user's key; None without a key."""
    wandb = client()
    if not wandb.login(prompt=False, verify=False):
        return None
    settings = wandb.setup().settings
    return Server(settings.base_url.rstrip("/"), settings.api_key or "")


def choose_mode(wanted: Mode | None) -> tuple[Mode, str]:
    """The mode, and why: as wanted, else online where there is a key that the server takes, else offline."""
    if wanted is not None:
        return wanted, "as asked"
    if mode := WANDB_MODES.get(os.environ.get("WANDB_MODE", "")):
        return mode, "as WANDB_MODE says"
    try:
        found = server()
    except Exception as error:  # whatever a broken installation or setting raises
        return "off", f"wandb does not work here: {error}"
    if found is None:
        return "offline", "no API key; `wandb login` sets one"
    objection = found.objection()
    return ("offline", objection) if objection else ("online", found.url)


class WandbRun:
    """A run, open in W&B.

    Online the W&B run of the same id is resumed. It has the rows up to some step already, which stay; later ones are
    sent. Offline a new segment begins with all rows. Either way older offline segments are moved aside, so that whoever
    reads or syncs what is there sees one curve.
    """

    def __init__(
        self, run: Run, into: Path, mode: Literal["online", "offline"], finish_s: float, trainer: int | None
    ) -> None:
        """Connect.

        Args:
            run: The run.
            into: The directory that W&B's own files go to, in `wandb/`.
            mode: Online or offline.
            finish_s: How long uploading may go on at the end.
            trainer: The process that trains the run and whose use of the machine is of interest, if there is one.
        """
        self._source, self._best, self._last_sent = run, (float("inf"), -1), -1
        self._own = into / "wandb"
        self._own.mkdir(exist_ok=True)
        os.environ |= {"WANDB_DATA_DIR": str(self._own), "WANDB_CACHE_DIR": str(self._own / "cache")}
        _move_aside(self._own, run.record.wandb_id)
        wandb = client()
        self._server = server() if mode == "online" else None  # before `init`, after which W&B tells no key
        settings = SETTINGS | {"finish_timeout": finish_s, "x_disable_stats": trainer is None}
        settings |= {"x_stats_pid": trainer} if trainer else {}
        record, start = run.record, run.starts()[-1]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gptlab"),
            id=record.wandb_id,
            name=f"{record.spec.name}-s{record.seed}",
            group=run.id.removesuffix(f"-s{record.seed}"),
            job_type="train",
            notes=start.get("notes") or record.spec.why,
            tags=start.get("tags"),
            config=_config(run, start),
            dir=into,
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(**{k: v for k, v in settings.items() if k in wandb.Settings.model_fields}),
        )
        self._had = max(self._run.starting_step - 1, self._last_on_server())
        """The step of the last row that the server has.

        W&B's own count of steps is ours, and goes on from the server's last row; but a run whose first attempt ended
        early is not always recognised, so the server is asked as well. Its summary says nothing: that can be behind.
        """
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    @property
    def url(self) -> str | None:
        """Where the run is to be seen, when online."""
        return self._run.url or None

    def log(self, rows: Iterable[Row]) -> None:
        """Send rows, those that the server has left out, and the best validation so far to the summary.

        Raises:
            GptlabError: W&B's own files have no room, which W&B says nothing about.
        """
        if shutil.disk_usage(self._own).free < ROOM_BYTES:
            raise GptlabError(f"the disk of {self._own} is full")
        for row in rows:
            step = row["step"]
            if step > max(self._had, self._last_sent):
                self._run.log({"_timestamp" if k == "time" else k: v for k, v in row.items()}, step=step, commit=True)
            self._last_sent = step
            if "val/loss" in row and step % self._source.record.spec.train.eval_every == 0:
                self._note_if_best(row["val/loss"], step)

    def _note_if_best(self, loss: float, step: int) -> None:
        if loss < self._best[0]:
            self._best = loss, step
            self._run.summary.update({"best/val_loss": loss, "best/step": step})

    def add_samples(self) -> None:
        """What the model wrote, as a table in the summary: in the history it would need a row of its own."""
        if samples := self._source.samples():
            data = [[sample["step"], sample["prompt"], sample["text"]] for sample in samples]
            self._run.summary["samples"] = client().Table(columns=["step", "prompt", "text"], data=data)

    def add_artifact(self) -> None:
        """The checkpoint that the attempt asked for. It is uploaded from where it lies, with no copy in between."""
        wanted = self._source.starts()[-1].get("artifacts")
        checkpoints = list_checkpoints(self._source.directory)
        if not wanted or not checkpoints:
            return
        newest = checkpoints[-1]
        best_step = newest.manifest.progress.best_step
        step = best_step if wanted == "best" else newest.step
        for checkpoint in (c for c in checkpoints if c.step == step):
            names = {"best": step == best_step, "latest": step == newest.step, f"step-{step}": True}
            artifact = client().Artifact(self._source.id, type="model", metadata=_metadata(self._source, checkpoint))
            for name in (MODEL, MANIFEST):
                artifact.add_file(str(checkpoint.directory / name), policy="immutable", skip_cache=True)
            logged = self._run.log_artifact(artifact, aliases=[name for name, holds in names.items() if holds])
            if self.url:
                logged.wait(int(self._run.settings.finish_timeout))

    def _last_on_server(self) -> int:
        run = self._run
        if not self._server or not self._server.key:
            return -1
        return self._server.last_step(run.entity, run.project, run.id)

    def finish(self, exit_code: int) -> None:
        """Close the run, and see that what was sent has arrived.

        Raises:
            TimeoutError: The upload takes too long.
            GptlabError: Rows are missing.
        """
        timeout = self._run.settings.finish_timeout
        self._run.finish(exit_code=exit_code)
        if not self._server or not self._server.key:
            return
        # Rows that a server refuses are dropped by the client without a word, so the server is asked.
        deadline = time.monotonic() + timeout / 6  # it may show them some seconds late
        while (last := self._last_on_server()) < self._last_sent:
            if time.monotonic() > deadline:
                raise GptlabError(f"{self._server.url} has {'no row' if last < 0 else f'no row after step {last}'}")
            time.sleep(ASK_EVERY_S)


def _config(run: Run, start: Start) -> dict[str, Any]:
    record = run.record
    return {
        **record.spec.model_dump(mode="json", include={"model", "data", "train"}),
        "run": run.id,
        "seed": record.seed,
        "precision": record.precision,
        "parameters": record.spec.model.parameters,
        "git_sha": start.get("git_commit"),
        "dirty": start.get("git_dirty"),
        "text_sha256": record.text.sha256,
        "tokenizer_sha256": record.tokenizer_sha256,
    }


def _metadata(run: Run, checkpoint: Checkpoint) -> Mapping[str, Any]:
    return {
        "run": run.id,
        "step": checkpoint.step,
        "best_step": checkpoint.manifest.progress.best_step,
        "best_val_loss": checkpoint.manifest.progress.best_val_loss,
        "text_sha256": checkpoint.manifest.text_sha256,
        "tokenizer_sha256": checkpoint.manifest.tokenizer_sha256,
    }


def _move_aside(own: Path, wandb_id: str) -> None:
    for segment in own.glob(f"offline-run-*-{wandb_id}"):
        older = own / "replaced"
        older.mkdir(exist_ok=True)
        shutil.move(segment, older / segment.name)
