"""93% of tiny's parameters are embeddings, most of them for tokens that its text never uses.

The file with 4,096 tokens was made with `gptlab tokenizer train pandas-docs --vocab-size 4096`. Losses per token do not
compare across tokenizers; bits per byte do. A token has 2.9 bytes of this text in GPT-2's tokenizer, 3.4 in the one
with 4,096 tokens, and one in bytes. So tiny-bytes gets longer windows: a step reads as many bytes as one of tiny.
"""

from experiments.tiny import tiny

four_thousand = tiny.vary(
    "tiny-4k",
    why="What does a vocabulary that is made for the text save, and at which bits per byte?",
    **{"data.tokenizer": "experiments/tokenizers/pandas-docs-4096.json", "model.vocab_size": 4096},
)

letters = tiny.vary(
    "tiny-bytes",
    why="Does a model of bytes learn as much from the same text without a vocabulary?",
    **{"data.tokenizer": "bytes", "model.vocab_size": 256, "train.sequence_length": 192},
)
