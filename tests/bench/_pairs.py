"""Two ways of doing the same, measured in turns: machines are shared, and no single time means much.

Each side lives in a process of its own, which sleeps while the other works: so their memory can be compared too.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Work = Callable[[], Any]
"""One unit of work; a number that it returns is kept as `Spent.value`."""


@dataclass(frozen=True)
class Spent:
    """What one unit of work took."""

    wall_s: float
    cpu_s: float
    """Of the process, over all its threads."""
    peak_mib: float
    """The largest resident memory of the process so far."""
    value: float | None


def timed(work: Work) -> Spent:
    """Do it once, in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return Spent(wall_s, cpu_s, status_mib("VmHWM"), value if isinstance(value, (int, float)) else None)


def status_mib(name: str) -> float:
    """A size in MiB that Linux has of this process; `ru_maxrss` would begin at that of the process which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def in_turns(sides: dict[str, Work], pairs: int) -> dict[str, list[Spent]]:
    """Every side once per pair, in this process, each first in every second pair."""
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in _order(list(sides), pair):
            spent[name].append(timed(sides[name]))
    return spent


def processes_in_turns(
    sides: dict[str, Callable[..., Work]], arguments: Sequence[Any], pairs: int, *, warm_up: int = 1
) -> dict[str, list[Spent]]:
    """As `in_turns`, each side in a process of its own.

    Args:
        sides: By name, a function of a module that makes everything ready and returns the work to be timed.
        arguments: For these functions.
        pairs: How often.
        warm_up: Units of work before the first that counts.
    """
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(_process(make, arguments)) for name, make in sides.items()}
        for pair in range(-warm_up, pairs):
            for name in _order(list(sides), pair):
                pipes[name].send("go")
                found = Spent(**pipes[name].recv())
                if pair >= 0:
                    spent[name].append(found)
    return spent


def _order(names: list[str], pair: int) -> list[str]:
    return names if pair % 2 else names[::-1]


@contextmanager
def _process(make: Callable[..., Work], arguments: Sequence[Any]):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


def _serve(pipe: Connection, make: Callable[..., Work], arguments: Sequence[Any]) -> None:
    work = make(*arguments)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(asdict(timed(work)))
