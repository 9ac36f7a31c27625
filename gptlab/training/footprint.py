"""What a training step needs on each device, in closed form: memory, traffic between devices, and checkpoints.

`docs/scale.md` derives the formulas. C = n_embd is the width, V the vocabulary size, N the number of tokens that a
device computes at once, and "item" the size of a number in matrix products.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from gptlab.checkpoints.manifest import ADAMW_STATE
from gptlab.model import gpt
from gptlab.model.loss import ALIGNMENT, CHUNK, CHUNK_ON_CPU, MULTIPLE
from gptlab.spec import Experiment, ModelSpec, Precision
from gptlab.training.evaluate import BATCH_TOKENS

FLOAT32, BFLOAT16 = 4, 2
MOMENTS = 2
"""Tensors of AdamW's state that are as large as a parameter."""
GATHERED_BLOCKS = 2
"""Blocks whose weights FSDP has gathered at once: the one that is computed, and the next one."""
BACKWARD_WIDTHS = 8
"""Widths C per token of the largest gradients that exist at once: of the MLP's activation's output and input."""
FRAGMENTED = 0.25
"""Fragments of the heap on a CPU, as a part of what each step allocates. Measured: 0 to 0.4 in ten shapes."""
GRADIENTS, ACTIVATIONS, TEMPORARY = "gradients", "activations", "logits and temporaries"
FRAGMENTS = "fragments"
OUTPUT_KEPT = frozenset({"relu", "relu2"})
"""Activations whose own backward pass needs their output, so that `compose_with_recompute` cannot drop it."""


@dataclass(frozen=True)
class Layout:
    """Where and in how many processes a run trains."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    processes: int = 1
    shard: bool = False
    """Whether weights, gradients and moments are divided among the processes (FSDP), or each has all (DDP)."""

    @property
    def item(self) -> int:
        """Bytes of a number in matrix products."""
        return BFLOAT16 if self.precision == "bfloat16" else FLOAT32

    @property
    def uses_kernel(self) -> bool:
        """Whether the loss is computed by the kernel of `gptlab.model.fused_loss`, on all logits at once."""
        return self.device == "cuda" and self.precision == "bfloat16"


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights in float32, by what training does with them at once."""

    weights: int
    blocks: int
    """All decoder blocks."""
    output: int
    """The output layer: V × C."""
    embeddings: int
    """Of tokens and positions."""

    @property
    def root(self) -> int:
        """What is in no block."""
        return self.weights - self.blocks


@dataclass(frozen=True)
class Footprint:
    """What a run needs."""

    phases: Mapping[str, Mapping[str, int]]
    """Bytes on each device, by part of a step and component. Components that are not there in a phase are left out."""
    weights_file: int
    """Bytes of a checkpoint's `model.safetensors`."""
    optimizer_file: int | None
    """Bytes of a checkpoint's `optimizer.safetensors`; None for an optimizer that is a part."""
    host_copy: int
    """Bytes of host memory for the copy that process 0 saves; 0 if it needs none."""
    sent: int
    """Bytes that each device sends per step."""
    not_included: list[str] = field(default_factory=list)
    """What is not known before it runs."""

    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def peak(self) -> dict[str, int]:
        """Bytes on each device by component, when the device needs most.

        On CUDA that is the phase which needs most. On a CPU, each component counts in the phase in which it is largest,
        and fragments come on top: `keep_freed_memory` makes glibc keep what is freed, and tensors of other sizes often
        do not fit into it. For `baseline` with 2 × 1024 tokens, the tensors of a phase take 2.9 GiB at most, and the
        process 3.5 GiB.
        """
        if self.device == "cuda":
            _, largest = max((sum(phase.values()), name) for name, phase in self.phases.items())
            return dict(self.phases[largest])
        components = dict.fromkeys(name for phase in self.phases.values() for name in phase)
        peak = {name: max(phase.get(name, 0) for phase in self.phases.values()) for name in components}
        return peak | {FRAGMENTS: int(FRAGMENTED * (peak[GRADIENTS] + peak[ACTIVATIONS] + peak[TEMPORARY]))}

    @property
    def total(self) -> int:
        """Bytes on each device, the sum of `peak`."""
        return sum(self.peak.values())


def footprint(experiment: Experiment, layout: Layout) -> Footprint:
    """Return what a run needs; AdamW and today's kernels are assumed, compiled on CUDA.

    Raises:
        BadInputError: A part of the model is gone, or cannot be built.
    """
    model, train, meta = experiment.model, experiment.train, gpt.empty(experiment.model, "meta")
    sizes = sizes_of(meta, model)
    tokens = train.batch_size // layout.processes * train.sequence_length
    parameters = sizes.weights // FLOAT32
    own = train.has_own_optimizer
    state = 0 if own else MOMENTS * sizes.weights
    names = list(meta.state_dict())
    return Footprint(
        phases={
            "loss": _state(sizes, layout, state) | _loss(model, sizes, layout, tokens, train.sequence_length),
            "start of backward": _state(sizes, layout, state)
            | _start_of_backward(model, sizes, layout, tokens, train.sequence_length),
            "end of backward": _state(sizes, layout, state) | _end_of_backward(model, sizes, layout, tokens),
            "validation": _state(sizes, layout, state) | _validation(experiment, sizes, layout),
        },
        weights_file=FLOAT32 * parameters + _header_bytes(names),
        optimizer_file=None
        if own
        else (MOMENTS * parameters + len(names)) * FLOAT32
        + _header_bytes([f"{name}/{key}" for name in names for key in ADAMW_STATE]),
        host_copy=_host_copy(meta, sizes.weights + state, layout),
        sent=sent_per_step(sizes, layout),
        not_included=_not_included(experiment, layout),
        device=layout.device,
    )


def sizes_of(module: nn.Module, model: ModelSpec) -> Sizes:
    """Return the sizes of a model, which may be on the meta device."""

    def size(prefix: str) -> int:
        tensors: dict[str, Tensor] = module.state_dict()
        return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix)) * FLOAT32

    return Sizes(
        weights=size(""),
        blocks=size("blocks."),
        output=FLOAT32 * model.vocab_size * model.n_embd,
        embeddings=size("token_embedding.") + size("position_embedding."),
    )


def block_activations(model: ModelSpec, layout: Layout, sequence_length: int) -> int:
    """Return the bytes per token that a decoder block keeps for its backward pass.

    The residual stream, which both norms keep, is float32. The matrix products keep their inputs: the output of each
    norm, attention's queries, keys, values and output, and the input of the activation. On a CPU the activation's
    output is computed again.
    """
    C, H = model.n_embd, model.n_head
    recomputes = layout.device == "cpu" and model.activation not in OUTPUT_KEPT
    norms = 2 * (FLOAT32 * C + 2 * FLOAT32)  # input, mean and standard deviation
    products = layout.item * (2 + 4 + (4 if recomputes else 8)) * C
    if not model.dropout:
        return norms + products + FLOAT32 * H  # attention's log-sum-exp
    if layout.device == "cpu":  # masks in float32, and attention keeps weights, masks and their product
        return norms + products + 2 * FLOAT32 * C + 3 * layout.item * H * sequence_length
    return norms + products + FLOAT32 * H + 2 * C  # masks of one byte; attention's is drawn again


def sent_per_step(sizes: Sizes, layout: Layout) -> int:
    """Return the bytes that each device sends per step, with ring algorithms in float32.

    A ring's all-gather or reduce-scatter of S bytes sends (n - 1) / n · S, and an all-reduce is one of each. DDP
    reduces all gradients. FSDP gathers the blocks for the forward and the backward pass, and what is in no block once;
    it scatters all gradients.
    """
    n = layout.processes
    gathered = 2 * sizes.blocks + sizes.root if layout.shard else sizes.weights
    return (n - 1) * (gathered + sizes.weights) // n


def _state(sizes: Sizes, layout: Layout, state: int) -> dict[str, int]:
    share = layout.processes if layout.shard else 1
    found = {"weights": -(-sizes.weights // share), "moments": -(-state // share)}
    if layout.processes > 1 and not layout.shard:
        found["DDP's buckets"] = sizes.weights  # all gradients, from step to step
    return found


def _host_copy(module: nn.Module, state: int, layout: Layout) -> int:
    """Process 0 copies a GPU's state before it saves it, but gathers a sharded one tensor by tensor."""
    if layout.shard:
        return FLOAT32 * max(parameter.numel() for parameter in module.parameters())
    return state if layout.device == "cuda" else 0


def _loss(model: ModelSpec, sizes: Sizes, layout: Layout, tokens: int, length: int) -> dict[str, int]:
    """When the logits exist, and with them all activations. The kernel has no gradient yet; see `_logits`."""
    return {
        GRADIENTS: 0 if layout.uses_kernel else sizes.output,
        ACTIVATIONS: _activations(model, layout, tokens, length, model.n_layer),
        TEMPORARY: _logits(model, layout, tokens),
        **_copies(model, sizes, layout),
        **_gathered(model, sizes, layout, 1),
    }


def _start_of_backward(model: ModelSpec, sizes: Sizes, layout: Layout, tokens: int, length: int) -> dict[str, int]:
    """The backward pass of the first block that it comes to, which is the last one of the model."""
    return {
        GRADIENTS: sizes.output,
        ACTIVATIONS: _activations(model, layout, tokens, length, model.n_layer),
        TEMPORARY: _working(model, layout, tokens),
        **_copies(model, sizes, layout),
        **_gathered(model, sizes, layout, GATHERED_BLOCKS),
    }


def _end_of_backward(model: ModelSpec, sizes: Sizes, layout: Layout, tokens: int) -> dict[str, int]:
    """The gradients of the embeddings, the last ones. Tied ones have a second gradient, which is added to the first."""
    gradients = sizes.weights
    if layout.shard:
        blocks = GATHERED_BLOCKS * sizes.blocks // model.n_layer
        gradients = -(-gradients // layout.processes) + 2 * sizes.root + blocks  # before and after they are packed
    elif layout.processes > 1:
        gradients = sizes.embeddings  # all others are in the buckets
    return {
        GRADIENTS: gradients,
        ACTIVATIONS: FLOAT32 * model.n_embd * tokens,
        TEMPORARY: sizes.output if model.tied else 0,
        **_gathered(model, sizes, layout, GATHERED_BLOCKS),
    }


def _validation(experiment: Experiment, sizes: Sizes, layout: Layout) -> dict[str, int]:
    """A forward pass of one batch of windows, uncompiled."""
    model, length = experiment.model, experiment.train.sequence_length
    windows = -(-experiment.data.val_windows // layout.processes)
    tokens = min(max(BATCH_TOKENS // length, 1), windows) * length
    stream, item = FLOAT32 * model.n_embd, layout.item * model.n_embd
    kept = 0 if experiment.model.parts else (3 * stream + 8 * item) * tokens  # in the MLP: its input and two matrices
    return {
        ACTIVATIONS: kept,
        TEMPORARY: min(tokens, _chunk(layout)) * _row(model) * (layout.item if layout.uses_kernel else FLOAT32),
        **_copies(model, sizes, layout, validation=True),
        **_gathered(model, sizes, layout, GATHERED_BLOCKS),
    }


def _activations(model: ModelSpec, layout: Layout, tokens: int, length: int, blocks: int) -> int:
    """What this many blocks keep, and the input and output of the last norm."""
    if model.parts:
        return 0
    per_token = blocks * block_activations(model, layout, length)
    mask = model.n_embd * (FLOAT32 if layout.device == "cpu" else 1) if model.dropout else 0
    return (per_token + 2 * FLOAT32 * model.n_embd + mask) * tokens


def _working(model: ModelSpec, layout: Layout, tokens: int) -> int:
    if model.parts:
        return 0
    return (layout.item * BACKWARD_WIDTHS + FLOAT32) * model.n_embd * tokens


def _logits(model: ModelSpec, layout: Layout, tokens: int) -> int:
    """Logits, which become their own gradient, and the gradient of the output layer's input."""
    if layout.uses_kernel:  # also the weight's gradient, before it is converted to float32
        return BFLOAT16 * (tokens * (_row(model) + 2 * model.n_embd) + _row(model) * model.n_embd)
    logits = min(tokens, _chunk(layout)) * _row(model) * (FLOAT32 + (layout.item if layout.item < FLOAT32 else 0))
    return logits + FLOAT32 * model.n_embd * tokens


def _chunk(layout: Layout) -> int:
    return CHUNK if layout.device == "cuda" else CHUNK_ON_CPU


def _row(model: ModelSpec) -> int:
    """Elements of a row of logits, with padding."""
    return -(-model.vocab_size // max(ALIGNMENT, MULTIPLE)) * max(ALIGNMENT, MULTIPLE)


def _copies(model: ModelSpec, sizes: Sizes, layout: Layout, *, validation: bool = False) -> dict[str, int]:
    """Weights in bfloat16. A compiled block converts them where it uses them, and keeps none."""
    if layout.item == FLOAT32:
        return {}
    blocks = sizes.blocks if validation or layout.device == "cpu" else 0
    return {"weights in bfloat16": (blocks + _row(model) * model.n_embd * FLOAT32) * BFLOAT16 // FLOAT32}


def _gathered(model: ModelSpec, sizes: Sizes, layout: Layout, blocks: int) -> dict[str, int]:
    return {"gathered weights": sizes.root + blocks * sizes.blocks // model.n_layer} if layout.shard else {}


def _header_bytes(names: list[str]) -> int:
    """Length of the header of a safetensors file with these tensors, which says what and where each is."""
    entry = {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [10**8, 10**8]}
    return len(json.dumps(dict.fromkeys(names, entry), separators=(",", ":")))


def _not_included(experiment: Experiment, layout: Layout) -> list[str]:
    parts = [f"model.{field} {name}" for field, name in experiment.model.parts.items()]
    found = [f"activations of the blocks, which {' and '.join(parts)} changes"] if parts else []
    if experiment.train.has_own_optimizer:
        found.append(f"the state of train.optimizer {experiment.train.optimizer}, in memory and in checkpoints")
    if layout.device == "cuda":
        found.append("the CUDA context and libraries, about 1 GiB, and what the allocator loses to fragments")
    else:
        found.append("Python, PyTorch and the text, about 0.4 GiB per process")
    return found
