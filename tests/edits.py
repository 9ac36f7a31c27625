"""Edits of the package: mutations, which change what it computes, and the same computation in other words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mutants

SMALL = {"data.tokenizer": "bytes", "model.vocab_size": 256, "model.n_layer": 2, "model.n_head": 2}
MODEL, LOSS, RECOMPUTE = "model/gpt.py", "model/loss.py", "model/recompute.py"
WINDOWS, PIECES, TOKENS, RANDOMNESS = "data/windows.py", "data/pieces.py", "data/tokens.py", "randomness.py"
EVALUATE, OPTIMIZER, STEP = "training/evaluate.py", "training/optimizer.py", "training/step.py"
SCHEDULE, ACTIVATIONS = "training/schedule.py", "model/activations.py"


@dataclass(frozen=True)
class Edit:
    """Replaces text in a file of the package."""

    file: str
    old: str
    new: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields of an experiment that executes the edited code."""

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()} → {self.new.strip()}".replace("\n", " ")[:100]

    def apply(self) -> dict[str, str]:
        """Return the edited source by file."""
        source = (mutants.PACKAGE / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.file} has {self.old!r} {source.count(self.old)} times"
        return {self.file: source.replace(self.old, self.new)}


GPT2 = {"data.tokenizer": "gpt2", "model.vocab_size": 50257}

DATA_MUTATIONS = [
    Edit(WINDOWS, "FEISTEL_ROUNDS = 6", "FEISTEL_ROUNDS = 5"),
    Edit(
        WINDOWS,
        "return (len(self.tokens) - self.sequence_length) //",
        "return (len(self.tokens) - 2 * self.sequence_length) //",
    ),
    Edit(WINDOWS, "block, row = divmod(step, STEPS_PER_BLOCK)", "block, row = divmod(step + 1, STEPS_PER_BLOCK)"),
    Edit(WINDOWS, "numbers = np.arange(first, first +", "numbers = 1 + np.arange(first, first +"),
    Edit(WINDOWS, "_epoch_keys(seed, epoch)", "_epoch_keys(seed + 1, epoch)"),
    Edit(WINDOWS, "_epoch_keys(seed, epoch)", "_epoch_keys(seed, 0)"),
    Edit(WINDOWS, "+ phase % sequence_length", "+ 0 * phase"),
    Edit(WINDOWS, "order.astype(np.int64) * sequence_length", "order.astype(np.int64)"),
    Edit(WINDOWS, "order = permute(indices[of_epoch].astype(np.uint64), per_epoch, keys)", "order = indices[of_epoch]"),
    Edit(WINDOWS, "available // count * sequence_length", "available // count * sequence_length + 1"),
    Edit(WINDOWS, "count = min(windows or available, available)", "count = min(windows or available, available, 2)"),
    Edit(WINDOWS, "0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5BB"),
    Edit(WINDOWS, "0x94D049BB133111EB", "0x94D049BB133111ED"),
    Edit(WINDOWS, "values ^ (values >> np.uint64(31))", "values ^ (values >> np.uint64(32))"),
    Edit(WINDOWS, "max((size - 1).bit_length() + 1, 2) // 2", "max((size - 1).bit_length() + 3, 2) // 2"),
    Edit(WINDOWS, "Purpose.WINDOW_ORDER, epoch", "Purpose.STEP, epoch"),
    Edit(PIECES, "target - 1 + found.end()", "target + found.end()"),
    Edit(PIECES, "[!-~](?=[ \\t\\r\\n])", "[!-~](?=[\\n])"),
    Edit(PIECES, "return target - 1 + found.end()", "return target"),
    Edit(TOKENS, "round(text.size * (1 - val_fraction))", "round(text.size * (1 - val_fraction / 2))"),
    Edit(RANDOMNESS, "WINDOW_ORDER = 1", "WINDOW_ORDER = 5"),
    Edit(RANDOMNESS, "WEIGHTS = 3", "WEIGHTS = 6"),
    Edit(RANDOMNESS, "STEP = 2", "STEP = 7", {"model.dropout": 0.1}),
    Edit(RANDOMNESS, "key=np.array([seed, purpose]", "key=np.array([seed + 1, purpose]"),
    Edit(RANDOMNESS, "hashlib.sha256(name.encode())", "hashlib.sha256(name[1:].encode())"),
]

LOSS_MUTATIONS = [
    Edit(LOSS, "loss.new_full((len(loss), 1), -1.0)", "loss.new_full((len(loss), 1), -0.999)"),
    Edit(LOSS, "first=not losses)", "first=True)", {}),
    Edit(LOSS, "chunk / N, first", "chunk / (N + 1), first"),
    Edit(LOSS, "@ weight).div_(N)", "@ weight).div_(N + 1)"),
    Edit(LOSS, "return torch.cat(losses).mean()", "return torch.cat(losses).sum()"),
    Edit(LOSS, "return torch.cat(losses).mean()", "return torch.cat(losses).median()"),
    Edit(LOSS, "grad_logits[:, : len(weight)] @ weight", "grad_logits[:, : len(weight)] @ weight.abs()"),
    Edit(LOSS, "logits[:, V:] = -torch.inf", "logits[:, V:] = 0.0", GPT2),
    Edit(
        LOSS,
        "losses = -probabilities.gather(1, targets[:, None]).log()",
        "losses = 1 - probabilities.gather(1, targets[:, None])",
    ),
    Edit(
        LOSS,
        "probabilities = torch.softmax(logits, dim=1, out=logits)",
        "probabilities = torch.softmax(logits * 1.001, dim=1)",
    ),
    Edit(LOSS, "return grad_x, grad_weight, None", "return grad_x * 0.99, grad_weight, None"),
    Edit(LOSS, "return grad_x, grad_weight, None", "return grad_x, grad_weight * 0.99, None"),
    Edit(RECOMPUTE, "return inner(x).as_strided(*packed)", "return (inner(x) * 0.999).as_strided(*packed)"),
    Edit(RECOMPUTE, "        return outer(y)", "        return outer(y * 0.999)"),
    Edit(
        EVALUATE,
        "self.loss * self.tokens / math.log(2) / self.bytes",
        "self.loss * self.tokens / self.bytes",
        {"data.val_windows": 2},
    ),
    Edit(EVALUATE, "model.eval()", "model.train()", {"model.dropout": 0.1}),
    Edit(EVALUATE, "token_bytes[windows[:, 1:]]", "token_bytes[windows]"),
    Edit(EVALUATE, "std(ddof=1)", "std(ddof=0)"),
    Edit(EVALUATE, 'reduction="none")  # (B, T)', 'reduction="none")[:, 1:]'),
]

MODEL_MUTATIONS = [
    Edit(MODEL, "INIT_STD = 0.02", "INIT_STD = 0.0201"),
    Edit(MODEL, "is_causal=T > 1", "is_causal=False"),
    Edit(MODEL, "dropout_p=self.dropout if", "dropout_p=self.dropout / 2 if", {"model.dropout": 0.1}),
    Edit(MODEL, "query, key = rotate(query), rotate(key)", "query, key = rotate(key), rotate(query)"),
    Edit(MODEL, "query, key, value = heads.permute(2, 0, 3, 1, 4)", "key, value, query = heads.permute(2, 0, 3, 1, 4)"),
    Edit(MODEL, "query, key, value, dropout_p", "query * 1.01, key, value, dropout_p"),
    Edit(MODEL, "query, key, value, dropout_p", "query, key, value * 1.01, dropout_p"),
    Edit(MODEL, "x = self.projection(y.transpose(1, 2).reshape(B, T, C))", "x = self.projection(y.reshape(B, T, C))"),
    Edit(
        MODEL,
        "x = self.projection(y.transpose(1, 2).reshape(B, T, C))",
        "x = self.projection(y.transpose(1, 2).reshape(B, T, C)) * 0.999",
    ),
    Edit(
        MODEL,
        "self.query_key_value = Linear(spec.n_embd, 3 * spec.n_embd, bias=spec.bias)",
        "self.query_key_value = Linear(spec.n_embd, 3 * spec.n_embd, bias=False)",
    ),
    Edit(
        MODEL,
        "self.projection = Linear(spec.n_embd, spec.n_embd, bias=spec.bias)",
        "self.projection = Linear(spec.n_embd, spec.n_embd, bias=False)",
    ),
    Edit(
        MODEL,
        "self.expansion = Linear(spec.n_embd, 4 * spec.n_embd, bias=spec.bias)",
        "self.expansion = Linear(spec.n_embd, 4 * spec.n_embd, bias=False)",
    ),
    Edit(MODEL, "        x = self.expansion(x)  # (B, T, 4C)\n", "        x = self.expansion(2 * x)\n"),
    Edit(MODEL, "compose_with_recompute(self.projection, self.activation, x)", "self.projection(x)"),
    Edit(
        MODEL, "compose_with_recompute(self.projection, self.activation, x)", "self.projection(self.activation(x) ** 2)"
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.attention(self.attention_norm(x), rotate, cache))",
        "x = x + self.dropout(self.attention(x + 0 * self.attention_norm(x), rotate, cache))",
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.attention(self.attention_norm(x), rotate, cache))",
        "x = self.attention_norm(x + self.dropout(self.attention(x, rotate, cache)))",
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.attention(self.attention_norm(x), rotate, cache))",
        "x = x - self.dropout(self.attention(self.attention_norm(x), rotate, cache))",
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.attention(self.attention_norm(x), rotate, cache))",
        "x = x + self.attention(self.attention_norm(x), rotate, cache)",
        {"model.dropout": 0.1},
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
        "x = x + 0.999 * self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
        "x = self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
        "x = x + self.feed_forward(self.feed_forward_norm(x))",
        {"model.dropout": 0.1},
    ),
    Edit(
        MODEL,
        "return nn.LayerNorm(spec.n_embd, bias=spec.bias)",
        "return nn.LayerNorm(spec.n_embd, eps=1e-6, bias=spec.bias)",
    ),
    Edit(MODEL, "return nn.LayerNorm(spec.n_embd, bias=spec.bias)", "return nn.RMSNorm(spec.n_embd)"),
    Edit(MODEL, "return nn.LayerNorm(spec.n_embd, bias=spec.bias)", "return nn.LayerNorm(spec.n_embd, bias=False)"),
    Edit(MODEL, "for layer in range(spec.n_layer))", "for layer in range(spec.n_layer - 1))"),
    Edit(
        MODEL,
        "self.position_embedding(positions) + self.token_embedding(tokens)",
        "0 * self.position_embedding(positions) + self.token_embedding(tokens)",
    ),
    Edit(
        MODEL,
        "self.position_embedding(positions) + self.token_embedding(tokens)",
        "0.999 * self.position_embedding(positions) + self.token_embedding(tokens)",
    ),
    Edit(MODEL, "torch.arange(start, start + T", "1 + torch.arange(start, start + T"),
    Edit(MODEL, "x = self.final_norm(x)", "x = x + 0 * self.final_norm(x)"),
    Edit(MODEL, "None if spec.tied else Linear", "None if not spec.tied else Linear"),
    Edit(MODEL, "None if spec.tied else Linear(", "Linear(", {"model.tied": True}),
    Edit(MODEL, "mean_cross_entropy(x.flatten(0, 1), output", "mean_cross_entropy(x.flatten(0, 1), 1.001 * output"),
    Edit(MODEL, "        for block in self.blocks:\n", "        for block in reversed(self.blocks):\n"),
    Edit(MODEL, "math.sqrt(2 * spec.n_layer)", "math.sqrt(spec.n_layer)"),
    Edit(
        MODEL,
        'if name.endswith("projection.weight") else INIT_STD',
        'if name.endswith("expansion.weight") else INIT_STD',
    ),
    Edit(MODEL, '1.0 if name.endswith("norm.weight") else 0.0', '1.0 if name.endswith("norm.weight") else 0.001'),
    Edit(MODEL, '1.0 if name.endswith("norm.weight") else 0.0', '0.9 if name.endswith("norm.weight") else 0.0'),
    Edit(MODEL, '.standard_normal(tuple(parameter.shape), "float32")', ".uniform(-1.7, 1.7, tuple(parameter.shape))"),
    Edit(MODEL, "normal_generator(seed, Purpose.WEIGHTS, name)", "normal_generator(seed + 1, Purpose.WEIGHTS, name)"),
]

TRAINING_MUTATIONS = [
    Edit(OPTIMIZER, 'if p.ndim >= 2], "weight_decay": spec.weight_decay', 'if p.ndim >= 2], "weight_decay": 0.0'),
    Edit(OPTIMIZER, 'if p.ndim < 2], "weight_decay": 0.0', 'if p.ndim < 2], "weight_decay": spec.weight_decay'),
    Edit(OPTIMIZER, "betas=spec.betas", "betas=(spec.betas[0], 0.951)"),
    Edit(OPTIMIZER, "betas=spec.betas", "betas=(0.91, spec.betas[1])"),
    Edit(OPTIMIZER, "eps=spec.eps", "eps=10 * spec.eps"),
    Edit(OPTIMIZER, "lr=spec.learning_rate, betas", "lr=1.01 * spec.learning_rate, betas"),
    Edit(OPTIMIZER, "eps=spec.eps, fused", "eps=spec.eps, amsgrad=True, fused"),
    Edit(
        OPTIMIZER,
        "return AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=fused)",
        "return torch.optim.Adam(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps)",
    ),
    Edit(
        OPTIMIZER,
        "return AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=fused)",
        "return torch.optim.SGD(groups, lr=spec.learning_rate)",
    ),
    Edit(OPTIMIZER, "vector_norm(torch.cat(rows))", "vector_norm(torch.cat(rows), ord=1)"),
    Edit(OPTIMIZER, "vector_norm(p.grad, dim=-1)", "vector_norm(p.grad, ord=1, dim=-1)"),
    Edit(
        OPTIMIZER,
        "for p in model.parameters() if p.grad is not None]",
        "for p in model.parameters() if p.grad is not None and p.ndim > 1]",
    ),
    Edit(OPTIMIZER, "(norm / max_norm).clamp(min=1)", "(norm / max_norm).clamp(min=0.5)"),
    Edit(OPTIMIZER, "(norm / max_norm).clamp(min=1)", "norm / max_norm"),
    Edit(OPTIMIZER, "(norm / max_norm).clamp(min=1)", "(norm / max_norm).clamp(min=1).sqrt()"),
    Edit(OPTIMIZER, "(norm / max_norm).clamp(min=1)", "torch.ones_like(norm)"),
    Edit(OPTIMIZER, "    optimizer.zero_grad(set_to_none=True)\n", ""),
    Edit(STEP, "self.model(batch[:, :-1], batch[:, 1:])", "self.model(batch[:, :-1], batch[:, :-1])"),
    Edit(STEP, "self.model(batch[:, :-1], batch[:, 1:])", "self.model(batch[:, :-2], batch[:, 1:-1])"),
    Edit(STEP, "        loss.backward()", "        (2 * loss).backward()"),
    Edit(
        STEP,
        "        loss.backward()",
        "        (loss + 1e-3 * sum(p.square().sum() for p in self.model.parameters())).backward()",
    ),
    Edit(
        STEP,
        "random_bits(self.seed, Purpose.STEP, step)",
        "random_bits(self.seed, Purpose.STEP, 0)",
        {"model.dropout": 0.1},
    ),
    Edit(
        STEP,
        "self._learning_rate(step)",
        "self._learning_rate(step + 1)",
        {"train.warmup_steps": 2},
    ),
    Edit(SCHEDULE, "(step + 1) / spec.warmup_steps", "step / spec.warmup_steps", {"train.warmup_steps": 2}),
    Edit(
        SCHEDULE,
        "if step < spec.warmup_steps else 1.0",
        "if step < spec.warmup_steps else 0.99",
        {"train.warmup_steps": 10},
    ),
    Edit(
        SCHEDULE,
        "_remaining(step, spec.warmup_steps, _horizon(spec))\n\n\ndef cosine",
        "_remaining(step, 0, _horizon(spec))\n\n\ndef cosine",
        {"train.schedule": "linear", "train.horizon": 100, "train.warmup_steps": 10},
    ),
    Edit(
        SCHEDULE,
        "0.5 * (1 - math.cos(math.pi * remaining))",
        "0.5 * (1 - math.cos(math.pi * remaining)) ** 2",
        {"train.schedule": "cosine", "train.horizon": 100},
    ),
    Edit(
        SCHEDULE,
        "spec.horizon - spec.decay_length, spec.horizon",
        "spec.horizon - 2 * spec.decay_length, spec.horizon",
        {"train.schedule": "wsd", "train.horizon": 100},
    ),
    Edit(
        SCHEDULE,
        "min(max((end - step) / (end - start), 0.0), 1.0)",
        "min(max((end - step) / (end - start), 0.0), 1.0) ** 0.5",
        {"train.schedule": "wsd", "train.horizon": 100},
    ),
    Edit(ACTIVATIONS, 'approximate="tanh"', 'approximate="none"'),
    Edit(ACTIVATIONS, "F.relu(x).square()", "F.relu(x) ** 2.001", {"model.activation": "relu2"}),
    Edit(ACTIVATIONS, "return F.silu(x)", "return x * (1.001 * x).sigmoid()", {"model.activation": "silu"}),
    Edit(
        ACTIVATIONS, "return F.gelu(x)\n", 'return F.gelu(x, approximate="tanh")\n', {"model.activation": "gelu-exact"}
    ),
    Edit(ACTIVATIONS, "return F.relu(x)\n", "return F.leaky_relu(x, 1e-4)\n", {"model.activation": "relu"}),
]

MUTATIONS = [*DATA_MUTATIONS, *LOSS_MUTATIONS, *MODEL_MUTATIONS, *TRAINING_MUTATIONS]


EXTRACTIONS = [
    Edit(
        MODEL,
        "        x = self.expansion(x)  # (B, T, 4C)\n",
        "        x = self._expand(x)\n        return self._contract(x)\n\n    def _expand(self, x):\n"
        "        return self.expansion(x)\n\n    def _contract(self, x):\n",
    ),
    Edit(
        MODEL,
        "x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
        "x = torch.add(self.dropout(self.feed_forward(self.feed_forward_norm(x))), x)",
    ),
    Edit(MODEL, "std = INIT_STD / math.sqrt(2 * spec.n_layer)", "std = INIT_STD * (2 * spec.n_layer) ** -0.5"),
    Edit(MODEL, "y.transpose(1, 2).reshape(B, T, C)", "y.permute(0, 2, 1, 3).flatten(2)"),
    Edit(
        OPTIMIZER, "rows = [torch.linalg.vector_norm(p.grad, dim=-1).flatten()", "rows = [p.grad.norm(dim=-1).flatten()"
    ),
    Edit(LOSS, "return torch.cat(losses).mean()", "total = torch.cat(losses).sum()\n        return total / N"),
    Edit(SCHEDULE, "(step + 1) / spec.warmup_steps", "(1 + step) * (1 / spec.warmup_steps)", {"train.warmup_steps": 2}),
]
