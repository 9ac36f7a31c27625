"""Submit runs as one job array, through submitit."""

import io
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from gptlab.errors import BadInputError
from gptlab.slurm.job import RunJob
from gptlab.slurm.settings import SlurmSettings


def check_sbatch() -> None:
    """Check that this machine can submit jobs.

    Raises:
        BadInputError: It has no `sbatch`.
    """
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise BadInputError(
            f"there is no {missing[0]} on this machine; log in to the cluster, or leave --slurm out to run here"
        )


def submit(jobs: Sequence[RunJob], name: str, folder: Path, settings: SlurmSettings) -> list[str]:
    """Submit jobs as one array. Returns the id of each.

    Raises:
        BadInputError: Slurm refuses them, for its own reason.
    """
    from submitit import SlurmExecutor  # it takes a tenth of a second, and most commands never need it
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    check_sbatch()
    if "%" in str(folder):
        raise BadInputError(f"Slurm would replace the % in {folder}; set GPTLAB_RUNS to a path without it")
    executor = SlurmExecutor(folder)
    executor.update_parameters(
        job_name=name,
        nodes=settings.nodes or 1,
        ntasks_per_node=1,  # which starts the processes of its node
        time=None,  # submitit would ask for five minutes
        array_parallelism=settings.array_parallelism or len(jobs),
        signal_delay_s=settings.signal_delay_s,
        setup=settings.setup or None,
        stderr_to_stdout=True,
        # Since version 22.05, `srun` does not read `--cpus-per-task` of the script any more.
        srun_args=[f"--cpus-per-task={settings.cpus}"] if settings.cpus else None,
        additional_parameters={"requeue": True, **settings.sbatch_options()},
    )
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints the error, too
            submitted = [executor.submit(job) for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        hint = f" ({len(jobs)} jobs; the cluster's MaxArraySize may be smaller)" if "array" in str(error) else ""
        raise BadInputError(f"Slurm refuses the jobs: {_reason(str(error))}{hint}") from None
    return [job.job_id for job in submitted]


def _reason(message: str) -> str:
    """Return what `sbatch` says, on one line."""
    lines = [re.sub(r"^sbatch: (?:error: |fatal: )?", "", line).strip() for line in message.splitlines()]
    return "; ".join(line for line in dict.fromkeys(lines) if line)
