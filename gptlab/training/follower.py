"""What a process trains whose run another process plans, records and saves."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from gptlab.distributed.board import Board
from gptlab.distributed.workers import explain_lost_processes
from gptlab.tracking.run import load_run
from gptlab.training.compilation import explain_compiler_errors
from gptlab.training.connection import connect
from gptlab.training.loop import Hooks, TrainingLoop
from gptlab.training.memory import explain_out_of_memory, keep_freed_memory
from gptlab.training.rows import NoMetrics, RowWriter
from gptlab.training.run_text import stored_text
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.settings import Settings, use_deterministic_kernels
from gptlab.training.training_data import load_training_data


@dataclass(frozen=True)
class Work:
    """What all processes of a run compute."""

    directory: str
    """The run's directory."""
    steps: int
    settings: Settings
    deterministic: bool
    shard: bool
    timeout_s: float

    def notice(self) -> dict[str, Any]:
        """Return the notice that tells it to the other processes."""
        return asdict(self)

    @classmethod
    def from_notice(cls, notice: dict[str, Any]) -> Self:
        """Return the work of a notice."""
        return cls(**notice | {"settings": Settings(**notice["settings"])})


def follow(work: Work, board: Board, stop_requested: Callable[[], bool]) -> None:
    """Train with the other processes, from the state of process 0 to the last step or to a requested stop.

    Raises:
        DivergedError: The run diverges.
        LostProcessError: Another process has ended or does not answer.
        GptlabError: The run's text or tokenizer cannot be read, or memory runs out.
    """
    if work.deterministic:
        use_deterministic_kernels()
    keep_freed_memory()
    run, settings = load_run(Path(work.directory)), work.settings
    record, train = run.record, run.record.spec.train
    tokenizer, text = run_tokenizer(run), stored_text(run)
    data = load_training_data(record.spec, text, record.seed, tokenizer, window_offset=record.window_offset)
    board.report_ready()
    distribution = connect(settings, work.timeout_s, shard=work.shard)
    workers = distribution.workers
    with explain_out_of_memory(train), explain_compiler_errors(), explain_lost_processes(workers):
        state = distribution.restore(record, None, settings)
        rows = RowWriter(record, 0, data.windows, settings, NoMetrics(), state, workers)
        loop = TrainingLoop(record, state, data, settings, rows, distribution.follower_saver(), Hooks(), workers)
        loop.training_step, stops = distribution.step(loop.step, stop_requested)
        loop.train(work.steps, stops)
