"""What jobs ask Slurm for: site defaults in `[tool.gptlab.slurm]`, and options of the command line."""

import re
from datetime import time
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gptlab import project
from gptlab.errors import BadInputError
from gptlab.validation import explain

TABLE = "tool.gptlab.slurm"
RESERVED = (
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "array",
    "output",
    "error",
    "open-mode",
    "requeue",
    "signal",
    "job-name",
    "wrap",
)
"""Options of `sbatch` that a submission sets itself."""


def _as_text(value: Any) -> Any:
    """Return a time of TOML (`04:00:00`) and a number of minutes or megabytes as `sbatch` takes them."""
    return str(value) if isinstance(value, time) or type(value) is int else value


def _is_one_word(value: str) -> str:
    if not re.fullmatch(r"[^\s'\"\\]{1,1000}", value):  # it becomes part of a line of the script
        raise ValueError(f"must be one word without spaces and quotes, not {value!r:.100}")
    return value


Word = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_one_word)]
Number = Annotated[int, Field(ge=1, le=10**6)]


class SlurmSettings(BaseModel):
    """What a job asks for. None leaves it to Slurm."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: Number | None = None
    """Nodes of a job, which train its run together."""
    gpus: Annotated[int, Field(ge=0, le=10**6)] | None = None
    """GPUs on each node."""
    nproc: Number | None = None
    """Processes on each node; by default one for each GPU, or one."""
    cpus: Number | None = None
    """Processors on each node, and the number of threads of a new run, divided by its processes there."""
    time: Word | None = None
    """Time limit: minutes, `H:MM:SS` or `D-HH:MM:SS`."""
    memory: Word | None = None
    """On each node, such as `16G`."""
    array_parallelism: Number | None = None
    """How many jobs run at once at most."""
    signal_delay_s: Annotated[int, Field(ge=1, le=65535)] = 90
    """Seconds before the time limit at which a job saves and is requeued."""
    setup: list[Annotated[str, Field(max_length=10_000)]] = []
    """Lines of shell before a job starts, such as `module load cuda`."""
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]+$")], Word | bool] = {}
    """More options of `sbatch` by their long names, such as `{nodelist = "node7", exclusive = true}`."""

    @property
    def processes_per_node(self) -> int:
        """Processes on each node."""
        return self.nproc or self.gpus or 1

    @property
    def processes(self) -> int:
        """Processes that train a run together."""
        return (self.nodes or 1) * self.processes_per_node

    def sbatch_options(self) -> dict[str, Any]:
        """Return the options of `sbatch` by their long names."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "time": self.time,
            "mem": self.memory,
        }
        more = {name: value for name, value in self.options.items() if value is not False}
        return {name: value for name, value in named.items() if value is not None} | more


def read_settings(options: dict[str, Any]) -> SlurmSettings:
    """Return the site's defaults with the options of the command line in their place.

    Raises:
        BadInputError: A key is unknown, or a value has the wrong type or is out of range.
    """
    site = project.tool_table("slurm")
    defaults = _validated(site, f"[{TABLE}] in {project.display_path(project.root() / project.MARKER)}: ")
    given = {name: value for name, value in options.items() if value is not None}
    return defaults.model_copy(update=_validated(given, "--").model_dump(include=set(given)))


def _validated(values: dict[str, Any], where: str) -> SlurmSettings:
    try:
        settings = SlurmSettings.model_validate(values)
    except ValidationError as error:
        raise BadInputError(f"{where}{explain(error, SlurmSettings.model_fields)}") from None
    if reserved := [name for name in settings.options if name in RESERVED]:
        raise BadInputError(f"{where}options.{reserved[0]} is set by gptlab itself; leave it out")
    return settings
