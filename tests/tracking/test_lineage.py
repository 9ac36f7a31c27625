"""Which runs start from which."""

from hypothesis import given
from hypothesis import strategies as st

from gptlab.tracking.lineage import in_tree_order


def test_each_run_follows_its_parent_and_siblings_keep_their_order():
    parents = {"grandchild": "b", "c": "root", "b": "root", "other": None, "root": None, "orphan": "gone"}
    assert in_tree_order(parents) == [
        ("other", 0),
        ("root", 0),
        ("c", 1),
        ("b", 1),
        ("grandchild", 2),
        ("orphan", 0),
    ]


@given(st.dictionaries(st.integers(0, 12), st.none() | st.integers(0, 12)))
def test_every_run_is_listed_once_whatever_their_records_claim(parents):
    ordered = in_tree_order(parents)
    assert sorted(run for run, _ in ordered) == sorted(parents)
    depths = dict(ordered)
    assert all(depths[run] <= len(parents) for run in parents)


def test_a_chain_of_any_length_is_ordered():
    parents = {number: number - 1 if number else None for number in range(5000)}
    assert in_tree_order(parents)[-1] == (4999, 4999)
