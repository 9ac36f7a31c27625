"""What the losses of runs are made of, as pandas tables, from what `gptlab eval RUN --explain` stored.

    from analysis import explain, load

    runs = load.runs(name="tiny*")
    explain.by_position(runs)
    explain.differences("tiny-1a2b3c4d-s0", "tiny-swiglu-5e6f7a8b-s0")

A row is about one checkpoint of a run and one text; `yardstick` identifies its windows. Losses are in nats per token,
`bpb` in bits per byte. `low` and `high` are the ends of a 95% interval, over blocks of adjacent windows or over
passages (`gptlab.explanation.estimates`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pandas import DataFrame

from analysis import columns, load
from gptlab.errors import BadInputError
from gptlab.explanation import rows
from gptlab.explanation.rows import Row
from gptlab.explanation.stored import Explanation, Stored, read_all
from gptlab.tracking.run import EVALUATIONS, Run, find_run, load_run, skip_unreadable


def by_position(runs: DataFrame | None = None) -> DataFrame:
    """Return the loss by position in the window, one row per bin of positions.

    Args:
        runs: Rows of `load.runs()`; all runs by default.

    Returns:
        A table in the order of `runs`, with the columns

        run, name, seed, step, yardstick: The checkpoint, and its windows.
        context: The bin as text, such as `5–8`: the tokens of context that a prediction sees.
        first, last: Its ends.
        tokens: Predicted tokens.
        loss, loss_low, loss_high: Nats per token.
        bpb, bpb_low, bpb_high: Bits per byte of the predicted text.
        windows, blocks: Number of windows, and of blocks of adjacent windows, which the interval is over.
    """
    return _table(runs, rows.by_position, columns.BY_POSITION)


def by_frequency(runs: DataFrame | None = None) -> DataFrame:
    """Return the loss by how often a token occurs in the training part, one row per bin of counts.

    Args:
        runs: Rows of `load.runs()`; all runs by default.

    Returns:
        A table like that of `by_position`, with `count` instead of `context`, and with the columns

        share_of_tokens: The bin's share of the predicted tokens.
        share_of_loss, share_of_loss_low, share_of_loss_high: Its share of the loss.
    """
    return _table(runs, rows.by_frequency, columns.BY_FREQUENCY)


def context(runs: DataFrame | None = None) -> DataFrame:
    """Return what context is worth: the loss at the first position minus that in the last bin, one row per checkpoint.

    Args:
        runs: Rows of `load.runs()`; all runs by default.
    """
    return _table(runs, rows.context, columns.CONTEXT)


def memorization(runs: DataFrame | None = None) -> DataFrame:
    """Return how many passages are continued verbatim, one row per prompt length and part of the text.

    Args:
        runs: Rows of `load.runs()`; all runs by default.

    Returns:
        A table in the order of `runs`, with the columns

        run, name, seed, step, yardstick: The checkpoint, and the windows of its evaluation.
        prompt, continuation: Tokens of the prompts and of the continuations.
        part: `trained` for passages that the run has trained on, `held out` for the control.
        passages, excluded: Number of passages, and of those left out because the other part of the text has them, too.
        verbatim: Number of passages continued verbatim.
        share, share_low, share_high: Their share.
        match, match_low, match_high: Mean number of tokens continued as in the text.
    """
    return _table(runs, rows.memorization, columns.MEMORIZATION)


def differences(first: str, second: str) -> DataFrame:
    """Return the differences `second − first` of two runs on the same windows, paired wherever possible.

    The newest explained checkpoint of each run is taken, of the windows that both have.

    Args:
        first: A run's id, a unique prefix of one, or its directory.
        second: Likewise.

    Returns:
        A table with the columns

        kind: `context` (what context is worth), `position`, `frequency` or `memorization`.
        bin: The bin as in the other tables; for memorization the prompt length and the part.
        difference, difference_low, difference_high: Nats per token; for memorization a difference of shares.
        n: Number of windows or passages.
        paired: Whether both were measured on the same ones.

    Raises:
        BadInputError: There is no such run, or the two have no explanation on the same windows.
    """
    a, b = find_run(first), find_run(second)
    of_a, of_b = newest(a), newest(b)
    shared = [yardstick for yardstick in of_a if yardstick in of_b]
    if not shared:
        raise BadInputError(
            f"{a.id} and {b.id} have no explanation on the same windows; make one with: "
            f"gptlab eval {a.id} {b.id} --explain"
        )
    own = next((key for key in shared if of_a[key].explanation.facts.prompts), shared[0])
    return load.frame(rows.differences(of_a[own].explanation, of_b[own].explanation), columns.DIFFERENCES)


def explained_runs(runs: DataFrame) -> dict[str, Stored]:
    """Return the newest explanation of each run that has one, on its own validation split if possible, by run id.

    A run with a damaged file is left out, with a warning that names the file.
    """
    directories = runs.drop_duplicates("directory")[["run", "directory"]].itertuples(index=False, name=None)

    def read(selected: tuple[str, str]) -> tuple[str, list[Stored]]:
        return selected[0], list(newest(load_run(Path(selected[1]))).values())

    found = {run: explanations for run, explanations in skip_unreadable(read, directories) if explanations}
    return {
        run: max(several, key=lambda one: (bool(one.explanation.facts.prompts), one.step))
        for run, several in found.items()
    }


def newest(run: Run) -> dict[str, Stored]:
    """Return the explanation of a run's newest explained checkpoint, for each yardstick.

    Raises:
        GptlabError: A file is damaged; the message names it.
    """
    return {found.yardstick: found for found in read_all(run.directory / EVALUATIONS)}


def _table(runs: DataFrame | None, describe: Callable[[Explanation], list[Row]], dtypes: dict[str, str]) -> DataFrame:
    def read(run: Run) -> Iterator[dict[str, Any]]:
        for found in read_all(run.directory / EVALUATIONS):
            for row in describe(found.explanation):
                yield {"step": found.step, "yardstick": found.yardstick, **row}

    return load.frame(load.rows_of(runs, read), dtypes)
