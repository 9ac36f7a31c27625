"""The data of the page's figures, and the order of its questions, samples and columns."""

from collections.abc import Callable

import pytest

from analysis import load, page, page_data, questions, stats
from analysis.findings import Findings, analyze
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]


def findings() -> Findings:
    runs = load.runs()
    return analyze(runs, load.metrics(runs), load.samples(runs))


def pair(make_run: MakeRun, seeds: int = 3, **changes: object) -> None:
    """Make a base and another experiment; their difference varies with step and seed."""
    for seed in range(seeds):
        make_run("base", seed, val_losses=(11.0, 8.0 + seed, 6.0 + seed))
        other = (11.0, 7.5 + 1.1 * seed, 5.0 + seed**2)
        make_run("other", seed, changes={"model.tied": True} | changes, val_losses=other)


def test_differences_over_steps_are_paired_by_seed_and_end_in_the_tables_difference(make_run: MakeRun) -> None:
    pair(make_run)
    found = findings()
    (curve,) = page_data.difference_curves(found)
    assert (curve["experiment"], curve["how"], curve["seeds"]) == ("other", "paired by seed", 3)
    assert curve["step"] == [0, 10, 20]
    assert curve["mean"] == pytest.approx([0, -0.4, -1 / 3], abs=1e-5)
    middle = stats.paired_by_seed([8, 9, 10], [7.5, 8.6, 9.7])
    assert (curve["low"][1], curve["high"][1]) == pytest.approx((middle.low, middle.high), abs=1e-5)
    row = found.differences.iloc[0]
    assert (curve["mean"][-1], curve["low"][-1], curve["high"][-1]) == pytest.approx(
        (row["mean"], row["low"], row["high"]), abs=1e-5
    )


def test_differences_of_other_batches_are_unpaired_as_in_the_table(make_run: MakeRun) -> None:
    pair(make_run, **{"train.batch_size": 4})
    found = findings()
    (curve,) = page_data.difference_curves(found)
    row = found.differences.iloc[0]
    assert curve["how"] == row["how"] == "unpaired"
    assert (curve["mean"][-1], curve["low"][-1]) == pytest.approx((row["mean"], row["low"]), abs=1e-5)


def test_a_single_seed_has_a_difference_without_an_interval(make_run: MakeRun) -> None:
    pair(make_run, seeds=1)
    (curve,) = page_data.difference_curves(findings())
    assert curve["mean"] == [0.0, -0.5, -1.0]
    assert curve["low"] == curve["high"] == [None] * 3


def test_differences_are_at_steps_where_all_runs_were_measured_on_the_same_windows(make_run: MakeRun) -> None:
    pair(make_run, seeds=2)
    make_run("base", 2, val_losses=(11.0, 9.0))
    make_run("elsewhere", changes={"model.bias": False}, yardstick="bbbbbbbb")
    found = findings()
    (curve,) = page_data.difference_curves(found)
    assert curve["step"] == [0, 10, 20], "the short seed has no part in the comparison"
    other = found.metrics["name"] == "other"
    mixed = found.metrics["val/yardstick"].mask(other & (found.metrics["step"] == 10), "cccccccc")
    changed = analyze(found.runs, found.metrics.assign(**{"val/yardstick": mixed}), found.samples)
    (curve,) = page_data.difference_curves(changed)
    assert curve["step"] == [0, 20], "rows with other windows are left out"


def test_long_curves_of_differences_are_thinned_and_keep_both_ends(make_run: MakeRun) -> None:
    for name, changes in (("base", {}), ("other", {"model.tied": True})):
        make_run(name, changes=changes, val_losses=[9.0 - step / 100 for step in range(250)])
    (curve,) = page_data.difference_curves(findings())
    assert len(curve["step"]) == page_data.MAX_DIFFERENCES
    assert (curve["step"][0], curve["step"][-1]) == (0, 2490)


def test_experiments_with_one_question_are_together_with_an_answer_each(make_run: MakeRun) -> None:
    pair(make_run)
    make_run("third", why="Why not?", changes={"model.bias": False}, val_losses=(11.0, 8.0, 1.0))
    found = findings()
    first, second = questions.questions(found)
    assert (first.text, [found.labels[key] for key in first.experiments]) == ("Why not?", ["third"])
    assert [found.labels[key] for key in second.experiments] == ["other", "base"]
    answers = [answer for _, answer in [*first.answers, *second.answers]]
    assert "third" in answers[0]
    assert "95% interval" in answers[1]
    assert "reference" in answers[2]


def test_few_of_many_questions_and_answers_are_in_the_report(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        make_run(f"a{number}", why=f"Is it {number // 2}?", val_losses=(9.0, 8.0, 6.0 + number))
    monkeypatch.setattr(questions, "MAX_QUESTIONS", 1)
    monkeypatch.setattr(questions, "MAX_ANSWERS", 1)
    found = findings()
    (only,) = questions.questions(found)
    assert (only.text, len(only.experiments), len(only.answers)) == ("Is it 0?", 2, 1)
    html = page.to_html(found, load.checkpoints(found.runs), "")
    assert "1 of 2" in html
    assert "1 more experiments ask this" in html


def test_samples_side_by_side_have_the_same_prompt_step_and_seed(make_run: MakeRun) -> None:
    def add(run: Run, *samples: tuple[int, str]) -> None:
        for step, prompt in samples:
            run.add_sample(step, prompt, f"{run.record.spec.name} {run.record.seed} {step} {prompt}")

    add(make_run("base", 0, val_losses=(11.0, 8.0, 7.0)), (10, "The "), (20, "The "))
    add(make_run("base", 1, val_losses=(11.0, 8.0, 6.0)), (10, "The "), (20, "A "))
    add(make_run("other", 0, changes={"model.tied": True}), (10, "The "))
    add(make_run("lone", 3, changes={"model.bias": False}), (10, "An "), (20, "An "))
    found = findings()
    texts = [sample.text for _, sample in questions.side_by_side(found, found.summary["experiment"].tolist())]
    assert sorted(texts) == ["base 0 10 The ", "lone 3 10 An ", "other 0 10 The "]
    assert questions.side_by_side(found, []) == []


def test_the_settings_that_differ_and_the_loss_are_next_to_the_name(make_run: MakeRun) -> None:
    pair(make_run)
    table = page._runs(findings())
    assert [column.name for column in table["columns"][:4]] == ["run", "model.tied", "val loss", "status"]
    assert table["columns"][1].kind.endswith("setting")
    assert table["in_words"][0] in {"tied=True", "tied=False"}
