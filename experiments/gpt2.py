"""The four sizes of GPT-2 (Radford et al. 2019, table 2), tied as they were.

`gptlab run gpt2-small --from DIR` starts from their weights: a directory of `transformers`, such as a download of
`openai-community/gpt2`.
"""

from gptlab.spec import Experiment, ModelSpec, TrainSpec

small = Experiment(
    name="gpt2-small",
    why="What does GPT-2 small, 124,439,808 parameters, learn from a text?",
    model=ModelSpec(n_layer=12, n_head=12, n_embd=768, tied=True),
    train=TrainSpec(sequence_length=1024, batch_size=1),
)
medium = small.vary(
    "gpt2-medium",
    why="What does GPT-2 medium, 354,823,168 parameters, learn from a text?",
    **{"model.n_layer": 24, "model.n_head": 16, "model.n_embd": 1024},
)
large = small.vary(
    "gpt2-large",
    why="What does GPT-2 large, 774,030,080 parameters, learn from a text?",
    **{"model.n_layer": 36, "model.n_head": 20, "model.n_embd": 1280},
)
xl = small.vary(
    "gpt2-xl",
    why="What does GPT-2 XL, 1,557,611,200 parameters, learn from a text?",
    **{"model.n_layer": 48, "model.n_head": 25, "model.n_embd": 1600},
)
