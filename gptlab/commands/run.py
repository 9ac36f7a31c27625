"""`gptlab run` and `gptlab resume`: train a run to its number of steps, whatever state it is in.

The commands are idempotent. A complete run is left as it is; an interrupted one resumes from its newest intact
checkpoint; a larger number of steps extends it; a smaller one changes nothing.
"""

import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from gptlab import project
from gptlab.checkpoints.read import SavedState, read_newest_state
from gptlab.checkpoints.retention import check_space, remove_incomplete
from gptlab.commands import run_messages as messages
from gptlab.commands.run_checks import check_arithmetic, check_nothing_is_lost
from gptlab.compiler import keep_kernels
from gptlab.data.vocabularies import Tokenizer
from gptlab.distributed.board import board
from gptlab.distributed.division import check_division
from gptlab.distributed.place import place
from gptlab.errors import DivergedError
from gptlab.files import remove_temporary_files
from gptlab.identity import Fingerprint
from gptlab.limits import out_of_memory_kills
from gptlab.mirror.mirror import Mirror
from gptlab.mirror.modes import AUTO, Mode, check_wandb_mode
from gptlab.model.measure import check_parts, size_of
from gptlab.slurm.job import announce
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.progress import StepProgress
from gptlab.terminal.text import shell_command
from gptlab.tracking import provenance
from gptlab.tracking.history import History
from gptlab.tracking.lineage import children
from gptlab.tracking.lock import RunLock
from gptlab.tracking.records import TextRecord
from gptlab.tracking.run import LOG, RECORD, Run, create_run, load_run
from gptlab.tracking.space import check_optimizer_state_is_kept
from gptlab.tracking.verification import find_rows_problem
from gptlab.training.attempt import Attempt
from gptlab.training.capacity import limit_threads, memory_notice
from gptlab.training.connection import connect
from gptlab.training.distribution import Alone, Distribution, choose_for_processes
from gptlab.training.fingerprint_cache import fingerprint
from gptlab.training.follower import Work
from gptlab.training.initial import check_branch, check_initial_weights, check_steps
from gptlab.training.loop import Hooks
from gptlab.training.memory import keep_freed_memory
from gptlab.training.plan import Parent, plan
from gptlab.training.profiler import Profiler
from gptlab.training.run_text import moved_text, remember_place, stored_text
from gptlab.training.run_tokenizer import restore_copy, run_tokenizer
from gptlab.training.settings import (
    Available,
    Settings,
    choose_kernels,
    resolve_settings,
    use_deterministic_kernels,
)
from gptlab.training.signals import INSISTENT, StopSignals
from gptlab.training.training_data import TrainingData, load_training_data
from gptlab.untrusted import check_no_hard_links


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to compute."""

    steps: int | None = None
    text: str | None = None
    """The new place of the text of a run that is resumed."""
    accept_code_change: bool = False
    """Whether to resume a run with code that computes something else."""
    device: str = "auto"
    deterministic: bool = False
    compile: bool | None = None
    """Whether to compile the model's blocks; by default where it pays."""
    capture: bool | None = None
    """Whether to capture the step as a CUDA graph; by default on CUDA with one process."""
    shard: bool = False
    """Whether each of several processes has a part of weights and moments only."""
    timeout_s: float = 600.0
    """How long to wait for another process before it counts as lost."""
    wandb: Mode | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""
    fresh: bool = False
    profile: bool = False
    artifacts: Literal["best", "final"] | None = None
    next_commands: bool = True
    """Whether to end with what can be done next."""

    def __post_init__(self) -> None:
        """Check the environment variable that stands in for `wandb`.

        Raises:
            BadInputError: `WANDB_MODE` is not a mode.
        """
        if self.wandb is None:
            check_wandb_mode()


@dataclass(frozen=True)
class Result:
    """A run after its command has ended."""

    run: Run
    exit_code: int = 0
    """128 plus the signal's number if a signal stopped training, else 0."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab run --json` prints."""
        history = self.run.history()
        return {
            "run": self.run.id,
            "directory": str(self.run.directory),
            "status": history.status,
            "step": history.step,
            "train_loss": history.last("train/loss"),
            "val_loss": history.last("val/loss"),
            "val_bpb": history.last("val/bpb"),
            "tokens_per_s": history.last("perf/tokens_per_s"),
        }


def run_experiment(
    experiment: Experiment,
    seed: int,
    options: Options,
    console: Console,
    parent: Parent | None = None,
    hooks: Hooks | None = None,
) -> Result:
    """Start, resume or extend the run of an experiment, or report that it is complete.

    Args:
        experiment: What to compute.
        seed: Seed for initialization, data order and dropout.
        options: How to run it.
        console: Where to print.
        parent: The weights or the checkpoint to start from instead of drawing the weights from the seed.
        hooks: More functions for the training loop to call.

    Raises:
        BadInputError: The text, tokenizer, device or parent cannot be used. Nothing was written.
        DivergedError: The run diverges, or has diverged before.
        GptlabError: Another process is training the run, a file is damaged or cannot be written, or memory runs out.
    """
    limit_threads()
    size = size_of(experiment)  # first, because it says best what is wrong with a part
    planned = plan(experiment, seed, options.device, parent)
    settings = _settings(planned.settings, experiment, options)
    directory, text, branch, offset = planned.run_directory, planned.text, planned.branch, 0
    if branch:
        check_branch(branch, seed, experiment.train)
        offset = branch.window_offset(text.sha256, experiment.train)
    elif planned.initial_weights:
        check_initial_weights(planned.initial_weights, experiment.model)
    data = load_training_data(experiment, text, seed, planned.tokenizer, window_offset=offset)
    record = TextRecord(source=text.source, path=str(text.path), bytes=text.size, sha256=text.sha256)
    with console.surviving():
        if options.fresh and (directory / RECORD).is_file():
            _start_afresh(load_run(directory), console)
        if not directory.exists():
            messages.new_identity(experiment, planned.identity, planned.fingerprint, console)
        run = create_run(
            experiment,
            planned.identity,
            seed,
            planned.settings.precision,
            record,
            tokenizer=planned.tokenizer.content,
            initial_weights=planned.initial_weights,
            branch=branch,
            imported_weights=planned.imported_weights,
            fingerprint=planned.fingerprint,
            size=size,
        )
        messages.kept_fields(run, experiment, console)
        if not os.access(run.record.text.path, os.R_OK):
            remember_place(run, text, console.notice)
        session = _Session(
            run, data, planned.tokenizer, planned.fingerprint, settings, options, console, hooks or Hooks()
        )
        return session.train_to(experiment.train.steps)


def resume_run(run: Run, options: Options, console: Console, hooks: Hooks | None = None) -> Result:
    """Resume or extend a run from its stored spec, even if its experiment has changed or is gone.

    Raises:
        BadInputError: The text or the tokenizer is gone, they or the arithmetic of the code have changed since the
            run began, or the device cannot be used.
        DivergedError: See `run_experiment`.
        GptlabError: See `run_experiment`.
    """
    limit_threads()
    record = run.record
    settings = resolve_settings(options.device, record.precision, Available.here())
    settings = _settings(settings, record.spec, options)
    new_run = shell_command("run", record.spec.name, "--text", record.text.path)
    tokenizer = run_tokenizer(run)
    if options.text:
        text = moved_text(run, options.text, console.notice)
    else:
        text = stored_text(run, remedy=f"restore it, or start a new run with: {new_run}")
    data = load_training_data(record.spec, text, record.seed, tokenizer, window_offset=record.window_offset)
    with console.surviving():
        code = fingerprint(record.spec, tokenizer, record.precision)
        session = _Session(run, data, tokenizer, code, settings, options, console, hooks or Hooks())
        return session.train_to(options.steps)


def _settings(resolved: Settings, experiment: Experiment, options: Options) -> Settings:
    """Choose kernels for the processes that train together.

    Raises:
        BadInputError: The options do not fit together, or the processes cannot train the experiment.
    """
    check_division(experiment, place().size, shard=options.shard)
    settings = choose_kernels(resolved, options.compile, options.capture)
    return choose_for_processes(settings, place(), options.capture)


@dataclass(frozen=True)
class _Session:
    """A run with everything that is needed to train it."""

    run: Run
    data: TrainingData
    tokenizer: Tokenizer
    code: Fingerprint
    settings: Settings
    options: Options
    console: Console
    hooks: Hooks

    def train_to(self, steps: int | None) -> Result:
        """Train the run to `steps`, by default the target of its last attempt, unless it is there already."""
        run, history = self.run, self.run.history()
        steps = messages.steps_to_horizon(run, steps or history.target, self.console)
        if history.status == "diverged":
            raise DivergedError(
                f"{run.id} diverged at step {history.step} and would diverge again; change the experiment or the "
                "code, and start another run with `gptlab run`"
            )
        if history.status == "complete" and steps <= history.step:
            messages.already_complete(
                run, history, steps, self.code, self.console, with_next=self.options.next_commands
            )
            return Result(run)
        check_parts(run.record.spec)  # else a part that is gone would look like damaged checkpoints
        if not self.options.accept_code_change:
            check_arithmetic(run, history, self.code)
        check_no_hard_links(run.directory)
        insistent = INSISTENT if place().size == 1 else ()
        with RunLock(run.directory) as lock, StopSignals(insistent) as signals:
            run = load_run(run.directory)  # another process may have written the record first
            check_optimizer_state_is_kept(run, run.history())  # now that no other process can remove it
            remove_incomplete(run.directory)
            remove_temporary_files(run.directory)
            restore_copy(run, self.tokenizer)
            spec, size, device = run.record.spec, run.record.model_size, self.settings.device
            parameters = size.parameters * (1 if self.options.shard else place().local_size)
            if notice := memory_notice(parameters, device, history.attempts, killed=lock.predecessor_was_killed):
                self.console.notice(notice)
            is_adamw = not spec.train.has_own_optimizer
            find_problem = partial(find_rows_problem, run.directory)
            saved = read_newest_state(run.directory, spec.model, self.console.notice, find_problem, is_adamw=is_adamw)
            if saved is None:
                check_nothing_is_lost(run, history)
                if run.record.branch:
                    check_steps(run.record.branch, steps)
            if saved and steps < saved.checkpoint.step:
                messages.fewer_steps(run, history, steps, saved.checkpoint.step, self.console)
                return Result(run)
            announce(run)
            self.console.log_to(run.directory / LOG)
            check_space(run.directory, spec.train.model_copy(update={"steps": steps}), size)
            return replace(self, run=run)._train(steps, saved, history, lock, signals)

    def _train(
        self, steps: int, saved: SavedState | None, history: History, lock: RunLock, signals: StopSignals
    ) -> Result:
        """Train an attempt, connected to the progress bar, profiler, W&B mirror, lock and signals."""
        run, options, console = self.run, self.options, self.console
        if options.deterministic:
            use_deterministic_kernels()
        keep_kernels()
        keep_freed_memory()
        start_step = saved.checkpoint.step if saved else run.record.start_step
        mirror = Mirror(run, options.wandb or AUTO, console.notice)
        wandb = mirror.mode()
        source = provenance.working_tree()
        facts = {
            "from_step": start_step,
            "steps": steps,
            "deterministic": options.deterministic,
            "profile": options.profile,
            **self.settings.environment(),
            "workers": place().size,
            "shard": options.shard,
            **provenance.environment(),
            **source.facts(),
            "fingerprint": self.code.hash,
            "out_of_memory_kills": out_of_memory_kills(),
            "tags": list(options.tags),
            "notes": options.notes,
            "artifacts": options.artifacts,
            "wandb": mirror.intended_mode,
        }
        messages.opening(run, start_step, steps, self.data, self.settings, wandb, console)
        messages.missing_compiler(self.settings, options.compile, console)
        messages.changed_environment(run, history, facts, source, self.code, console)
        train = run.record.spec.train
        with (
            StepProgress(console, start_step, steps, train.batch_size * train.sequence_length) as progress,
            Profiler(run.directory, console.notice, enabled=options.profile) as profiler,
        ):
            hooks = Hooks(
                on_start=[mirror.notify, *self.hooks.on_start],
                on_step=[progress.update, lambda step, loss: profiler.step(), *self.hooks.on_step],
                on_row=[
                    lambda row: console.print(messages.row_line(row)),
                    lambda row: mirror.notify(),
                    lambda row: lock.beat(),
                    *self.hooks.on_row,
                ],
                on_checkpoint=self.hooks.on_checkpoint,
            )
            try:
                distribution = self._distribution(steps, signals)
                attempt = Attempt(run, saved, self.data, self.settings, hooks, console.notice, distribution)
                outcome = attempt.train(
                    steps, facts, source, signals.stop_requested, lambda: _announce_stop(signals, console)
                )
            finally:
                mirror.finish()
        messages.closing(run, outcome, mirror.url, console, with_next=options.next_commands)
        stopped_by = signals.received or signal.SIGTERM  # which another process received
        return Result(run, 128 + stopped_by if outcome == "interrupted" else 0)

    def _distribution(self, steps: int, signals: StopSignals) -> Distribution:
        """Tell other processes what to compute, and connect to them when they are ready."""
        if not place().has_followers:
            return Alone()
        options = self.options
        work = Work(
            str(self.run.directory),
            steps,
            self.settings,
            deterministic=options.deterministic,
            shard=options.shard,
            timeout_s=options.timeout_s,
        )
        board().post(work.notice())
        board().wait_until_ready(give_up=signals.stop_requested)
        return connect(self.settings, work.timeout_s, shard=work.shard)


def _start_afresh(run: Run, console: Console) -> None:
    """Move a run to the trash, and say which runs start from it."""
    below = children(run.directory, run.id)
    console.print(f"moved the old run to {project.display_path(run.move_to_trash())}")
    if below:
        console.notice(
            f"{', '.join(map(str, below))} started from the old run; until they have a checkpoint of their own, they "
            "need it: move it back, or train this run to the same bytes"
        )


def _announce_stop(signals: StopSignals, console: Console) -> None:
    """Print that training stops."""
    cause = signals.received.name if signals.received else "another process was asked to stop"
    again = "; a second Ctrl-C or SIGTERM stops immediately without saving" if signals.insistent else ""
    console.notice(f"{cause}: saving, then stopping{again}")
