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
trunk = tiny.vary(
    "tiny-trunk",
    why="Can one run at a constant rate give the losses of ten budgets, each after a short decay?",
    **{"train.steps": 320, "train.keep_steps": (32, 64, 96, 128, 160, 192, 224, 256, 288, 320)},
)
cooldown = tiny.vary(
    "tiny-cooldown",
    why="Which loss does the trunk reach at this budget once its rate decays?",
    **{"train.schedule": "wsd", "train.horizon": 400, "train.decay_steps": 80, "train.steps": 400},
)
