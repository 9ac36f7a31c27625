"""One attempt at a run: from a spec or a stored run to a trained model, or to the reason why not.

The same command is idempotent. A run that is complete says so; one that was interrupted goes on from its newest whole
checkpoint; a larger number of steps extends it; a smaller one changes nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gptlab import project
from gptlab.console import Console, TrainingDisplay, command
from gptlab.data import text as texts
from gptlab.data import tokenizer, tokens
from gptlab.data.text import Text
from gptlab.data.windows import Windows, validation_starts
from gptlab.errors import BadInputError, DivergedError, GptlabError
from gptlab.mirror.mirror import Mirror
from gptlab.mirror.modes import AUTO, Mode, check_wandb_mode
from gptlab.model.gpt import GPT
from gptlab.model.sample import samples
from gptlab.spec import Experiment, identify
from gptlab.tracking import provenance
from gptlab.tracking import run as runs
from gptlab.tracking.checkpoints import Progress
from gptlab.tracking.lock import RunLock
from gptlab.tracking.metrics import MetricsFile, Row, last_value, read_metrics, torn_metrics
from gptlab.tracking.reading import check_files_are_its_own
from gptlab.tracking.records import InitialWeights, Outcome, TextRecord
from gptlab.tracking.run import LOG, Run
from gptlab.training import checkpoint as checkpoints
from gptlab.training import messages, optimizer
from gptlab.training.initial import check_weights_fit, initial_model
from gptlab.training.loop import Material, Trainer
from gptlab.training.profiler import Profiler
from gptlab.training.restore import State, model_of, newest_state
from gptlab.training.settings import (
    Available,
    Settings,
    be_deterministic,
    keep_freed_memory,
    machine,
    memory_errors_explained,
    resolve,
)
from gptlab.training.signals import StopSignals


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to compute."""

    steps: int | None = None
    device: str = "auto"
    deterministic: bool = False
    wandb: Mode | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""
    fresh: bool = False
    profile: bool = False
    artifacts: Literal["best", "final"] | None = None

    def __post_init__(self) -> None:
        """Refuse what the environment says and cannot mean.

        Raises:
            BadInputError: `WANDB_MODE` names no mode.
        """
        if self.wandb is None:
            check_wandb_mode()


@dataclass(frozen=True)
class Result:
    """Where a run stands when its command ends."""

    run: Run
    exit_code: int = 0

    def document(self) -> dict[str, Any]:
        """As `gptlab run --json` prints it."""
        rows = read_metrics(self.run.directory)
        return {
            "run": self.run.id,
            "directory": str(self.run.directory),
            "status": self.run.status(),
            "step": self.run.step(),
            "train_loss": last_value(rows, "train/loss"),
            "val_loss": last_value(rows, "val/loss"),
            "val_bpb": last_value(rows, "val/bpb"),
            "tokens_per_s": last_value(rows, "perf/tokens_per_s"),
        }


def start(
    experiment: Experiment, seed: int, options: Options, console: Console, parent: InitialWeights | None = None
) -> Result:
    """Run an experiment: begin it, go on with it, extend it, or say that it is complete.

    Args:
        experiment: What to compute.
        seed: Of the weights, the order of windows and dropout.
        options: How to run it.
        console: Where to say what happens.
        parent: Weights to start from, instead of the seed's own.

    Raises:
        BadInputError: Text, spec and machine do not go together; nothing was written.
    """
    settings = resolve(options.device, experiment.train.precision, Available.here())
    text = texts.locate(experiment.data.text)
    identity = identify(
        experiment,
        precision=settings.precision,
        text_sha256=text.sha256,
        tokenizer_sha256=tokenizer.TOKENIZER_SHA256,
        initial_weights_sha256=parent.sha256 if parent else None,
    )
    if parent:
        check_weights_fit(parent, experiment.model)
    material = _material(experiment, text, seed)
    directory = project.runs_directory() / identity.run_id(seed)
    if options.fresh and (directory / runs.RECORD).is_file():
        console.say(f"the old run is now {project.shown(runs.load(directory).move_to_trash())}")
    if not directory.exists():
        messages.why_new(experiment, identity, console)
    record = TextRecord(source=text.source, path=str(text.path), bytes=text.size, sha256=text.sha256)
    run = runs.create(experiment, identity, seed, settings.precision, record, parent)
    messages.kept_fields(run, experiment, console)
    return _go_on(run, experiment.train.steps, material, settings, options, console)


def resume(run: Run, options: Options, console: Console) -> Result:
    """Go on with a run from its own stored spec, whatever the spec file says today.

    Raises:
        BadInputError: Text or tokenizer are not the ones that the run began with.
    """
    record = run.record
    settings = resolve(options.device, record.precision, Available.here())
    if record.tokenizer_sha256 != tokenizer.TOKENIZER_SHA256:
        raise BadInputError(
            f"{run.id} began with another tokenizer: sha256 {record.tokenizer_sha256}, now {tokenizer.TOKENIZER_SHA256}"
        )
    text = stored_text(run)
    material = _material(record.spec, text, record.seed)
    return _go_on(run, options.steps or run.target(), material, settings, options, console)


def stored_text(run: Run) -> Text:
    """The run's text, as it was when the run began.

    Raises:
        BadInputError: It is gone or has changed.
    """
    record = run.record.text
    if record.source in texts.NAMED:
        text = texts.locate(record.source)
    else:
        path = Path(record.path)
        if path.is_file() and (size := path.stat().st_size) != record.bytes:  # so it need not be read
            raise _changed(run, f"{record.bytes:,} bytes", f"{size:,}")
        text = texts.locate(record.path)
    if text.sha256 != record.sha256:
        raise _changed(run, f"sha256 {record.sha256}", text.sha256)
    return text


def _changed(run: Run, had: str, has: str) -> BadInputError:
    path = run.record.text.path
    return BadInputError(
        f"the text of {run.id} has changed: {path} had {had} and has {has}; "
        f"restore it, or start a new run with: {command('run', run.record.spec.name, '--text', path)}"
    )


def _material(experiment: Experiment, text: Text, seed: int) -> Material:
    prepared = tokens.prepare(text, experiment.data.val_fraction)
    train = experiment.train
    return Material(
        windows=Windows(prepared.train.tokens, train.sequence_length, train.batch_size, seed),
        val=prepared.val,
        val_starts=validation_starts(prepared.val, train.sequence_length, experiment.data.val_windows),
    )


def _go_on(run: Run, steps: int, material: Material, settings: Settings, options: Options, console: Console) -> Result:
    status, done = run.status(), run.step()
    if status == "diverged":
        raise DivergedError(
            f"{run.id} diverged at step {done}, and would again; change the experiment, or start over with --fresh"
        )
    if status == "complete" and steps <= done:
        messages.complete(run, steps, done, console)
        return Result(run)
    check_files_are_its_own(run.directory)
    with RunLock(run.directory) as lock, StopSignals() as signals:
        run = runs.load(run.directory)  # as the process that created it first wrote it
        checkpoints.clear_remains(run.directory)
        state = newest_state(run.directory, run.record.spec.model, console.notice)
        if state and steps < (done := state.checkpoint.step):
            console.say(f"{run.id} has {done} steps already, more than the {steps} asked for; nothing changed")
            console.fact("go on", command("resume", run.id, "--steps", str(run.target())))
            return Result(run)
        console.log_to(run.directory / LOG)
        checkpoints.check_space(run.directory, run.record.spec)
        return _train(run, steps, state, material, settings, options, lock, signals, console)


def _train(
    run: Run,
    steps: int,
    state: State | None,
    material: Material,
    settings: Settings,
    options: Options,
    lock: RunLock,
    signals: StopSignals,
    console: Console,
) -> Result:
    if options.deterministic:
        be_deterministic()
    keep_freed_memory()
    begin = state.checkpoint.step if state else 0
    mirror = Mirror(run, options.wandb or AUTO, console.notice)
    code = provenance.working_tree()
    facts = {
        "from_step": begin,
        "steps": steps,
        "deterministic": options.deterministic,
        **machine(settings),
        **provenance.environment(),
        **code.facts(),
        "tags": list(options.tags),
        "notes": options.notes,
        "artifacts": options.artifacts,
    }
    messages.opening(run, begin, steps, material, settings, mirror.mode(), console)
    messages.changed_surroundings(run, facts, console)
    train = run.record.spec.train
    with memory_errors_explained(train):
        model, adamw, progress = _restore(run, state, settings)
    checkpoints.retain(run.directory, train.keep_checkpoints, progress.best_step, snapshots=train.snapshots)
    if lost := torn_metrics(run.directory):
        console.notice(f"the last row of metrics.jsonl was torn by a crash; its {lost} bytes are dropped")
    with (
        MetricsFile(run.directory, progress.metrics_bytes) as metrics,
        TrainingDisplay(console, begin, steps, train.batch_size * train.sequence_length) as display,
        Profiler(run.directory, console.notice, wanted=options.profile) as profiler,
    ):
        if metrics.size < progress.metrics_bytes:
            console.notice(f"metrics.jsonl has lost rows: {progress.metrics_bytes - metrics.size} bytes are missing")
        attempt = run.start_attempt(**facts)
        code.keep_patch(run.directory)
        run.drop_samples_after(min(begin, steps - 1))
        mirror.notify()
        trainer = Trainer(
            run,
            model,
            adamw,
            material,
            settings,
            metrics,
            _Watchers(display, mirror, lock, profiler),
            attempt=attempt,
            start=begin,
            progress=progress,
        )

        def stopped() -> bool:
            if signals.received is None:
                return False
            console.notice(f"{signals.received.name}: saving, then stopping; a second one stops at once")
            return True

        outcome: Outcome = "failed"
        facts_at_end: dict[str, Any] = {}
        try:
            with memory_errors_explained(train):
                trainer.train(steps, stopped)
            outcome = "complete" if trainer.step == steps else "interrupted"
            if outcome == "complete":
                _add_sample(run, model, console)
        except DivergedError as error:
            outcome, facts_at_end = "diverged", {"diverged": error.facts}
            raise
        finally:
            run.end_attempt(attempt, trainer.step, outcome, **facts_at_end)
            mirror.finish()
    messages.closing(run, outcome, mirror.url, console)
    return Result(run, 128 + signals.received if outcome == "interrupted" and signals.received else 0)


def _add_sample(run: Run, model: GPT, console: Console) -> None:
    train = run.record.spec.train
    try:
        (text,) = samples(model, train.prompt, 1, trained_length=train.sequence_length, seed=run.record.seed)
    except GptlabError as error:
        console.notice(f"no sample: {error}")
    else:
        run.add_sample(run.target(), train.prompt, text)


class _Watchers:
    """All that a step or a row of metrics goes to."""

    def __init__(self, display: TrainingDisplay, mirror: Mirror, lock: RunLock, profiler: Profiler) -> None:
        self._display, self._mirror, self._lock, self._profiler = display, mirror, lock, profiler

    def step(self, step: int, loss: float | None) -> None:
        self._display.step(step, loss)
        self._profiler.step()

    def row(self, row: Row) -> None:
        self._display.row(row)
        self._mirror.notify()
        self._lock.beat()


def _restore(run: Run, state: State | None, settings: Settings) -> tuple[GPT, torch.optim.AdamW, Progress]:
    """Model, optimizer and sums as they were at the checkpoint, or as they are before the first step."""
    spec = run.record.spec
    if state is None:
        model = initial_model(run).to(settings.device)
        return model, optimizer.build(model, spec.train, fused=settings.fused), Progress()
    model = model_of(state.weights, spec.model).to(settings.device)
    adamw = optimizer.build(model, spec.train, fused=settings.fused)
    optimizer.load_state_tensors(model, adamw, state.moments)
    return model, adamw, state.checkpoint.manifest.progress
