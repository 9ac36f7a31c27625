"""The options of `gptlab sweep` that say what its jobs ask Slurm for. Each replaces a site default."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptlab.errors import BadInputError
from gptlab.interface.options import MAX_COUNT

if TYPE_CHECKING:
    from gptlab.slurm.settings import SlurmSettings

SlurmOption = Annotated[
    bool, typer.Option("--slurm", help="Submit the runs to Slurm as one job array, instead of running them here.")
]
PartitionOption = Annotated[str | None, typer.Option(help="With --slurm: the partition of the jobs.")]
AccountOption = Annotated[str | None, typer.Option(help="With --slurm: the account to charge.")]
QosOption = Annotated[str | None, typer.Option(help="With --slurm: the quality of service.")]
ConstraintOption = Annotated[str | None, typer.Option(help="With --slurm: features that the node must have.")]
GpusOption = Annotated[int | None, typer.Option(min=0, max=MAX_COUNT, help="With --slurm: GPUs of each job.")]
CpusOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_COUNT, help="With --slurm: processors of each job, and threads of a new run."),
]
TimeOption = Annotated[
    str | None,
    typer.Option(help="With --slurm: time limit of each job, such as 4:00:00; shortly before, it saves and requeues."),
]
MemoryOption = Annotated[str | None, typer.Option(help="With --slurm: memory of each job, such as 16G.")]
ArrayParallelismOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_COUNT, help="With --slurm: how many jobs run at once at most. Default: all."),
]


def slurm_settings(slurm: bool, resources: dict[str, Any], jobs: int | None) -> "SlurmSettings | None":
    """Return what the jobs of a sweep ask for: the options of the command line, else the site's defaults.

    Returns:
        None without `--slurm`.

    Raises:
        BadInputError: A value is invalid, `--jobs` is given with `--slurm`, or one of its options without it.
    """
    if slurm and jobs is not None:
        raise BadInputError("--jobs is for processes on this machine; with --slurm, use --array-parallelism")
    given = [name for name, value in resources.items() if value is not None]
    if given and not slurm:
        raise BadInputError(f"--{given[0].replace('_', '-')} is for jobs of Slurm; add --slurm, or leave it out")
    if not slurm:
        return None
    from gptlab.slurm.settings import read_settings

    return read_settings(resources)
