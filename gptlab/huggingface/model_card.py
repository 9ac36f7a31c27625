"""The model card, `README.md`: what a run was, and how to check that a reader of the files computes the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gptlab.data.vocabularies import Tokenizer
from gptlab.model.gpt import GPT
from gptlab.terminal.text import one_line
from gptlab.tracking.records import RunRecord

PROMPT = "The quick brown fox jumps over the lazy dog."
"""Its logits are in the card."""
REFERENCE_LOGITS = 8
"""Number of logits in the card: those of the first tokens, for the token after the prompt."""

UNTIED = """\
> [!WARNING]
> **The output layer is untied** (`"tie_word_embeddings": false`): `lm_head.weight` differs from the token embedding.
> Readers that take every GPT-2 for tied skip `lm_head.weight`, and then compute other logits without an error:
> [SGLang's GPT-2](https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/models/gpt2.py), and vLLM's
> ([a maintainer's word](https://github.com/vllm-project/vllm/pull/12467)) at least before
> [its loader was replaced](https://github.com/vllm-project/vllm/pull/18625). Run the check below in the reader that you
> use.
"""


@dataclass(frozen=True)
class Reference:
    """Tokens, and the first logits for the token that follows them."""

    tokens: list[int]
    logits: list[float]


def reference(model: GPT, tokenizer: Tokenizer) -> Reference:
    """Compute the reference logits of `PROMPT`, or of as many of its tokens as the model's context holds."""
    tokens = tokenizer.encode(PROMPT)[: model.spec.context_length]
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]))[0, -1, :REFERENCE_LOGITS]
    return Reference(tokens, logits.tolist())


def model_card(
    record: RunRecord,
    directory: str,
    step: int,
    losses: Mapping[str, float],
    versions: Mapping[str, str],
    found: Reference,
) -> str:
    """Return the content of the card.

    Args:
        record: The run's record.
        directory: The name of the directory.
        step: Optimizer steps of the exported checkpoint.
        losses: The row of the metrics at that step; empty if there is none.
        versions: Versions of the packages that trained the run.
        found: The reference logits.
    """
    spec = record.spec
    facts = {
        "experiment": spec.name,
        "run": record.run,
        "seed": record.seed,
        "text": f"{record.text.source} ({record.text.bytes:,} bytes)",
        "text's sha256": record.text.sha256,
        "tokenizer": spec.data.tokenizer,
        "tokenizer's sha256": record.tokenizer_sha256,
        "parameters": f"{record.model_size.parameters:,}",
        "steps": f"{step:,}",
        "tokens seen": f"{record.tokens_at(step):,}",
        "sequence length": spec.train.sequence_length,
        "precision": record.precision,
        "validation loss": _loss(losses),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",
    }
    table = "\n".join(f"| {name} | {_code(value)} |" for name, value in facts.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gptlab\n---\n\n"
        f"# {record.run}\n\nQuestion of the experiment: {_code(spec.why)}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"{'' if spec.model.tied else UNTIED + chr(10)}"
        "## Check\n\n"
        f"The first {len(found.logits)} logits after {_code(PROMPT)}, in float32. Run this in the directory's parent, "
        "or with another path; the difference should be below 0.001.\n\n"
        f"```python\n{check_script(directory, found)}```\n\n"
        "## Use\n\n"
        "The model was trained on windows of text without separators: it has no token that ends a text, and "
        "`<|endoftext|>` is ordinary text. "
        f"It saw positions up to {spec.train.sequence_length} of {spec.model.context_length}; later ones are "
        "untrained.\n"
    )


def check_script(name: str, found: Reference) -> str:
    """Return a script that compares the logits of `transformers` with the reference."""
    logits = ", ".join(f"{logit:.6f}" for logit in found.logits)
    return (
        "import torch\n"
        "from transformers import GPT2LMHeadModel\n\n"
        f"model = GPT2LMHeadModel.from_pretrained({json.dumps(f'./{name}')}).eval()\n"
        f"tokens = torch.tensor([{json.dumps(found.tokens)}])\n"
        f"expected = torch.tensor([{logits}])\n"
        f"logits = model(tokens).logits[0, -1, :{len(found.logits)}]\n"
        "print((logits - expected).abs().max().item())\n"
    )


def _loss(losses: Mapping[str, float]) -> str:
    if "val/loss" not in losses:
        return "not measured at this step"
    error = f" ± {losses['val/loss_se']:.4f}" if "val/loss_se" in losses else ""
    return f"{losses['val/loss']:.4f}{error} nats/token"


def _code(value: object) -> str:
    """Return a value as code in Markdown, so that a text from a stranger's record formats nothing."""
    text = one_line(str(value)).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
