"""GPT-2 has biases everywhere; many later models have none."""

from experiments.tiny import tiny

no_bias = tiny.vary("tiny-no-bias", why="Do the biases earn their place?", **{"model.bias": False})
