"""How many blocks are useful after so few steps?"""

from experiments.tiny import tiny

shallow = tiny.vary(
    "tiny-shallow", why="What do four blocks do in a hundred steps that one does not?", **{"model.n_layer": 1}
)
