"""The reference model with a budget that two laptop cores finish in a few minutes."""

from gptlab.spec import Experiment

baseline = Experiment(
    name="baseline",
    why="What does the reference GPT learn from a text in its first hundred steps?",
)
