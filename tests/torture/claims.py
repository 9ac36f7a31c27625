"""What commands say about runs: the numbers that somebody might believe.

A damaged file must not change a claim silently. `read` runs commands that only read and returns what each of them says,
without what may differ between two copies of the same run: times and places. Facts about code and machines are no
numbers.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torture import process
from torture.place import Place
from torture.process import REPORT, Outcome, check_manners
from torture.trial import require

READERS: dict[str, list[str]] = {
    "runs": ["runs", "--json"],
    "runs table": ["runs"],
    "show": ["show", "{micro}"],
    "show json": ["show", "{micro}", "--json"],
    "eval": ["eval", "{micro}", "--json"],
    "sample": ["sample", "{micro}", "--json", "--temperature", "0", "--tokens", "8"],
    "diff": ["diff", "{micro}", "{micro 1}", "--json"],
    "report": [REPORT],
}
REPORTS = ("report.md", "report.html")
READ_CODES = {0, 1, 2}

VOLATILE = re.compile(r"(\d+ (min|s|h|d)\b)|(\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?( UTC|\+00:00|Z)?)")
"""Ages and times of day, which differ between two calls."""


@dataclass(frozen=True)
class Claim:
    """What one command says."""

    outcome: Outcome
    text: str
    """Its document, table or report."""


def read(place: Place, copied: Path, readers: Iterable[str]) -> dict[str, Claim]:
    """Run these readers on a copy of the finished runs and return what each says."""
    claims = {}
    for name in readers:
        for report in REPORTS:
            (copied / "runs" / report).unlink(missing_ok=True)
        outcome = process.run(*(word.format(**place.ids) for word in READERS[name]))
        check_manners(outcome, READ_CODES)
        text = outcome.out
        if name == "report" and outcome.code == 0:
            text = "\n".join((copied / "runs" / report).read_text() for report in REPORTS)
        if name == "diff" and outcome.code == 0:
            document = json.loads(text)
            results = {key: value for key, value in document["results"].items() if key not in {"status", "step"}}
            text = json.dumps([results, document["notes"]], indent=1)
        claims[name] = Claim(outcome, _stable(text.replace(str(copied), "COPY")))
    return claims


def _stable(text: str) -> str:
    """The text without ages and times, and without the spaces that align the columns of a table with them."""
    return re.sub(" +", " ", VOLATILE.sub("…", text))


def compare(name: str, claim: Claim, true: Claim, named: Iterable[str], *, status: bool = True) -> None:
    """Check that a command says the truth, or names the damage.

    Args:
        name: The reader.
        claim: What it said about the damaged runs.
        true: What it said about the undamaged ones.
        status: Whether the status counts.
        named: Words of which one must occur in what it says in addition, if it does not say the same.
    """
    ours, theirs = (one.text if status else re.sub("complete|interrupted", "…", one.text) for one in (claim, true))
    if ours == theirs and claim.outcome.code == true.outcome.code:
        return
    before, after = theirs.splitlines(), ours.splitlines()
    new = [line for line in after if line not in set(before)]
    said = claim.outcome.err if claim.outcome.code or name == "runs" else f"{claim.outcome.err}\n" + "\n".join(new)
    gone = [line for line in before if line not in set(after)]
    require(
        any(word in said for word in named),
        f"{name} says something else and does not name the damage, such as {sorted(named)}: {claim.outcome}\n"
        f"--- not said\n{_few(gone)}\n--- said instead\n{_few(new)}",
    )


def _few(lines: list[str]) -> str:
    return "\n".join(line[:300] for line in lines[:12])
