"""Other norms and positions than GPT-2's."""

from experiments.tiny import tiny

rms_norm = tiny.vary(
    "tiny-rmsnorm",
    why="Does a norm need the mean and the bias?",
    **{"model.norm": "experiments.parts.rms_norm:RMSNorm"},
)
post_norm = tiny.vary(
    "tiny-post-norm",
    why="Is a norm after the sublayer worse than before it, at this depth and without warm-up?",
    **{"model.block": "experiments.parts.post_norm:PostNormBlock"},
)
no_positions = tiny.vary(
    "tiny-no-positions",
    why="Does a causal model need positions?",
    **{"model.position": "experiments.parts.positions:NoPositions"},
)
rotary = tiny.vary(
    "tiny-rotary",
    why="Are rotary positions better than learned ones?",
    **{"model.position": "experiments.parts.positions:Rotary"},
)
