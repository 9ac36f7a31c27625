"""Does the feed-forward layer's activation matter for a small model and few steps?"""

from experiments.tiny import tiny

relu = tiny.vary(
    "tiny-relu", why="Is ReLU worse than GELU?", **{"model.feed_forward": "experiments.parts.relu:ReLUFeedForward"}
)
relu2 = tiny.vary("tiny-relu2", why="Is squared ReLU better than GELU, as in Primer?", **{"model.activation": "relu2"})
gelu_exact = tiny.vary(
    "tiny-gelu-exact", why="Does GELU's tanh approximation change anything?", **{"model.activation": "gelu-exact"}
)
swiglu = tiny.vary(
    "tiny-swiglu",
    why="Is a gated feed-forward layer better at equal parameters?",
    **{"model.feed_forward": "experiments.parts.swiglu:SwiGLU"},
)
