"""Which learning rate suits `tiny`, and how sure is that?"""

from experiments.tiny import tiny
from gptlab.sweeps import Sweep, grid, log_space

learning_rate = Sweep(
    "learning-rate",
    why="Which learning rate is best for tiny, and how much worse are its neighbors?",
    runs=grid(tiny, {"train.learning_rate": log_space(1e-4, 1e-2, 7)}),
    seeds=range(3),
)
