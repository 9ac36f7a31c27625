"""An attempt: train a run in this process, from the restored state to the recorded end."""

from collections.abc import Callable
from typing import Any

from gptlab.checkpoints.manifest import CHECKPOINTS, Checkpoint
from gptlab.checkpoints.read import SavedState
from gptlab.checkpoints.retention import NeededSteps, apply_retention
from gptlab.distributed.workers import explain_lost_processes
from gptlab.errors import DivergedError, GptlabError
from gptlab.files import make_directory
from gptlab.model.sample import samples
from gptlab.terminal.text import plural
from gptlab.tracking.lineage import needed_steps
from gptlab.tracking.metrics import METRICS, MetricsFile
from gptlab.tracking.provenance import Source
from gptlab.tracking.records import Outcome
from gptlab.tracking.run import Run
from gptlab.tracking.verification import end_of_rows, last_row_step
from gptlab.training.capture import CudaGraphs, NotCapturableError
from gptlab.training.compilation import explain_compiler_errors, uncompiled
from gptlab.training.distribution import Alone, Distribution
from gptlab.training.loop import Hooks, TrainingLoop
from gptlab.training.memory import explain_out_of_memory
from gptlab.training.rows import RowWriter
from gptlab.training.saving import StateSaver
from gptlab.training.settings import Settings
from gptlab.training.state import TrainingState
from gptlab.training.training_data import TrainingData
from gptlab.untrusted import torn_bytes


class Attempt:
    """Trains a run in this process. The caller holds the run's lock."""

    def __init__(
        self,
        run: Run,
        saved: SavedState | None,
        data: TrainingData,
        settings: Settings,
        hooks: Hooks,
        notice: Callable[[str], None],
        distribution: Distribution | None = None,
    ) -> None:
        """Restore the state that training continues from.

        Args:
            run: The run.
            saved: The checkpoint to resume from; None to begin the run.
            data: Training and validation windows.
            settings: The device, precision and kernels.
            hooks: Functions for the training loop to call.
            notice: Called with each message to the user.
            distribution: How the run is distributed over processes; None for a single one.

        Raises:
            BadInputError: The parent's weights or optimizer state are missing or damaged.
            GptlabError: The host or the device runs out of memory.
        """
        self._run, self._data, self._settings, self._hooks, self._notice = run, data, settings, hooks, notice
        self._train_spec = run.record.spec.train
        self._distribution = distribution or Alone()
        self._workers = self._distribution.workers
        with explain_out_of_memory(self._train_spec), explain_lost_processes(self._workers):
            self.state: TrainingState = self._distribution.restore(run.record, saved, settings)
        self.start_step = self.state.step
        self._rows_problem = saved.rows_problem if saved else None

    def train(
        self,
        steps: int,
        facts: dict[str, Any],
        source: Source,
        stop_requested: Callable[[], bool],
        on_stop: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Train until `steps` are done or a stop is requested, and record start and end of the attempt.

        Args:
            steps: Total number of optimizer steps.
            facts: The fields of `Start` to record, `steps` included.
            source: The code; its patch is stored with the run.
            stop_requested: Called in each step; with several processes, it is the request to this one.
            on_stop: Called before training stops at a request.

        Returns:
            `complete`, or `interrupted` after a requested stop.

        Raises:
            DivergedError: A loss or gradient norm is not finite.
            GptlabError: A file cannot be written, or memory runs out.
        """
        run, train = self._run, self._train_spec
        apply_retention(
            run.directory,
            train.keep_checkpoints,
            self.state.loop.best_step,
            snapshots=train.snapshots,
            up_to=self.start_step,
            keep_steps=train.keep_steps,
            needed=self._needed_steps,
        )
        make_directory(run.directory / CHECKPOINTS)  # if it is missing later, somebody removed it
        number = run.start_attempt(**facts)  # before rows are cut, which the end of the last attempt vouches for
        source.keep_patch(run.directory)
        with self._open_metrics() as metrics:
            run.drop_samples_after(min(self.start_step, steps - 1))
            outcome: Outcome = "failed"
            end_facts: dict[str, Any] = {}
            try:
                for hook in self._hooks.on_start:
                    hook()
                with explain_out_of_memory(train), explain_compiler_errors(), explain_lost_processes(self._workers):
                    loop = self._loop(number, metrics)
                    loop.training_step, stops = self._distribution.step(loop.step, stop_requested)
                    if self._settings.capture and self.state.step < steps:
                        end_facts |= self._capture(loop)
                    loop.train(steps, stops, on_stop)
                if self.state.step == steps:
                    self._add_sample()  # a complete run has its sample, so it is not complete if this fails
                outcome = "complete" if self.state.step == steps else "interrupted"
            except DivergedError as error:
                outcome = "diverged"
                end_facts |= {"diverged": error.facts}
                raise
            finally:
                metrics.sync()
                end_facts |= {
                    "metrics_bytes": metrics.size,
                    "metrics_xxh3": metrics.checksum(),
                    "metrics_damaged_to": self.state.loop.metrics_damaged_to,
                }
                run.end_attempt(number, self.state.step, outcome, **end_facts)
        return outcome

    def _open_metrics(self) -> MetricsFile:
        """Open the metrics without the rows that will be computed again."""
        directory, loop = self._run.directory, self.state.loop
        if torn := torn_bytes(directory / METRICS):
            self._notice(
                f"the last row of metrics.jsonl was torn by a crash; {plural(torn, 'byte is', 'bytes are')} dropped"
            )
        size, damaged_to = loop.metrics_bytes, loop.metrics_damaged_to
        if self._rows_problem:
            size, damaged_to = end_of_rows(directory, last_row_step(self.start_step, loop)), self.start_step
            self._notice(
                f"{self._rows_problem}; no checkpoint has intact rows, so training continues from step "
                f"{self.start_step} and the run is marked as damaged"
            )
        metrics = MetricsFile(directory, size)
        update = {"metrics_bytes": size, "metrics_xxh3": metrics.checksum(), "metrics_damaged_to": damaged_to}
        self.state.loop = loop.model_copy(update=update)
        return metrics

    def _loop(self, number: int, metrics: MetricsFile) -> TrainingLoop:
        run = self._run
        rows = RowWriter(run.record, number, self._data.windows, self._settings, metrics, self.state, self._workers)
        saver = StateSaver(
            run.directory,
            self._train_spec,
            before_commit=metrics.sync,
            on_commit=self._on_checkpoint,
            needed=self._needed_steps,
        )
        saving = self._distribution.saver(saver)
        return TrainingLoop(
            run.record, self.state, self._data, self._settings, rows, saving, self._hooks, self._workers
        )

    def _capture(self, loop: TrainingLoop) -> dict[str, Any]:
        """Capture the step. If that is not possible, say why and return the fact to record."""
        try:
            loop.capture(CudaGraphs())
        except NotCapturableError as error:
            self._notice(f"the step is not captured as a CUDA graph: {error}")
            return {"not_captured": str(error)}
        return {}

    def _needed_steps(self) -> NeededSteps:
        return needed_steps(self._run.directory, self._run.id)

    def _on_checkpoint(self, checkpoint: Checkpoint) -> None:
        for hook in self._hooks.on_checkpoint:
            hook(checkpoint)

    def _add_sample(self) -> None:
        run, train = self._run, self._train_spec
        try:
            with uncompiled(self._settings), explain_out_of_memory():
                (text,) = samples(
                    self._distribution.whole_model(self.state, run, self._settings),
                    train.prompt,
                    1,
                    trained_length=train.sequence_length,
                    tokenizer=self._data.val.tokenizer,
                    seed=run.record.seed,
                )
        except GptlabError as error:
            self._notice(f"no sample: {error}")
        else:
            run.add_sample(self.state.step, train.prompt, text)
