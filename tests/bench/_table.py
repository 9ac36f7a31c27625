"""The benchmark's tables: our measurements and the reference's, with the ratio of each interleaved pair."""

import itertools
import json
import math
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
    """One comparison of time, speed or memory with a reference."""

    part: str
    what: str
    reference: str
    """The implementation or operation compared with."""
    unit: str
    """Unit of `ours` and `theirs`, such as `tokens/s`, `s` or `MiB`."""
    ours: Sequence[float] = ()
    """One value per pair; empty if this machine cannot measure it."""
    theirs: Sequence[float] = ()
    target: str = ""
    """Bound on the median ratio, such as `>= 1.4`, or with a unit on the median of `ours`, such as `<= 0.5 s`."""
    limit: float | None = None
    """Our speed as a fraction of the hardware's limit, if known."""
    clock: str = "wall"
    """`wall` or `cpu`."""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """`ours` / `theirs` of each pair."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a measurement."""
        if not self.target or not self.ours:
            return None
        sign, bound, *unit = self.target.split()
        assert unit in ([], [self.unit])
        found = statistics.median(self.ours if unit else self.ratios)
        return {"<=": operator.le, ">=": operator.ge}[sign](found, float(bound))

    def document(self) -> dict[str, Any]:
        """The row as written to JSON and Parquet."""
        ratios = self.ratios
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "ours": statistics.median(self.ours) if ratios else None,
            "theirs": statistics.median(self.theirs) if ratios else None,
            "reference": self.reference,
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


@dataclass(frozen=True)
class Growth:
    """How a cost grows with size."""

    what: str
    by: str
    """What `sizes` counts."""
    unit: str
    sizes: Sequence[float]
    values: Sequence[float]
    clock: str = "wall"
    note: str = ""

    def exponents(self) -> list[float]:
        """The exponent e of value ∝ sizeᵉ between neighboring sizes; 1 is linear growth."""
        points = list(zip(self.sizes, self.values, strict=True))
        return [math.log(b / a) / math.log(n / m) for (m, a), (n, b) in itertools.pairwise(points)]

    def documents(self) -> list[dict[str, Any]]:
        """One row per size, as written to JSON and Parquet."""
        facts = {"what": self.what, "by": self.by, "unit": self.unit, "clock": self.clock, "note": self.note or None}
        return [
            {**facts, "size": size, "value": value, "exponent": exponent}
            for size, value, exponent in zip(self.sizes, self.values, [None, *self.exponents()], strict=True)
        ]


def growth_table(found: Iterable[Growth]) -> Table:
    """The growth table for the terminal, with the exponent between the two largest sizes."""
    shown = Table("what", "by", "unit", "sizes", "values", "last exponent", box=None)
    for growth in found:
        shown.add_row(
            growth.what + (f" ({growth.note})" if growth.note else ""),
            growth.by,
            growth.unit + (" (CPU)" if growth.clock == "cpu" else ""),
            *(" · ".join(f"{number:,.4g}" for number in numbers) for numbers in (growth.sizes, growth.values)),
            f"{growth.exponents()[-1]:.2f}",
        )
    return shown


def table(rows: Iterable[Row]) -> Table:
    """The table of comparisons for the terminal."""
    shown = Table("what", "unit", "ours", "theirs", "ratio: min / median / max", "target", "of limit", box=None)
    for row in rows:
        d = row.document()
        ratio = "not measured"
        if d["pairs"]:
            ratio = " / ".join(f"{d[f'ratio_{name}']:.3g}" for name in ("min", "median", "max"))
        shown.add_row(
            f"{row.what}, vs. {row.reference}",
            row.unit + (" (CPU)" if row.clock == "cpu" else ""),
            *("" if d[name] is None else f"{d[name]:,.4g}" for name in ("ours", "theirs")),
            ratio,
            row.target + {True: "  met", False: "  missed", None: ""}[row.met],
            "" if row.limit is None else f"{row.limit:.2f}",
        )
    return shown


def write(documents: list[dict[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write a table as `NAME.json` and `NAME.parquet`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.parquet"]
    paths[0].write_text(json.dumps(documents, indent=2) + "\n")
    pd.DataFrame(documents).to_parquet(paths[1])
    return paths
