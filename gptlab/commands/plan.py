"""`gptlab plan`: what a run needs in memory, on the disk and between devices, before it is started."""

from dataclasses import dataclass
from typing import Any, cast

from gptlab.data import text as texts
from gptlab.data.vocabularies import tokenizer_of
from gptlab.distributed.division import check_division
from gptlab.errors import BadInputError
from gptlab.model.measure import size_of
from gptlab.size import Size
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.terminal.tables import borderless
from gptlab.terminal.text import format_bytes, plural, printable
from gptlab.training.footprint import Footprint, Layout, footprint
from gptlab.training.settings import Available, resolve_settings

DEVICES = ("cpu", "cuda")
CPU_PROCESSES = ("CPU process", "CPU processes")


@dataclass(frozen=True)
class RunPlan:
    """What a run needs."""

    experiment: Experiment
    layout: Layout
    size: Size
    needs: Footprint
    problem: str | None
    """Why it would not run as it is; the plan is that of the next batch size which fits."""

    @property
    def tokens_per_step(self) -> int:
        """Of all devices."""
        return self.experiment.train.batch_size * self.experiment.train.sequence_length

    def document(self) -> dict[str, Any]:
        """Return what `gptlab plan --json` prints, with sizes in bytes."""
        needs, train = self.needs, self.experiment.train
        return {
            "name": self.experiment.name,
            "device": self.layout.device,
            "precision": self.layout.precision,
            "gpus": self.layout.processes,
            "shard": self.layout.shard,
            "batch_size": train.batch_size,
            "problem": self.problem,
            "memory": {"phases": needs.phases, "peak": needs.peak, "total": needs.total},
            "host_copy": needs.host_copy,
            "checkpoint": {"model.safetensors": needs.weights_file, "optimizer.safetensors": needs.optimizer_file},
            "sent_per_step": needs.sent,
            "not_included": needs.not_included,
            "parameters": self.size.parameters,
            "training_flops_per_token": 3 * self.size.forward_flops_per_token,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens_per_step * train.steps,
        }


def make_plan(experiment: Experiment, gpus: int | None, device: str, *, shard: bool) -> RunPlan:
    """Return what an experiment needs.

    Args:
        experiment: The experiment.
        gpus: Number of devices; None for one.
        device: `cpu`, `cuda` or `auto`: `cuda` with `gpus` or if there is one here.
        shard: See `Layout`.

    Raises:
        BadInputError: The text, the tokenizer or a part cannot be used, or these devices cannot train the experiment.
    """
    if device not in {"auto", *DEVICES}:
        raise BadInputError(f"--device is '{device}'; choose auto, {' or '.join(DEVICES)}")
    count = gpus or 1
    if shard and count == 1:
        raise BadInputError("--shard divides weights among GPUs, but there is only one; add --gpus 2 or more")
    tokenizer_of(experiment)
    texts.locate(experiment.data.text)
    experiment, problem = _divisible(experiment, count, shard)
    if device == "auto":
        device = "cuda" if gpus or Available.here().cuda else "cpu"
    there = Available(cuda=True, mps=False, bfloat16=True)  # maybe on another machine
    precision = resolve_settings(device, experiment.train.precision, there).precision
    layout = Layout(cast(Any, device), precision, count, shard)
    return RunPlan(experiment, layout, size_of(experiment), footprint(experiment, layout), problem)


def _divisible(experiment: Experiment, count: int, shard: bool) -> tuple[Experiment, str | None]:
    """Return the experiment with a batch size that the devices divide, and the problem if it was another."""
    try:
        check_division(experiment, count, shard=shard)
    except BadInputError as error:
        size = experiment.train.batch_size
        if size % count == 0:
            raise
        fitting = experiment.with_changes({"train.batch_size": size + -size % count})
        check_division(fitting, count, shard=shard)  # a problem that no batch size solves
        return fitting, str(error)
    return experiment, None


def render(plan: RunPlan) -> None:
    """Print the plan."""
    console, needs, layout, train = Console(), plan.needs, plan.layout, plan.experiment.train
    if plan.problem:
        console.notice(f"{plan.problem}; this plan is for train.batch_size={train.batch_size}")
    console.print(f"{plan.experiment.name} · {printable(plan.experiment.why)}")
    each = plural(train.batch_size // layout.processes, "sequence")
    console.print(f"{_devices(layout)} · {each} of {plural(train.sequence_length, 'token')} on each\n")
    _memory_table(console, needs)
    console.print()
    files = [("model.safetensors", needs.weights_file), ("optimizer.safetensors", needs.optimizer_file)]
    known = [(name, size) for name, size in files if size is not None]
    detail = " + ".join(f"{name} {format_bytes(size)}" for name, size in known)
    console.fact("checkpoint", f"{format_bytes(sum(size for _, size in known))}: {detail}")
    if needs.host_copy:
        console.fact("host memory", f"{format_bytes(needs.host_copy)} in process 0, for the copy that it saves")
    if layout.processes > 1:
        console.fact("traffic", f"{format_bytes(needs.sent)} sent by each device per step")
    console.fact("parameters", f"{plan.size.parameters:,}")
    flops = 3 * plan.size.forward_flops_per_token
    console.fact("FLOPs", f"{flops:,} per token · {flops * plan.tokens_per_step / 1e12:,.3g} TFLOP per step")
    console.fact("tokens", f"{plan.tokens_per_step:,} per step · {plan.tokens_per_step * train.steps:,} in all")
    for what in needs.not_included:
        console.fact("not counted", printable(what))


def _devices(layout: Layout) -> str:
    devices = plural(layout.processes, "GPU") if layout.device == "cuda" else plural(layout.processes, *CPU_PROCESSES)
    if layout.processes == 1:
        return f"{devices} · {layout.precision}"
    how = "FSDP: each has a share" if layout.shard else "DDP: each has all"
    return f"{devices} · {layout.precision} · {how} of the weights and moments"


def _memory_table(console: Console, needs: Footprint) -> None:
    phases, peak = needs.phases, needs.peak
    headings = [*phases, "peak"]
    table = borderless("memory per device", *headings, right=tuple(headings))
    components = dict.fromkeys(name for phase in [*phases.values(), peak] for name in phase)
    for name in components:
        sizes = [phase.get(name) for phase in [*phases.values(), peak]]
        table.add_row(name, *(format_bytes(size) if size else "" for size in sizes))
    table.add_row("total", *(format_bytes(sum(phase.values())) for phase in [*phases.values(), peak]), style="bold")
    console.table(table)
