"""Interleaved measurement of alternatives: on a shared machine, a single time means little.

If memory is compared, each side runs in its own process, which sleeps while the other one works.
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
"""One unit of work; a number that it returns is stored in `Cost.value`."""


@dataclass(frozen=True)
class Cost:
    """The cost of one unit of work."""

    wall_s: float
    cpu_s: float
    """Sum over all threads of the process."""
    peak_mib: float
    """Peak resident memory of the process so far."""
    value: float | None


def timed(work: Work) -> Cost:
    """Run the work once, in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall_s, cpu_s, status_mib("VmHWM"), value if isinstance(value, (int, float)) else None)


def status_mib(name: str) -> float:
    """A size from `/proc/self/status` in MiB; `ru_maxrss` would include the peak of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def interleave(sides: dict[str, Work], pairs: int) -> dict[str, list[Cost]]:
    """Run each side once per pair, in this process, in reverse order in every second pair."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in _order(list(sides), pair):
            costs[name].append(timed(sides[name]))
    return costs


def interleave_processes(
    sides: dict[str, Callable[..., Work]], arguments: Sequence[Any], pairs: int, *, warm_up: int = 1
) -> dict[str, list[Cost]]:
    """Like `interleave`, with each side in its own process.

    Args:
        sides: By name, a module-level function that sets everything up and returns the work to time.
        arguments: Arguments of these functions.
        pairs: Number of measurements per side.
        warm_up: Number of unmeasured repetitions before them.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(_process(make, arguments)) for name, make in sides.items()}
        for pair in range(-warm_up, pairs):
            for name in _order(list(sides), pair):
                pipes[name].send("go")
                cost = Cost(**pipes[name].recv())
                if pair >= 0:
                    costs[name].append(cost)
    return costs


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
