"""Any input that is read as a spec is a valid spec or refused."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import SCALARS, as_json, oddly

from gptlab.errors import BadInputError
from gptlab.identity import identify
from gptlab.spec import Experiment, explain_spec_error, flatten, parse_settings

PLAIN = Experiment(name="plain", why="Does it hold?")
KEYS = [f"{section}.{key}" for section in ("model", "data", "train") for key in PLAIN.model_dump()[section]]
NAMES = (
    st.text() | st.text(alphabet="aZ09._-/\\\n ", max_size=70) | st.sampled_from(["..", "a/..", "a\n", "-", ".trash"])
)


def run_id(experiment: Experiment, seed: int = 0) -> str:
    return identify(experiment, precision="float32", text_sha256="aa", tokenizer_sha256="bb").run_id(seed)


def assert_sound(experiment: Experiment) -> None:
    """Check that the experiment can be stored, read back, named and displayed."""
    stored = Experiment.model_validate_json(experiment.model_dump_json())
    assert stored == experiment
    assert run_id(stored) == run_id(experiment)
    assert experiment.model.parameters > 0
    json.dumps(dict(flatten(experiment.model_dump())), allow_nan=False).encode()


@given(document=oddly(PLAIN.model_dump(mode="json")))
def test_any_document_is_a_spec_or_refused_with_a_reason(document):
    try:
        experiment = Experiment.model_validate_json(as_json(document))
    except ValidationError as error:
        reason = explain_spec_error(error)
        assert reason
        return
    assert_sound(experiment)


@given(
    key=st.sampled_from(KEYS) | st.text(max_size=10), value=SCALARS.map(str) | st.text(), equals=st.sampled_from("= ")
)
@example(key="model.block", value="\ud800", equals="=")  # an argument that is not UTF-8
def test_any_setting_is_valid_or_refused(key, value, equals):
    try:
        experiment = PLAIN.with_changes(parse_settings([key + equals + value]))
    except BadInputError:
        return
    assert_sound(experiment)


@given(name=NAMES, seed=st.integers(0, 2**63 - 1))
def test_runs_of_any_valid_name_are_children_of_the_runs_directory(name, seed):
    try:
        experiment = PLAIN.vary(name, why="Does the name hold?")
    except BadInputError:
        return
    run = run_id(experiment, seed)
    assert (Path("/runs") / run).parent == (Path("/runs") / run).resolve().parent == Path("/runs")
    assert run == run.lower(), "two names that differ in case only would be one directory on some systems"
    assert run.isascii()
    assert run.isprintable()
    assert not run.startswith(".")
    assert len(run) < 128


@pytest.mark.parametrize("name", ["a", "0123", "a..b", "a.", "a-s0", "x" * 64])
def test_unusual_but_valid_names_are_accepted(name):
    assert PLAIN.vary(name, why="Is it taken?").name == name
