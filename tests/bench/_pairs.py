"""Two ways of doing the same, measured in turns in one process: machines are shared, and no single time means much."""

import statistics
import time
from collections.abc import Callable


def ratios(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> dict[str, list[float]]:
    """Their seconds over ours, by the wall clock and by the CPU's, one ratio per pair; above 1 we are faster."""
    found: dict[str, list[float]] = {"wall": [], "cpu": []}
    for pair in range(pairs):
        order = (ours, theirs) if pair % 2 else (theirs, ours)
        spent = {work: _seconds(work) for work in order}
        for clock, ours_s, theirs_s in zip(found, spent[ours], spent[theirs], strict=True):
            found[clock].append(theirs_s / ours_s)
    return found


def spread(values: list[float]) -> str:
    """`1.62 (1.55 … 1.71)`: median, and smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
