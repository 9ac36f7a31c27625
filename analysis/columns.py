"""Names, order and dtypes of the columns of the tables in `analysis.load`.

Dtypes are fixed, also in an empty table: `str`, `Int64`, `float64`, `boolean` or a UTC timestamp. The functions in
`analysis.load` document the meaning of each column.
"""

from collections.abc import Iterator

from gptlab.identity import identity_fields
from gptlab.spec import SECTIONS, Experiment, flatten
from gptlab.tracking.metrics import COLUMNS, COUNTS

_DEFAULTS = Experiment(name="defaults", why="Which fields does a spec have?")
_JSON_DTYPES = {"integer": "Int64", "number": "float64", "boolean": "boolean"}


def _spec_dtypes() -> Iterator[tuple[str, str]]:
    for section in SECTIONS:
        fields = type(getattr(_DEFAULTS, section)).model_json_schema()["properties"]
        for field, schema in fields.items():
            kinds = {option.get("type") for option in schema.get("anyOf", [schema])} - {"null"}
            yield f"{section}.{field}", _JSON_DTYPES.get(kinds.pop(), "str") if len(kinds) == 1 else "str"


KEYS = {"run": "str", "name": "str", "seed": "Int64"}
"""The first columns of every table; tables are joined on them."""

LOGGED = {column: "Int64" if column in COUNTS else "float64" for column in COLUMNS} | {"val/yardstick": "str"}
"""Columns of a row of `metrics.jsonl`."""

VALIDATION = ("val/loss", "val/loss_se", "val/bpb", "val/yardstick")
NEWEST = ("train/loss", "tokens", "elapsed_s", "cpu_s", "perf/tokens_per_s", "perf/peak_mem_gib")
SPEC = dict(_spec_dtypes())
START = {
    "device": "str",
    "host": "str",
    "torch": "str",
    "threads": "Int64",
    "compile": "boolean",
    "git_commit": "str",
    "git_dirty": "boolean",
    "diff_sha256": "str",
    "fingerprint": "str",
    "notes": "str",
}
"""Facts about the last attempt: its machine, its versions and its code."""

RUNS = {
    **KEYS,
    "experiment": "str",
    "status": "str",
    "step": "Int64",
    "steps": "Int64",
    "created": "datetime64[us, UTC]",
    "why": "str",
    **SPEC,
    "precision": "str",
    "numerics": "Int64",
    "text.source": "str",
    "text.sha256": "str",
    "tokenizer.sha256": "str",
    "initial_weights": "str",
    "parent": "str",
    "parent_step": "Int64",
    "branch": "str",
    "branch_tokens": "Int64",
    "branch_flops": "float64",
    "parameters": "Int64",
    "flops_per_token": "float64",
    **{column: LOGGED[column] for column in (*VALIDATION, *NEWEST)},
    "flops": "float64",
    "best/val_loss": "float64",
    "best/step": "Int64",
    "attempts": "Int64",
    **START,
    "changed": "str",
    "code_files": "str",
    "damage": "str",
    "verified": "str",
    "profiled": "boolean",
    "tags": "str",
    "directory": "str",
}

METRICS = {**KEYS, **LOGGED, "flops": "float64"}

CHECKPOINTS = {
    **KEYS,
    "step": "Int64",
    "tensor": "str",
    "layer": "Int64",
    "shape": "str",
    "dtype": "str",
    "parameters": "Int64",
    "rms": "float64",
    "norm": "float64",
    "abs_max": "float64",
    "zeros": "float64",
    "stable_rank": "float64",
    "update": "float64",
    "cosine": "float64",
    "distance": "float64",
}

HEADERS = {
    **KEYS,
    "step": "Int64",
    "tokens": "Int64",
    "train/loss": "float64",
    "val/loss": "float64",
    "tensors": "Int64",
    "bytes": "Int64",
    "resumable": "boolean",
    "directory": "str",
}

WINDOWS = {**KEYS, "step": "Int64", "yardstick": "str", "start": "Int64", "loss": "float64"}

_EXPLAINED = {**KEYS, "step": "Int64", "yardstick": "str"}
_BIN = {"first": "Int64", "last": "Int64", "tokens": "Int64"}
_LOSS = dict.fromkeys(("loss", "loss_low", "loss_high", "bpb", "bpb_low", "bpb_high"), "float64")
_OVER = {"windows": "Int64", "blocks": "Int64"}
_DIFFERENCE = dict.fromkeys(("difference", "difference_low", "difference_high"), "float64")

BY_POSITION = {**_EXPLAINED, "context": "str", **_BIN, **_LOSS, **_OVER}

BY_FREQUENCY = {
    **_EXPLAINED,
    "count": "str",
    **_BIN,
    "share_of_tokens": "float64",
    **dict.fromkeys(("share_of_loss", "share_of_loss_low", "share_of_loss_high"), "float64"),
    **_LOSS,
    **_OVER,
}

CONTEXT = {**_EXPLAINED, "gain": "float64", "gain_low": "float64", "gain_high": "float64", **_OVER}

MEMORIZATION = {
    **_EXPLAINED,
    "prompt": "Int64",
    "continuation": "Int64",
    "part": "str",
    "passages": "Int64",
    "excluded": "Int64",
    "verbatim": "Int64",
    **dict.fromkeys(("share", "share_low", "share_high", "match", "match_low", "match_high"), "float64"),
}

DIFFERENCES = {"kind": "str", "bin": "str", **_DIFFERENCE, "n": "Int64", "paired": "boolean"}

COPIES = {**KEYS, "directory": "str"}

SAMPLES = {**KEYS, "step": "Int64", "prompt": "str", "text": "str"}

IDENTITY = (
    "numerics",
    "precision",
    "text.sha256",
    "tokenizer.sha256",
    "initial_weights",
    "branch",
    *dict(flatten(identity_fields(_DEFAULTS))),
)
"""Columns of `RUNS` that, together with the seed, determine a run's numbers."""

NAMES = {"text.sha256": "text.source", "tokenizer.sha256": "data.tokenizer"}
"""More readable columns than some of these."""
