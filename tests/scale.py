"""The tables of docs/scale.md, computed by the functions of `gptlab plan`. Run as a script, it writes them there."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gptlab.model.measure import size_of
from gptlab.size import Size
from gptlab.spec import Experiment
from gptlab.training.footprint import Footprint, Layout, footprint
from gptlab.training.settings import BFLOAT16_PEAK_FLOPS

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"
GIB = 2**30

MEMORY = 80e9
"""Bytes of an H100."""
RESERVED = 4e9
"""Assumed for the CUDA context, NCCL and fragments."""
PEAK = BFLOAT16_PEAK_FLOPS["H100"]
EFFICIENCY = 0.45
"""Part of the peak while a GPU does not wait. Measured for 163 M: 61.8 ms a step on an H200."""
NVLINK = 375e9
"""Bytes per second in one direction between GPUs of a machine: 450 GB/s nominal, about 380 GB/s measured."""
INFINIBAND = 40e9
"""Bytes per second per GPU between machines: 400 Gbit/s is 50 GB/s; 80% of it are assumed."""
PCIE = 25e9
"""Bytes per second from a GPU to the host; assumed."""
DISK = 2e9
"""Bytes per second of the file system, written from one machine; assumed."""
FAILURES_PER_GPU_HOUR = 419 / (54 * 24 * 16_384)
"""Llama 3: 419 unexpected interruptions in 54 days of 16,384 GPUs."""
TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022."""
GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Model:
    """A model of the document."""

    name: str
    layers: int
    width: int
    heads: int
    length: int
    global_tokens: int
    """Tokens per step of GPT-3's model of about this size (Brown et al. 2020, table 2.1)."""
    tied: bool = False

    @property
    def size(self) -> Size:
        """Parameters and FLOPs."""
        return size_of(self.experiment(1))

    def experiment(self, sequences: int) -> Experiment:
        """An experiment with this global batch."""
        return Experiment(name="scale", why="What does it take?").with_changes(
            {
                "model.n_layer": self.layers,
                "model.n_embd": self.width,
                "model.n_head": self.heads,
                "model.context_length": self.length,
                "model.tied": self.tied,
                "train.sequence_length": self.length,
                "train.batch_size": sequences,
            }
        )


MODELS = (
    Model("163 M", 12, 768, 12, 1024, 2**19),
    Model("1.5 B", 48, 1600, 25, 1024, 2**20, tied=True),
    Model("7 B", 32, 4096, 32, 2048, 2**21),
)
LAYOUTS = ((1, False), (8, False), (8, True), (512, False), (512, True))


@dataclass(frozen=True)
class Case:
    """A model on a number of GPUs."""

    model: Model
    gpus: int
    shard: bool

    @property
    def how(self) -> str:
        """Its name."""
        return f"{self.gpus} {'FSDP' if self.shard else 'DDP'}" if self.gpus > 1 else "1"

    @cache  # noqa: B019 - a few cases, for as long as the process lives
    def needs(self, sequences: int) -> Footprint:
        """What it needs with this number of sequences on each GPU."""
        layout = Layout("cuda", "bfloat16", self.gpus, self.shard)
        return footprint(self.model.experiment(sequences * self.gpus), layout)

    @property
    def fitting(self) -> int:
        """The largest number of sequences on each GPU that fits into its memory; 0 if none does."""
        one, two = (self.needs(count).phases for count in (1, 2))
        fits = []
        for name in set(one) - {"validation"}:  # whose batch is always the same
            constant, each = (
                2 * sum(one[name].values()) - sum(two[name].values()),
                sum(two[name].values()) - sum(one[name].values()),
            )
            fits.append(int((MEMORY - RESERVED - constant) // each))
        return max(min(fits), 0)

    @property
    def sequences(self) -> int:
        """Sequences on each GPU: as many as the global batch has for it, if they fit."""
        return min(self.fitting, max(self.model.global_tokens // self.model.length // self.gpus, 1))

    @property
    def size(self) -> Size:
        """Of the model."""
        return self.model.size

    @property
    def compute_s(self) -> float:
        """Seconds of a step's computation."""
        tokens = self.sequences * self.model.length
        return tokens * 3 * self.size.forward_flops_per_token / (EFFICIENCY * PEAK)

    @property
    def traffic_s(self) -> float:
        """Seconds of a step's traffic."""
        return self.needs(1).sent / (NVLINK if self.gpus <= GPUS_PER_MACHINE else INFINIBAND)

    @property
    def step_s(self) -> float:
        """Seconds of a step whose traffic overlaps with computation where it can: DDP's with the backward pass."""
        overlapping = self.compute_s if self.shard else self.compute_s * 2 / 3
        return self.compute_s + max(self.traffic_s - overlapping, 0)

    @property
    def checkpoint_s(self) -> float:
        """Seconds that training waits for a checkpoint: for the copy to the host, or, sharded, until it is written."""
        needs = self.needs(1)
        size = needs.weights_file + (needs.optimizer_file or 0)
        return size / PCIE + (2 * size / DISK if self.shard else 0)


CASES = tuple(Case(model, gpus, shard) for model in MODELS for gpus, shard in LAYOUTS)


def models() -> str:
    """The shapes."""
    rows = []
    for model in MODELS:
        size = model.size
        state = 16 * size.parameters / GIB
        flops = 3 * size.forward_flops_per_token / 1e9
        shape = f"{model.layers} × {model.width:,}{', tied' if model.tied else ''}"
        rows.append(
            [model.name, shape, f"{model.length:,}", f"{size.parameters:,}", f"{flops:.2f}", f"{state:,.1f} GiB"]
        )
    return _table(["model", "layers × width", "tokens", "parameters", "GFLOP per token", "state, 16 bytes each"], rows)


def memory() -> str:
    """Memory per GPU."""
    rows = []
    for case in CASES:
        one = case.needs(1)
        phase = one.phases["loss"]
        kept = phase["activations"] + phase["logits and temporaries"]
        steady = max(
            sum(p.values()) - p.get("activations", 0) - p["logits and temporaries"] for p in one.phases.values()
        )
        rows.append(
            [case.model.name, case.how, _gib(steady), _gib(kept), str(case.fitting) if case.fitting else "none"]
        )
    heading = ["model", "GPUs", "state, gradients, gathered", "each sequence", "sequences that fit into 80 GB"]
    return _table(heading, rows)


def traffic() -> str:
    """Traffic, step time and utilization."""
    rows = []
    for case in CASES:
        name = [case.model.name, case.how]
        if not case.sequences:
            rows.append([*name, "does not fit", *[""] * 5])
            continue
        tokens = case.sequences * case.model.length * case.gpus
        traffic = (
            [f"{case.needs(1).sent / 1e9:.3g} GB", f"{1e3 * case.traffic_s:,.0f} ms"] if case.gpus > 1 else ["", ""]
        )
        best = EFFICIENCY * case.compute_s / case.step_s
        worst = EFFICIENCY * case.compute_s / (case.compute_s + case.traffic_s)
        rows.append(
            [
                *name,
                f"{tokens / 1e6:.3g} M",
                f"{1e3 * case.compute_s:,.0f} ms",
                *traffic,
                f"{best:.0%} ({worst:.0%})" if case.gpus > 1 else f"{best:.0%}",
                _days(case),
            ]
        )
    heading = ["model", "GPUs", "tokens per step", "computation", "sent by each GPU", "traffic", "MFU (no overlap)"]
    return _table([*heading, "20 tokens per parameter"], rows)


def checkpoints() -> str:
    """Checkpoints and failures."""
    rows = []
    for case in CASES:
        if not case.sequences or (case.gpus == GPUS_PER_MACHINE and not case.shard):
            continue
        needs = case.needs(1)
        size = needs.weights_file + (needs.optimizer_file or 0)
        between_s = 3600 / (FAILURES_PER_GPU_HOUR * case.gpus)
        interval_s = math.sqrt(2 * case.checkpoint_s * between_s)
        lost = case.checkpoint_s / interval_s + interval_s / (2 * between_s)
        rows.append(
            [
                *[case.model.name, case.how, _gib(size), f"{2 * size / DISK:,.0f} s", f"{case.checkpoint_s:,.2g} s"],
                *[f"{between_s / 3600:,.0f} h", f"{interval_s / 60:,.0f} min", f"{lost:.2%}"],
            ]
        )
    heading = ["model", "GPUs", "checkpoint", "written and read back", "training waits", "between failures"]
    return _table([*heading, "best interval", "time lost"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "memory": memory,
    "traffic": traffic,
    "checkpoints": checkpoints,
}


def render(text: str) -> str:
    """Return the document with its tables computed anew; each is between two comments that name it."""
    for name, compute in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        table = compute()
        text, count = re.subn(pattern, lambda found, new=table: f"{found[1]}{new}{found[2]}", text, flags=re.DOTALL)
        assert count == 1, name
    return text


def _days(case: Case) -> str:
    tokens = TOKENS_PER_PARAMETER * case.size.parameters
    hours = tokens / (case.sequences * case.model.length * case.gpus) * case.step_s / 3600
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def _gib(count: float) -> str:
    return f"{count / GIB:.3g} GiB"


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text()))
