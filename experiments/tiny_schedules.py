"""Does a decaying learning rate pay off after so few steps?"""

from experiments.tiny import tiny

cosine = tiny.vary(
    "tiny-cosine",
    why="Is a warm-up and a cosine decay better than a constant rate?",
    **{"train.schedule": "cosine", "train.warmup_steps": 10, "train.horizon": 100},
)
wsd = tiny.vary(
    "tiny-wsd",
    why="Does a decay over the last fifth of the steps get as far as a cosine?",
    **{"train.schedule": "wsd", "train.warmup_steps": 10, "train.horizon": 100},
)
