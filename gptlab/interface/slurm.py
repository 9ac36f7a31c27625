"""The options of `gptlab sweep` that say what its jobs ask Slurm for. Each replaces a site default."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptlab.errors import BadInputError
from gptlab.interface.options import MAX_COUNT

if TYPE_CHECKING:
    from gptlab.slurm.settings import SlurmSettings

SlurmOption = Annotated[bool, typer.Option("--slurm", help="Submit the runs to Slurm as one job array.")]
PartitionOption = Annotated[str | None, typer.Option(help="Slurm: partition of the jobs.")]
AccountOption = Annotated[str | None, typer.Option(help="Slurm: account to charge.")]
QosOption = Annotated[str | None, typer.Option(help="Slurm: quality of service.")]
ConstraintOption = Annotated[str | None, typer.Option(help="Slurm: features that a node must have.")]
NodesOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_COUNT, help="Slurm: nodes of each job."),
]
GpusOption = Annotated[int | None, typer.Option(min=0, max=MAX_COUNT, help="Slurm: GPUs on each node.")]
NprocOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_COUNT, help="Slurm: processes on each node. Default: one per GPU."),
]
CpusOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_COUNT, help="Slurm: processors per node."),
]
TimeOption = Annotated[
    str | None,
    typer.Option(help="Slurm: time limit of a job, such as 4:00:00."),
]
MemoryOption = Annotated[str | None, typer.Option(help="Slurm: memory on each node, such as 16G.")]
ArrayParallelismOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_COUNT, help="Slurm: jobs at once. Default: all."),
]


def slurm_settings(slurm: bool, resources: dict[str, Any], jobs: int | None, *, shard: bool) -> "SlurmSettings | None":
    """Return what the jobs of a sweep ask for: the options of the command line, else the site's defaults.

    Returns:
        None without `--slurm`.

    Raises:
        BadInputError: A value is invalid, `--jobs` is given with `--slurm`, or one of its options without it.
    """
    if slurm and jobs is not None:
        raise BadInputError("--jobs is for processes on this machine; with --slurm, use --array-parallelism")
    given = [name for name, value in resources.items() if value is not None] + ["shard"] * shard
    if given and not slurm:
        raise BadInputError(f"--{given[0].replace('_', '-')} is for jobs of Slurm; add --slurm, or leave it out")
    if not slurm:
        return None
    from gptlab.slurm.settings import read_settings

    return read_settings(resources)
