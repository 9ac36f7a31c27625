"""The run in Weights & Biases: a mirror of its directory that never gets in training's way.

Every call of `wandb` sits in `Mirror`; the first that fails turns the mirror off with one notice, and training goes on.
Rows are those of `metrics.jsonl`, one `log` each, with `step` on the x axis.
"""

import contextlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.tracking.metrics import Row
from gptlab.tracking.run import Run

Mode = Literal["online", "offline", "off"]
Notice = Callable[[str], None]

PROBE_TIMEOUT_S = 1.0
SETTINGS = {
    "init_timeout": 15,
    "finish_timeout": 60,
    "x_transaction_log_flush_interval": 1,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "silent": True,
}


@dataclass(frozen=True)
class Identification:
    """What a run is called and filed under in W&B."""

    id: str
    name: str
    group: str
    notes: str
    tags: list[str]
    config: dict[str, Any]


def identification(run: Run, attempt: Mapping[str, Any]) -> Identification:
    """What a run is called in W&B.

    Args:
        run: The run.
        attempt: The first row of the attempt, as `attempts.jsonl` records it.
    """
    record = run.record
    config = {
        **record.spec.model_dump(mode="json", include={"model", "data", "train"}),
        "seed": record.seed,
        "precision": record.precision,
        "parameters": record.spec.model.parameters,
        "git_sha": attempt["git_commit"],
        "dirty": attempt["git_dirty"],
        "text_sha256": record.text.sha256,
        "tokenizer_sha256": record.tokenizer_sha256,
    }
    name = record.spec.name
    return Identification(
        id=record.wandb_id,
        name=f"{name}-s{record.seed}",
        group=run.id.removesuffix(f"-s{record.seed}"),
        notes=attempt["notes"] or record.spec.why,
        tags=attempt["tags"],
        config=config,
    )


def choose_mode(wanted: Mode | None) -> tuple[Mode, str]:
    """The mode, and why: as wanted, else online where there is a key and the server answers, else offline."""
    if wanted is not None:
        return wanted, "as asked"
    named: dict[str | None, Mode] = {"disabled": "off", "offline": "offline", "online": "online", "dryrun": "offline"}
    if mode := named.get(os.environ.get("WANDB_MODE")):
        return mode, "as WANDB_MODE says"
    try:
        wandb = _client()
        if not wandb.login(prompt=False, verify=False):
            return "offline", "no API key; `wandb login` sets one"
        host = wandb.setup().settings.base_url
    except Exception as error:  # whatever a broken installation or setting raises
        return "off", f"wandb does not work here: {error}"
    return ("online", host) if _answers(host) else ("offline", f"{host} does not answer")


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S).close()  # noqa: S310 - the user's own W&B server
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Mirror:
    """One attempt's connection to W&B; does nothing in mode `off`."""

    def __init__(
        self, directory: Path, mode: Mode, identification: Identification, rows: list[Row], notice: Notice
    ) -> None:
        """Connect, and bring W&B up to the rows that the run has already.

        Offline, a new segment replays them and older segments are moved aside, so that each reader sees one curve.
        Online, the run is resumed and gets the rows after the last one that the server has.
        """
        self._notice, self._mode = notice, mode
        self._run: Any = None
        self._last = -1
        """The step of the last row that the server had when we connected; a replay of the earlier ones is the same."""
        if mode == "off":
            return
        try:
            self._run = _connect(directory, mode, identification)
            self._last = self._run.summary.get("step", -1) if self._run.resumed else -1
        except Exception as error:
            self._fail(error)
            return
        for row in rows:
            self.log(row)

    @property
    def url(self) -> str | None:
        """Where the run is to be seen, when online."""
        return self._run.url if self._run is not None and self._mode == "online" else None

    def log(self, row: Row, best: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Send one row, unless the server has it; `best` goes to the summary."""
        if self._run is None or row["step"] <= self._last:
            return
        document = {"_timestamp" if key == "time" else key: value for key, value in row.items()}
        try:
            self._run.log(document)
            for key, value in best.items():
                if value is not None:
                    self._run.summary[f"best/{key}"] = value
        except Exception as error:
            self._fail(error)

    def finish(self, exit_code: int) -> None:
        """Close the W&B run; a minute at most."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        self._notice(f"W&B is off for this attempt ({type(error).__name__}: {error}); metrics.jsonl has everything")


def _connect(directory: Path, mode: Literal["online", "offline"], identification: Identification) -> Any:
    own = directory / "wandb"
    own.mkdir(exist_ok=True)
    os.environ |= {"WANDB_DATA_DIR": str(own), "WANDB_CACHE_DIR": str(own / "cache")}
    wandb = _client()
    if mode == "offline":
        older = own / "replaced"
        for segment in own.glob("offline-run-*"):
            older.mkdir(exist_ok=True)
            shutil.move(segment, older / segment.name)
    known = wandb.Settings.model_fields
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "gptlab"),
        id=identification.id,
        name=identification.name,
        group=identification.group,
        job_type="train",
        notes=identification.notes,
        tags=identification.tags,
        config=identification.config,
        dir=directory,
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(**{key: value for key, value in SETTINGS.items() if key in known}),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _client() -> Any:
    """The wandb package, with the settings that it finds in the project: in a run, a stranger may have left some."""
    with contextlib.chdir(project.root()):
        import wandb

        wandb.setup()
    return wandb


def newest_segment(directory: Path) -> Path:
    """The W&B directory of the run's last attempt.

    Raises:
        BadInputError: The run was never mirrored.
    """
    segments = [path for path in (directory / "wandb").glob("*run-*") if any(path.glob("*.wandb"))]
    if not segments:
        raise BadInputError(f"{directory.name} has no W&B files: it ran with --wandb off")
    return max(segments, key=lambda path: path.name.split("-run-")[-1].removeprefix("run-"))
