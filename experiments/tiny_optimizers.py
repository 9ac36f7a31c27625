"""Other optimizers than AdamW, each at a learning rate that suits it."""

from experiments.tiny import tiny

sgd = tiny.vary(
    "tiny-sgd",
    why="How far does SGD with momentum get without a rate per parameter?",
    **{"train.optimizer": "experiments.parts.sgd:sgd", "train.learning_rate": 0.3},
)
adam_l2 = tiny.vary(
    "tiny-adam-l2",
    why="What does AdamW's weight decay do as an L2 penalty, which Adam divides by the gradient's size?",
    **{"train.optimizer": "experiments.parts.adam:adam_l2"},
)
lion = tiny.vary(
    "tiny-lion",
    why="Does a sign of the momentum suffice?",
    **{"train.optimizer": "experiments.parts.lion:lion", "train.learning_rate": 1e-3, "train.betas": (0.9, 0.99)},
)
muon = tiny.vary(
    "tiny-muon",
    why="Do orthogonal updates of the matrices learn faster than AdamW's?",
    **{"train.optimizer": "experiments.parts.muon:muon", "train.learning_rate": 3e-3},
)
