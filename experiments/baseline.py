"""The reference model, in a budget that two laptop cores finish over a coffee."""

from gptlab.spec import Experiment

baseline = Experiment(
    name="baseline",
    why="What does the reference GPT learn from a text in its first hundred steps?",
)
