"""Stored decisions: written whole, read as untrusted data."""

import json
import os
import re

import pytest

from gptlab.digests import with_digest
from gptlab.errors import GptlabError
from gptlab.sequential import design
from gptlab.tracking import decisions
from gptlab.tracking.decision_sentences import sentence
from gptlab.tracking.decisions import Decision

A, B = "tiny-12345678", "tiny-relu-9abcdef0"


def decision(*differences: float, margin: float = 0.02, **options: int) -> Decision:
    made = decisions.new_decision(A, B, 200, design(margin, **options))
    for each in differences:
        made = made.with_pair(5.0, 5.0 + each)
    return made


WORSE = decision(0.021, 0.018, 0.024, 0.02)


def rewrite(**changes: object) -> None:
    """Change the stored decision, digest included."""
    path = decisions.path_of(A, B, 200)
    document = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
    path.write_text(json.dumps(with_digest(document | changes)))


def test_a_decision_is_found_again_in_either_order():
    path = decisions.store(WORSE)
    assert path.parent.name == "decisions"
    assert decisions.find(A, B, 200) == WORSE
    assert sentence(WORSE) == "tiny-relu is worse than tiny by 0.021 nats/token, 95% interval 0.001 to 0.041, 3 seeds"
    swapped = decisions.find(B, A, 200)
    assert (swapped.verdict, swapped.differences[0]) == ("better", pytest.approx(-0.021))
    assert swapped.seen_from(A) == WORSE
    assert decisions.find(A, B, 100) is None
    assert decisions.all_decisions() == [WORSE]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (WORSE, "tiny-relu is worse than tiny by #.### nats/token, 95% interval #.### to #.###, 3 seeds"),
        (WORSE.seen_from(B), "tiny is better than tiny-relu by #.### nats/token, 95% interval #.### to #.###, 3 seeds"),
        (
            decision(0.001, -0.002, 0.0),
            "tiny-relu is practically equal to tiny: difference #.###, 95% interval −#.### to #.###, within ±#.##, "
            "3 seeds",
        ),
        (
            decision(0.5, -0.5, 0.3, max_seeds=3),
            "tiny-relu and tiny are undecided: difference #.###, 95% interval −#.### to #.###, 3 seeds, the whole "
            "budget",
        ),
        (
            decision(0.5, -0.5, 0.3),
            "tiny-relu and tiny are not decided yet: difference #.###, 95% interval −#.### to #.###, 3 of at most "
            "20 seeds",
        ),
        (decision(0.5), "tiny-relu and tiny are not decided yet: 1 of at most 20 seeds"),
        (
            decision(0.1).with_pair(None, None),
            "tiny-relu and tiny are undecided: tiny-relu and tiny diverged with seed 1, and a diverged seed decides "
            "nothing",
        ),
        (
            decision(0.0211, 0.0212, 0.021, margin=0.0005),
            "tiny-relu is worse than tiny by #.##### nats/token, 95% interval #.##### to #.#####, 3 seeds",
        ),
    ],
)
def test_each_verdict_has_its_sentence(made, text):
    assert re.sub(r"\d+\.\d+", lambda number: re.sub(r"\d", "#", number[0]), sentence(made)) == text


def test_any_changed_digit_is_detected():
    path = decisions.store(WORSE)
    path.write_text(path.read_text().replace("5.021", "5.031"))
    with pytest.raises(GptlabError, match=r"is damaged: its digest does not match; remove the file to decide again"):
        decisions.find(A, B, 200)
    assert decisions.all_decisions() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": 0},
        {"margin": "NaN"},
        {"max_seeds": 2},
        {"max_seeds": 10**9},
        {"comparisons": 0},
        {"level": 0.9},
        {"steps": 0},
        {"experiment": A},
        {"experiment": "../x-12345678"},
        {"experiment": "\x1b[31m-12345678"},
        {"created": "yesterday"},
        {"pairs": [{"seed": 0, "reference": "Infinity", "experiment": 1.0}]},
        {"pairs": [{"seed": 4, "reference": 1.0, "experiment": 1.0}]},
        {"pairs": [{"seed": seed, "reference": 1.0, "experiment": 1.0} for seed in range(51)]},
        {"steps": 300},
        {"more": 1},
        {"earlier": [{"verdict": "certain"}]},
    ],
)
def test_values_that_a_decision_cannot_have_are_an_error_that_names_the_file(changes, caplog):
    decisions.store(WORSE)
    rewrite(**changes)
    with pytest.raises(GptlabError, match=r"tiny-12345678\.vs\.tiny-relu-9abcdef0\.at-200\.json is damaged: "):
        decisions.find(A, B, 200)
    assert decisions.all_decisions() == []
    assert "; this decision is skipped" in caplog.text
    assert "\x1b" not in caplog.text


def test_links_and_other_files_are_not_read(tmp_path):
    path = decisions.store(WORSE)
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    (path.parent / "notes.txt").write_text("not a decision")
    os.mkfifo(path.parent / "pipe.json")
    assert decisions.all_decisions() == []
    with pytest.raises(GptlabError, match="is not a regular file"):
        decisions.find(A, B, 200)
