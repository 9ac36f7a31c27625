"""Half of tiny's parameters are its output layer. Does it need weights of its own?"""

from experiments.tiny import tiny

tied = tiny.vary(
    "tiny-tied",
    why="What does it cost to use the token embedding as the output layer's weight?",
    **{"model.tied": True},
)
