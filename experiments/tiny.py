"""A small version of the reference model, to try things out in under a minute."""

from gptlab.spec import DataSpec, Experiment, ModelSpec, TrainSpec

tiny = Experiment(
    name="tiny",
    why="Does it all work here, and does a small GPT learn anything in a minute?",
    model=ModelSpec(n_layer=4, n_head=4, n_embd=128),
    data=DataSpec(val_windows=64),
    train=TrainSpec(sequence_length=64, batch_size=8, learning_rate=1e-3, steps=100),
)
