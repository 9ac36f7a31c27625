"""The experiment that others are compared with, as a user names it."""

from pandas import DataFrame

from analysis import choices, compare
from gptlab.errors import BadInputError
from gptlab.validation import did_you_mean


def find_experiment(runs: DataFrame, name: str, argument: str = "against") -> str:
    """Return the experiment (`NAME-HASH8`) with this id, label or name, or that of the run with this id.

    Args:
        runs: Rows of `load.runs()`.
        name: What the user calls it.
        argument: What the error message calls `name`.

    Raises:
        BadInputError: No experiment or several match.
    """
    if (runs["experiment"] == name).any():
        return name
    labels = compare.labels(runs)
    rows = runs[["run", "experiment", "name"]].itertuples(index=False, name=None)
    exact, named = set(), set()
    for run, experiment, own in rows:
        if name in {run, labels[experiment]}:
            exact.add(experiment)
        elif name == own:
            named.add(experiment)
    found = exact or named
    if len(found) == 1:
        return str(found.pop())
    known = [key if label == key else f"{key} ({label})" for key, label in labels.items() if not found or key in found]
    if found:
        raise BadInputError(f"{argument} is '{name}', which several experiments match: {choices.listed(known)}")
    hint = did_you_mean(name, [*labels.values(), *labels, *runs["name"]])
    raise BadInputError(f"{argument} is '{name}', but the experiments are: {choices.listed(known)}{hint}")
