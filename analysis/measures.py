"""What runs are compared by: the loss per token, or bits per byte where their tokenizers differ."""

from typing import NamedTuple

from pandas import DataFrame, Series, isna


class Measure(NamedTuple):
    """A column of the metrics, lower is better, and what to call it."""

    column: str
    name: str
    short: str
    unit: str
    axis: str
    """The label of an axis."""


LOSS = Measure("val/loss", "validation loss", "val loss", "nats per token", "validation loss, nats per token")
BITS = Measure("val/bpb", "bits per byte", "bits/byte", "bits per byte", "validation loss, bits per byte")


def measure_of(runs: DataFrame) -> Measure:
    """Bits per byte if these runs have several tokenizers, because losses per token do not compare across them.

    Args:
        runs: Rows of `load.runs()`.
    """
    return BITS if has_several_tokenizers(runs) else LOSS


def has_several_tokenizers(runs: DataFrame) -> bool:
    """Whether these runs have different tokenizers. A table without this column has one."""
    return "tokenizer.sha256" in runs and bool(runs["tokenizer.sha256"].nunique() > 1)


def comparable(yardsticks: Series, runs: DataFrame, measure: str) -> Series:
    """What values were measured on: equal where they compare.

    Windows of different tokenizers are never the same. So bits per byte of different tokenizers are compared where the
    validation text is the same, although they are measured on different windows of it. If runs of one tokenizer have
    different windows, only values on the same windows are compared.

    Args:
        yardsticks: The yardstick of each run; missing if it has no value.
        runs: The rows of `load.runs()` for the same runs, in the same order.
        measure: The column of the values.
    """
    if measure != BITS.column or not has_several_tokenizers(runs):
        return yardsticks
    if (yardsticks.groupby(runs["tokenizer.sha256"].to_numpy()).nunique() > 1).any():
        return yardsticks
    names = runs["text.sha256"].str[:8] + " from " + (1 - runs["data.val_fraction"]).map("{:g}".format)
    named = [None if isna(key) else name for key, name in zip(yardsticks, names, strict=True)]
    return Series(named, index=yardsticks.index, dtype="str")
