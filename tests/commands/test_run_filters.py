"""Which runs `gptlab runs` lists, in which order, and with which of their settings."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from gptlab import cli
from gptlab.commands.list_runs import list_runs, render, render_space
from gptlab.commands.run_filters import Filters, natural_order
from gptlab.commands.run_settings import varied_settings
from gptlab.errors import BadInputError
from gptlab.spec import parse_conditions
from gptlab.terminal.tables import GAP, Column, fitting
from gptlab.tracking.run import Run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`runs("--sort", "step")` → the ids that `gptlab runs --json` lists with these options, or its error."""

    def call(*options: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["gptlab", "runs", *options, "--json"])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return [each["run"] for each in json.loads(out)] if ended.value.code == 0 else err

    return call


def test_seeds_are_in_the_order_of_their_numbers(make_run, runs):
    made = [make_run(seed).id for seed in (10, 2, 1)]
    assert runs() == made[::-1]


def test_numbers_in_a_text_sort_by_value():
    words = ["s10", "s2", "a", "s2b", "", "s"]
    assert sorted(words, key=natural_order) == ["", "a", "s", "s2", "s2b", "s10"]


def test_filters_select_by_name_status_tag_and_settings(make_run, runs):
    slow = make_run(**{"name": "tiny-slow", "train.learning_rate": 1e-3, "model.bias": False}).id
    failed = make_run(outcome="failed", tags=("night",), name="tiny-fast").id
    other = make_run(tags=("night", "long")).id
    assert runs("--name", "tiny*") == [failed, slow]
    assert runs("--name", "micro") == [other]
    assert runs("--status", "failed") == [failed]
    assert runs("--tag", "night") == [other, failed]
    assert runs("--tag", "night", "--tag", "long") == [other]
    assert runs("--where", "train.learning_rate=0.001") == [slow]
    assert runs("--where", "train.learning_rate=1e-3", "--where", "model.bias=false") == [slow]
    assert runs("--where", "train.learning_rate=1e-3", "--where", "model.bias=true") == []
    assert runs("--where", "train.precision=float32", "--name", "micro") == [other], "as it was resolved"
    assert runs("--where", "train.horizon=none", "--where", "train.betas=[0.9,0.95]") == [other, failed, slow]


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        ("train.learning_rat=1", "there is no spec field 'train.learning_rat'; did you mean 'train.learning_rate'?"),
        ("learning_rate=fast", "did you mean 'train.learning_rate'?"),
        ("train.learning_rate=fast", "--where train.learning_rate: input should be a valid number"),
        ("train.learning_rate", "--where expects KEY=VALUE"),
        ("model.n_layer=0", "greater than or equal to 1"),
        ("train.betas=0.9", "--where train.betas=0.9: the value is not a JSON list"),
        ("name=tiny", "--where takes fields of model, data and train, not 'name'; use --name instead"),
    ],
)
def test_a_condition_that_no_run_can_fulfil_is_an_error(condition, answer):
    with pytest.raises(BadInputError) as raised:
        parse_conditions([condition], "--where")
    assert answer in str(raised.value)


def test_runs_can_be_sorted_by_any_column_and_field(make_run, runs):
    good, bad = make_run(1, loss=1.5).id, make_run(2, loss=2.5).id
    diverged, unknown = make_run(3, loss=float("inf")).id, make_run(4, **{"train.learning_rate": 1e-4}).id
    assert runs("--sort", "val_loss") == [good, bad, diverged, unknown]
    assert runs("--sort", "train.learning_rate")[0] == unknown
    assert runs("--sort", "age") == [unknown, diverged, bad, good]
    assert runs("--sort", "run") == sorted([good, bad, diverged, unknown])
    for key in ("status", "step", "bits_per_byte", "trained_for", "disk", "train.horizon", "data.text"):
        assert len(runs("--sort", key)) == 4


def test_an_unknown_column_to_sort_by_names_the_choices(make_run, runs):
    answer = runs("--sort", "loss")
    assert answer.startswith("error: --sort is 'loss'; choose run, status, step, val_loss,")
    assert "a field of a spec such as train.learning_rate" in answer


def test_settings_that_differ_are_columns_and_those_that_do_not_are_not(make_run, capfd):
    make_run(0, **{"train.learning_rate": 1e-3})
    make_run(1, **{"model.tied": True})
    assert [each.facts["varied"] for each in list_runs(sort="model.tied")] == [
        {"model.tied": False, "train.learning_rate": 1e-3},
        {"model.tied": True, "train.learning_rate": 1e-2},
    ]
    capfd.readouterr()
    render(list_runs(Filters(where={"model.tied": True})))
    assert "tied" not in capfd.readouterr().out, "of one run, nothing differs"
    render(list_runs(sort="model.tied"), tree=False)
    heading, first, second = capfd.readouterr().out.splitlines()
    assert heading.split()[:4] == ["run", "tied", "learning_rate", "status"]
    assert first.split()[1:3] == ["false", "0.001"]
    assert second.split()[1:3] == ["true", "0.01"]


def test_values_are_as_short_as_they_can_be_without_becoming_equal(make_run):
    make = make_run

    def values(key: str, *runs: Run) -> list[str]:
        return varied_settings([run.record for run in runs])[key]

    assert values("data.text", make(text="a/one.txt"), make(text="two.txt", sha256="12" * 32)) == [
        "one.txt",
        "two.txt",
    ]
    assert values("data.text", make_run(text="a/x", sha256="34" * 32), make_run(text="x", sha256="56" * 32)) == [
        "34343434",
        "56565656",
    ]


def test_runs_that_differ_only_in_code_are_told_apart_and_others_do_not_show_it(make_run):
    first, second = make_run(code=1.0), make_run(code=2.0)
    assert list(varied_settings([first.record, second.record])) == ["code"]
    assert list(varied_settings([first.record, make_run(code=3.0, **{"model.tied": True}).record])) == ["model.tied"]


def test_columns_that_do_not_fit_are_left_out_by_rank(monkeypatch, capfd):
    columns = [Column("run", ["a" * 10]), Column("lr", ["0.1"], rank=1), Column("age", ["5 h"], rank=3)]
    columns += [Column("size", ["12"], right=True, rank=2)]
    for width, dropped in ((30, []), (23, ["age"]), (17, ["age", "size"]), (5, ["lr", "age", "size"])):
        table, left_out = fitting(columns, width)
        assert left_out == dropped
        assert len(table.columns) == 4 - len(dropped)
        assert not dropped or sum(c.width + GAP for c in columns if c.heading not in dropped) - GAP <= max(width, 10)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_folded_and_what_is_left_out_is_named(make_run, monkeypatch, capfd, width):
    changes = {"train.learning_rate": 1e-3, "model.tied": True, "model.bias": False, "train.weight_decay": 0.2}
    for key, value in changes.items():
        make_run(**{key: value})
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    render(list_runs())
    out = capfd.readouterr().out
    plain = out.replace("\x1b[2m", "").replace("\x1b[0m", "")
    lines = plain.splitlines()
    assert all(len(line) <= width for line in lines)
    shown = lines[0] + " ".join(lines[5:])
    for heading in ("bias", "tied", "learning_rate", "weight_decay", "training loss", "age", "trained for", "disk"):
        assert heading in shown


def test_the_space_that_runs_take_and_what_frees_it_is_listed(train, micro, capfd):
    run = train(micro.with_changes({"train.snapshots": True}), steps=12).run
    train(micro, seed=1, steps=1).run.move_to_trash()
    capfd.readouterr()
    (summary,) = list_runs()
    render_space([summary])
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].startswith("1 run takes ")
    commands = ("gc --optimizer  ", "gc --snapshots  ", "gc              ")
    assert [command in line for command, line in zip(commands, lines[2:], strict=True)] == [True] * 3
    states = sum(path.stat().st_size for path in run.directory.rglob("optimizer.safetensors"))
    assert summary.facts["removable_bytes"]["optimizer"] == states > 0
    assert summary.facts["disk_bytes"] == sum(p.stat().st_size for p in run.directory.rglob("*") if p.is_file())
