"""An explanation of losses with known contents."""

from pathlib import Path

import numpy as np

from gptlab.explanation import stored
from gptlab.explanation.stored import Explanation, Facts
from gptlab.tracking.run import Run


def explanation(seed: int = 0, lower: float = 0.0, blocks: int = 40) -> Explanation:
    """Eight positions, tokens that occur up to 30 times, and passages of which every other one is memorized."""
    random = np.random.default_rng(seed)
    facts = Facts(
        windows=2 * blocks,
        sequence_length=8,
        counted="ab" * 32,
        counted_in_training_part=True,
        most=30,
        prompts=[8, 16],
        continuation=4,
        trained_windows=100,
    )
    tokens = np.tile([0, 2, 6, 8], (blocks, 1))
    matches = np.array([[4, 4], [1, 4], [stored.EXCLUDED, 2]])
    return Explanation(
        facts,
        windows=np.full(blocks, 2),
        position_loss=random.normal(10, 1, size=(blocks, 4)) - lower,
        position_bytes=np.full((blocks, 4), 5),
        frequency_loss=tokens * (4.0 - lower),
        frequency_tokens=tokens,
        frequency_bytes=3 * tokens,
        trained_start=np.array([0, 8, 16]),
        trained_match=matches,
        held_out_start=np.array([0, 8, 16]),
        held_out_match=np.minimum(matches, 1),
    )


def store(run: Run, found: Explanation, step: int = 20, yardstick: str = "0123abcd") -> Path:
    """Write an explanation to a run's directory."""
    path = run.directory / "evaluations" / stored.file_name(step, yardstick)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(stored.to_bytes(found))
    return path
