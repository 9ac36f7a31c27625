"""The settings of runs: which differ between them, and how to print these."""

from collections.abc import Sequence
from typing import Any

from gptlab.identity import identity_fields
from gptlab.spec import flatten
from gptlab.tracking.records import RunRecord

CODE, NUMERICS = "code", "numerics"
"""The keys of the code's fingerprint, which counts only between otherwise equal runs, and of its revision."""


def setting(record: RunRecord, key: str) -> Any:
    """Return the value of a field of a run's spec; the precision as it was resolved."""
    if key == "train.precision":
        return record.precision
    value: Any = record.spec
    for name in key.split("."):
        value = getattr(value, name, None)  # an optional section can be missing
    return value


def varied_settings(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return the settings that differ between runs and determine their numbers, besides seed and parent.

    Returns:
        The values of all runs as text, by the dotted key of the setting.
    """
    settings = [_settings(record) for record in records]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    columns = {key: [each.get(key, "") for each in settings] for key in keys}
    varied = {key: values for key, values in columns.items() if len(set(values)) > 1}
    if _differ_only_in_code(records, settings):
        varied[CODE] = [record.fingerprint.hash if record.fingerprint else "" for record in records]
    return {key: _shortest(values) for key, values in varied.items()}


def is_spec_field(key: str) -> bool:
    """Return whether a key of `varied_settings` is a field of the spec whose value says it all."""
    return key not in {CODE, NUMERICS, "data.text", "data.tokenizer"}


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last part of each dotted key, where it is unique."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def _settings(record: RunRecord) -> dict[str, str]:
    """What determines a run's numbers besides seed, parent and code, as text by dotted key."""
    return {
        **{key: format_setting(value) for key, value in flatten(identity_fields(record.spec))},
        "train.precision": record.precision,
        "data.text": f"{record.text.source}:{record.text.sha256}",
        "data.tokenizer": f"{record.spec.data.tokenizer}:{record.tokenizer_sha256}",
        NUMERICS: str(record.identity[NUMERICS]),
    }


def _differ_only_in_code(records: Sequence[RunRecord], settings: Sequence[dict[str, str]]) -> bool:
    """Whether two runs have equal settings and parents, but not the same identity."""
    seen: dict[tuple[str, ...], str] = {}
    for record, each in zip(records, settings, strict=True):
        parent = record.parent.sha256 if record.parent else record.initial_weights_sha256 or ""
        known = seen.setdefault((record.spec.name, parent, *each.values()), record.run.rpartition("-")[0])
        if known != record.run.rpartition("-")[0]:
            return True
    return False


def format_setting(value: Any) -> str:
    """Return the value of a setting as `--set` takes it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(format_setting, value))}]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _shortest(values: list[str]) -> list[str]:
    """Shorten parts to their names, files to theirs and hashes to 8 digits, where values stay different."""
    for shorten in (_name, _hash):
        short = [shorten(value) for value in values]
        if len(set(short)) == len(set(values)):
            return short
    return values


def _name(value: str) -> str:
    """`my.txt` for the text `path/my.txt:SHA256`, `ReLU` for the part `experiments.parts.relu:ReLU`."""
    first, colon, last = value.rpartition(":")
    if not colon:
        return value[:8] if len(value) == 64 else value
    return first.rpartition("/")[2] if len(last) == 64 else last


def _hash(value: str) -> str:
    return value.rpartition(":")[2][:8] if ":" in value else value
