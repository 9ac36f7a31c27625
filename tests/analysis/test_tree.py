"""Runs that start from other runs: their place in a report, and what it says about their independence."""

import json
import re
from pathlib import Path

import pytest
from support import run_attempt

from analysis import caveats, compare, load, markdown, page, replicates, tree
from analysis.findings import Findings, analyze
from gptlab.spec import Experiment
from gptlab.training.initial import find_branch


@pytest.fixture(scope="module")
def family(micro: Experiment, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """A trunk, two branches of it with other batches, a branch of the first of them, and a run on its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(tmp_path_factory.mktemp("family")))
        patch.setenv("GPTLAB_CACHE", str(cache))
        return _family(micro)


def _family(micro: Experiment) -> Findings:
    trunk = run_attempt(micro, steps=20).run
    first = _branch(micro, trunk.id, "first", {"train.batch_size": 4, "train.steps": 30})
    _branch(micro, trunk.id, "second", {"train.steps": 30, "train.sequence_length": 8})
    _branch(micro, first, "third", {"train.batch_size": 4, "train.steps": 31})
    run_attempt(micro.vary("alone", why="From scratch?"), steps=30)
    runs = load.runs()
    return analyze(runs, load.metrics(runs), load.samples(runs))


def _branch(micro: Experiment, parent: str, name: str, changes: dict[str, object]) -> str:
    child = micro.vary(name, why="How low?", **changes)
    return run_attempt(child, initial_weights=find_branch(parent, child)).run.id


def test_tokens_and_flops_of_branches_include_the_trunks(micro: Experiment, family: Findings) -> None:
    runs = family.runs.set_index("name")
    tokens = {"micro": 640, "first": 640 + 10 * 64, "second": 640 + 10 * 16, "third": 1280 + 64, "alone": 960}
    assert runs["tokens"].to_dict() == tokens
    long, short = (3 * micro.model.forward_flops_per_token(length) for length in (16, 8))
    spent = {name: count * long for name, count in tokens.items()} | {"second": 640 * long + 160 * short}
    assert runs["flops"].to_dict() == spent
    rows = family.metrics.groupby("name")[["tokens", "flops"]]
    assert rows.max()["flops"].to_dict() == spent
    assert rows.min().loc["third"].tolist() == [1280, 1280 * long]
    assert runs.loc["first", "branch"] == f"{runs.loc['micro', 'run']}@20"
    assert runs.loc["first", ["branch_tokens", "branch_flops"]].tolist() == [640, 640 * long]
    assert runs.loc["alone", ["parent", "branch"]].isna().all()


def test_the_page_draws_the_tokens_and_flops_that_the_tables_have(family: Findings) -> None:
    html = page.to_html(family, load.checkpoints(family.runs.head(0)), "heading")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    ends = family.runs.set_index("run")
    for curve in data["runs"]:
        own = (curve["step"][-1] - curve["startStep"]) * curve["tokensPerStep"]
        assert curve["startTokens"] + own == ends.loc[curve["run"], "tokens"]
        assert curve["startFlops"] + own * curve["flopsPerToken"] == ends.loc[curve["run"], "flops"]


def test_both_reports_draw_the_tree(family: Findings) -> None:
    ids = family.runs.set_index("name")["run"]
    table = tree.tree_table(family.runs).set_index("run")["starts from"].to_dict()
    assert table == {
        ids["micro"]: "initialization",
        f"└ {ids['first']}": f"weights and moments of {ids['micro']} at step 20",
        f"└─ {ids['third']}": f"weights and moments of {ids['first']} at step 30",
        f"└ {ids['second']}": f"weights and moments of {ids['micro']} at step 20",
    }
    text = markdown.to_markdown(family, "heading")
    assert "## Branches" in text
    assert f"└─ {ids['third']}" in text
    html = page.to_html(family, load.checkpoints(family.runs.head(0)), "heading")
    assert f"└─ {ids['third']}" in html
    headers = re.findall(r"<th .*?>(.*?)</th>", html.partition('aria-label="Runs below')[2].partition("</thead>")[0])
    assert headers[:3] == ["run", "val loss", "starts from"]
    alone = family.runs[family.runs["name"] == "alone"]
    assert tree.tree_table(alone).empty
    assert "Branches" not in markdown.to_markdown(analyze(alone, load.metrics(alone), load.samples(alone)), "")


def test_the_tree_shows_bits_per_byte_where_tokenizers_differ(family: Findings) -> None:
    assert "val loss" in tree.tree_table(family.runs)
    others = family.runs.assign(**{"tokenizer.sha256": ["ef" * 32, *family.runs["tokenizer.sha256"][1:]]})
    table = tree.tree_table(others)
    assert "val loss" not in table
    assert table["bits/byte"].tolist()[0] == f"{family.runs.set_index('name').loc['micro', 'val/bpb']:.4f}"


def test_runs_that_share_a_trunk_are_no_replicates_and_the_report_says_so(family: Findings) -> None:
    ids = family.runs.set_index("name")["run"]
    assert family.runs["experiment"].is_unique
    shared = [caveat for caveat in caveats.find_caveats(family.runs) if caveat.startswith("Shared training")]
    for count, parent in {2: "micro", 1: "first"}.items():
        assert sum(f"{count} of these runs started from {ids[parent]}" in caveat for caveat in shared) == 1
    assert len(shared) == 2
    independent = family.runs[family.runs["name"].isin(["alone", "first"])]
    assert not [caveat for caveat in caveats.find_caveats(independent) if caveat.startswith("Shared training")]


def test_a_branch_that_begins_below_a_loss_does_not_count_as_reaching_it(family: Findings) -> None:
    steps = replicates.steps_to_reach(family.metrics, 9.0)
    ids = family.runs.set_index("name")["run"]
    assert steps[ids["alone"]] == steps[ids["micro"]] < 20
    assert steps[[ids["first"], ids["second"], ids["third"]]].isna().all()


def test_branches_of_one_parent_are_labeled_by_their_step(family: Findings) -> None:
    runs = family.runs[family.runs["name"].isin(["first", "second"])]
    runs = runs.assign(name="cooldown", branch=[f"trunk-s0@{step}" for step in (20, 40)])
    assert [label.split()[:2] for label in compare.labels(runs).values()] == [
        ["cooldown", "branch=@20"],
        ["cooldown", "branch=@40"],
    ]
    others = runs.assign(branch=["one-s0@20", "two-s0@20"])
    assert [label.split()[1] for label in compare.labels(others).values()] == ["branch=one-s0@20", "branch=two-s0@20"]
