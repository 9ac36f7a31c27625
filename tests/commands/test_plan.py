"""`gptlab plan` says what a run needs, and what it does not know."""

import json

import pytest

from gptlab import catalog
from gptlab.commands.plan import make_plan, render
from gptlab.spec import Experiment
from gptlab.terminal.text import format_bytes
from gptlab.training.footprint import Layout, footprint


def printed(plan, capsys) -> str:
    render(plan)
    return capsys.readouterr().out


def baseline(**changes: object) -> Experiment:
    return catalog.find("baseline").with_changes(changes)


@pytest.mark.parametrize(("gpus", "shard"), [(None, False), (4, False), (4, True)])
def test_each_column_of_the_table_adds_up(gpus, shard, capsys):
    plan = make_plan(baseline(), gpus, "auto", shard=shard)
    columns = [*plan.needs.phases.values(), plan.needs.peak]
    (total,) = [line for line in printed(plan, capsys).splitlines() if line.startswith("total")]
    sums = [format_bytes(sum(column.values())) for column in columns]
    assert total.split()[1:] == " ".join(sums).split()
    assert plan.needs.total == sum(plan.needs.peak.values())


def test_the_document_has_the_facts_in_bytes():
    plan = make_plan(baseline(), 2, "auto", shard=False)
    document = json.loads(json.dumps(plan.document()))
    assert document["device"] == "cuda"
    assert document["precision"] == "bfloat16"
    assert document["parameters"] == 163_037_184
    assert document["memory"]["total"] == footprint(baseline(), Layout("cuda", "bfloat16", 2)).total
    assert document["tokens_per_step"] == 400
    assert document["tokens"] == 40_000
    assert document["training_flops_per_token"] == 3 * 250_750_464
    assert document["problem"] is None


def test_a_batch_that_the_gpus_do_not_divide_is_planned_with_the_next_one_that_fits(capsys):
    plan = make_plan(baseline(), 8, "auto", shard=False)
    first, *_ = printed(plan, capsys).splitlines()
    assert "use 1, 2 or 4 processes, or --set train.batch_size=8" in first
    assert plan.experiment.train.batch_size == plan.document()["batch_size"] == 8
    assert plan.tokens_per_step == 800


def test_without_gpus_and_without_a_gpu_the_run_is_on_the_cpu(capsys):
    out = printed(make_plan(baseline(), None, "auto", shard=False), capsys)
    assert "1 CPU process · float32 · 4 sequences of 100 tokens on each" in out
    assert "traffic" not in out


def test_what_is_not_counted_is_printed(capsys):
    norm, lion = "experiments.parts.rms_norm:RMSNorm", "experiments.parts.lion:lion"
    out = printed(
        make_plan(baseline(**{"model.norm": norm, "train.optimizer": lion}), None, "cpu", shard=False), capsys
    )
    assert f"not counted activations of the blocks, which model.norm {norm} changes" in out
    assert f"not counted the state of train.optimizer {lion}" in out
    assert "optimizer.safetensors" not in out
