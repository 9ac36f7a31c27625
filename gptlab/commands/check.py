"""`gptlab check`: check a part against the protocol of its field."""

from dataclasses import dataclass
from typing import Any

from gptlab import catalog
from gptlab.errors import EXIT_FAILED, BadInputError
from gptlab.model.check import Check
from gptlab.part_names import BUILT_IN, EXAMPLE, is_part
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.tables import borderless
from gptlab.training.capacity import limit_threads
from gptlab.training.check import check_part
from gptlab.validation import did_you_mean


@dataclass(frozen=True)
class Result:
    """The checks of a part."""

    part: str
    field: str
    checks: list[Check]

    @property
    def exit_code(self) -> int:
        """1 if a check failed."""
        return 0 if all(check.passed for check in self.checks) else EXIT_FAILED

    def document(self) -> dict[str, Any]:
        """Return what `gptlab check --json` prints."""
        checks = [{"check": c.name, "passed": c.passed, "problem": c.problem or None} for c in self.checks]
        return {"part": self.part, "field": self.field, "passed": not self.exit_code, "checks": checks}


def check(name: str, field: str | None) -> Result:
    """Check a part, with the hyperparameters of the first experiment that uses it.

    Raises:
        BadInputError: There is no such part or field, or the field is not given and cannot be inferred.
    """
    limit_threads()
    if field is not None and field not in BUILT_IN:
        hint = did_you_mean(field, BUILT_IN) or f"; choose {', '.join(BUILT_IN)}"
        raise BadInputError(f"no part belongs to the field '{field}'{hint}")
    users = _users(name)
    found = field or _infer_field(name, list(users))
    if name not in BUILT_IN[found] and not is_part(name):
        hint = did_you_mean(name, BUILT_IN[found])
        raise BadInputError(f"there is no part '{name}' of {found}{hint or f'; a part is named like {EXAMPLE}'}")
    return Result(name, found, check_part(found, name, users.get(found)))


def render(result: Result) -> None:
    """Print one line per check."""
    console = Console()
    table = borderless("", "check", "", title=f"{result.part} as {result.field}")
    for each in result.checks:
        table.add_row("✓" if each.passed else "✗", each.name, each.problem)
    console.table(table)


def _users(name: str) -> dict[str, Experiment]:
    """For each field that names the part in an experiment, the first such experiment."""
    users: dict[str, Experiment] = {}
    for experiment in catalog.experiments().values() if is_part(name) else ():
        for field, part in experiment.parts.items():
            if part == name:
                users.setdefault(field, experiment)
    return users


def _infer_field(name: str, used: list[str]) -> str:
    fields = used or [field for field, known in BUILT_IN.items() if name in known]
    if len(fields) != 1:
        why = f"{' and '.join(fields)} name it" if fields else "no experiment uses it"
        raise BadInputError(
            f"which field '{name}' is for is unknown: {why}; give --field, one of {', '.join(BUILT_IN)}"
        )
    return fields[0]
