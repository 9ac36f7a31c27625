"""What a benchmark says: rows of ours beside theirs, each measured in turns, with the ratio of every pair."""

import json
import operator
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One thing that a user waits for, or pays with memory."""

    part: str
    what: str
    peer: str
    """Beside what it was measured."""
    unit: str
    """Of `ours` and `theirs`, such as `tokens/s`, `s` or `MiB`."""
    ours: Sequence[float] = ()
    """One value per pair; none where it cannot be measured here."""
    theirs: Sequence[float] = ()
    target: str = ""
    """What the median ratio should be, such as `>= 1.4`; with a unit, what the median of ours should be: `<= 0.5 s`."""
    limit: float | None = None
    """Ours as a share of what the hardware allows, where that is known."""
    clock: str = "wall"
    """What seconds are counted by: `wall` or `cpu`."""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, pair by pair."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one or without a measurement."""
        if not self.target or not self.ours:
            return None
        sign, bound, *unit = self.target.split()
        assert unit in ([], [self.unit])
        found = statistics.median(self.ours if unit else self.ratios)
        return {"<=": operator.le, ">=": operator.ge}[sign](found, float(bound))

    def document(self) -> dict[str, Any]:
        """As it is written to JSON and Parquet."""
        ratios = self.ratios
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "ours": statistics.median(self.ours) if ratios else None,
            "theirs": statistics.median(self.theirs) if ratios else None,
            "peer": self.peer,
            "ratio_min": min(ratios, default=None),
            "ratio_median": statistics.median(ratios) if ratios else None,
            "ratio_max": max(ratios, default=None),
            "pairs": len(ratios),
            "target": self.target or None,
            "met": self.met,
            "share_of_limit": self.limit,
            "clock": self.clock,
            "note": self.note or None,
        }


def table(rows: Iterable[Row]) -> Table:
    """The rows for a terminal, or for a page."""
    shown = Table("what", "unit", "ours", "theirs", "ratio: min / median / max", "target", "of the limit", box=None)
    for row in rows:
        d = row.document()
        ratio = "not measured here"
        if d["pairs"]:
            ratio = " / ".join(f"{d[f'ratio_{name}']:.3g}" for name in ("min", "median", "max"))
        shown.add_row(
            f"{row.what}, beside {row.peer}",
            row.unit + (" (CPU)" if row.clock == "cpu" else ""),
            *("" if d[name] is None else f"{d[name]:,.4g}" for name in ("ours", "theirs")),
            ratio,
            row.target + {True: "  met", False: "  missed", None: ""}[row.met],
            "" if row.limit is None else f"{row.limit:.2f}",
        )
    return shown


def write(rows: Iterable[Row], folder: Path) -> list[Path]:
    """The rows as `bench.json` and `bench.parquet`."""
    documents = [row.document() for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "bench.json", folder / "bench.parquet"]
    paths[0].write_text(json.dumps(documents, indent=2) + "\n")
    pd.DataFrame(documents).to_parquet(paths[1])
    return paths
