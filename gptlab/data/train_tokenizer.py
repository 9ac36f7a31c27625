"""Train a byte-level BPE tokenizer on a text, with Hugging Face's `tokenizers`.

The result is deterministic: pairs with equal counts are merged in the order of their ids, whatever thread counts them.
"""

from gptlab.data.byte_pairs import MAX_TOKEN_BYTES, byte_characters
from gptlab.data.pieces import pieces, split_boundary
from gptlab.data.text import Text
from gptlab.errors import BadInputError
from gptlab.spec import DataSpec

MIN_FREQUENCY = 2
"""A pair that occurs once is worth no token."""


def training_bytes(text: Text) -> int:
    """Return the length of the part of a text that trains by default: validation never sees the text of a tokenizer."""
    return split_boundary(text.path, round(text.size * (1 - DataSpec().val_fraction)))


def train_tokenizer(text: Text, vocab_size: int) -> bytes:
    """Return the `tokenizer.json` of a tokenizer that is trained on the training part of a text.

    It has fewer than `vocab_size` tokens if no pair of tokens occurs twice any more.

    Raises:
        BadInputError: The package `tokenizers` is missing, or the text is not UTF-8.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise BadInputError(
            "training a tokenizer needs the package tokenizers: pip install --no-deps tokenizers==0.23.3"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        max_token_length=MAX_TOKEN_BYTES,
        initial_alphabet=list(byte_characters().values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(text, 0, training_bytes(text)), trainer)
    return f"{tokenizer.to_str()}\n".encode()
