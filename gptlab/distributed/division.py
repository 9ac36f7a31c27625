"""What can be divided among several processes. Without torch."""

from gptlab.errors import BadInputError
from gptlab.spec import Experiment


def check_division(experiment: Experiment, processes: int, *, shard: bool) -> None:
    """Check that several processes can train an experiment together, and get the result of a single one.

    Raises:
        BadInputError: They cannot.
    """
    model, train = experiment.model, experiment.train
    if processes == 1:
        if shard:
            raise BadInputError("--shard divides weights among processes, but there is only one; add --nproc 2 or more")
        return
    if model.dropout:
        raise BadInputError(
            f"model.dropout is {model.dropout:g}, which {processes} processes cannot divide among them: the masks of a "
            "batch are drawn at once; train with one process, or with --set model.dropout=0"
        )
    if train.batch_size % processes:
        numbers = [number for number in range(1, train.batch_size + 1) if train.batch_size % number == 0]
        below = train.batch_size // processes * processes
        sizes = " or ".join(str(size) for size in (below, below + processes) if size)
        raise BadInputError(
            f"train.batch_size {train.batch_size} cannot be divided by {processes} processes; use {_either(numbers)}, "
            f"or --set train.batch_size={sizes}"
        )
    if shard and train.has_own_optimizer:
        raise BadInputError(
            f"train.optimizer {train.optimizer} may need whole matrices, which no process has with --shard; leave "
            "--shard out"
        )


def _either(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last} processes" if others else f"{last} process"
