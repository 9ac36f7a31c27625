"""Text from a model, one token at a time."""

import torch
from torch import Tensor

from gptlab.data import tokenizer
from gptlab.errors import BadInputError, GptlabError
from gptlab.model.gpt import GPT, KeyValueCache
from gptlab.randomness import Purpose, random_bits


@torch.no_grad()
def sample(
    model: GPT,
    prompt: str,
    *,
    trained_length: int,
    max_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> str:
    """Continue a prompt.

    Args:
        model: In either mode; it is left in the one it had.
        prompt: At least one token.
        trained_length: The sequence length of the training: positions beyond it never saw any.
        max_tokens: New tokens; as many as `trained_length` leaves room for by default.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_k: Draw from this many likeliest tokens; 0 draws from all.
        seed: The same arguments and seed give the same text.

    Returns:
        The new text, without the prompt.

    Raises:
        BadInputError: The prompt is empty, or prompt and new tokens exceed `trained_length`.
        GptlabError: The model's output is not finite.
    """
    tokens = tokenizer.gpt2().encode_ordinary(prompt)
    if not tokens:
        raise BadInputError("the prompt is empty; give at least one character")
    room = trained_length - len(tokens)
    if room < 1:
        raise BadInputError(
            f"the prompt has {len(tokens)} tokens; the model was trained on windows of {trained_length}, "
            f"so use at most {trained_length - 1}"
        )
    if max_tokens is not None and max_tokens > room:
        raise BadInputError(
            f"{len(tokens)} prompt tokens and {max_tokens} new ones exceed the {trained_length} positions that saw "
            f"training; ask for at most {room}"
        )
    device = model.token_embedding.weight.device
    generator = torch.Generator().manual_seed(int(random_bits(seed, Purpose.SAMPLE)[0]))
    cache = KeyValueCache(model.spec)
    was_training = model.training
    model.eval()
    new = torch.tensor([tokens])  # (1, T), then (1, 1)
    written: list[int] = []
    try:
        for _ in range(max_tokens if max_tokens is not None else room):
            logits = model(new.to(device), cache=cache)[0, -1].float().cpu()  # (V,)
            new = _draw(logits[: tokenizer.gpt2().n_vocab], temperature, top_k, generator).view(1, 1)
            written.append(int(new))
    finally:
        model.train(was_training)
    return tokenizer.gpt2().decode(written)


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    if temperature < 1e-6:  # dividing by less overflows
        return logits.argmax()
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    probabilities = torch.softmax(logits / temperature, dim=0)
    if not probabilities.isfinite().all():
        raise GptlabError("the model's output is not finite: its weights are damaged, or it diverged")
    return torch.multinomial(probabilities, 1, generator=generator)
