"""The sentences that answer the questions, and the commands that they advise."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from analysis import load, verdicts
from analysis.findings import Findings, analyze
from analysis.sentences import headlines
from gptlab.sequential import design
from gptlab.tracking import decisions
from gptlab.tracking.decision_sentences import sentence
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]


def findings(**options: Any) -> Findings:
    runs = load.runs()
    return analyze(runs, load.metrics(runs), load.samples(runs), **options)


def experiment(make_run: MakeRun, name: str, losses: list[float], **options: Any) -> str:
    """Make a run for each final loss, with the seeds 0, 1, …; return their `NAME-HASH8`."""
    runs = [make_run(name, seed, val_losses=(11.0, 8.0, loss), **options) for seed, loss in enumerate(losses)]
    return runs[0].id.rpartition("-s")[0]


def test_each_question_is_answered_with_interval_p_value_and_verdict(make_run: MakeRun) -> None:
    base = experiment(make_run, "base", [6.0, 6.1, 6.2])
    better = experiment(make_run, "better", [5.5, 5.75, 5.6], changes={"model.tied": True})
    worse = experiment(make_run, "worse", [7.0, 7.11, 7.2], changes={"model.n_layer": 1})
    other = experiment(make_run, "other", [6.06, 6.1, 6.17], changes={"model.bias": False})
    found = findings()
    sentences = verdicts.verdicts(found)
    assert set(sentences) == {base, better, worse, other}
    assert list(sentences)[2:] == [other, base], "the clearest first, the reference last"
    assert sentences[base].startswith("The reference: 6.1000 nats per token after 20 steps (mean of 3 seeds, 95% int")
    row = found.differences.loc[other]
    half, low, high = (row["high"] - row["low"]) / 2, f"−{-row['low']:.4f}", f"+{row['high']:.4f}"
    assert sentences[other] == (
        f"other − base = +0.0100 ± {half:.4f} nats per token (95% interval {low} to {high}), "
        f"p = {row['p_holm']:.3f} after correction for 3 comparisons, 3 seeds paired: could be chance."
    )
    p, corrected = found.differences.loc[better, ["p", "p_holm"]]
    assert (f"{p:.3f}", f", p = {corrected:.3f} " in sentences[better]) == ("0.022", True), "corrected"
    assert sentences[better].endswith(", 3 seeds paired: significantly better.")
    assert sentences[worse].endswith(", 3 seeds paired: significantly worse.")
    answers = headlines(found)
    assert sorted(answers[:3]) == sorted(sentences[key] for key in (better, worse, other))
    assert answers[3].startswith("Lowest validation loss: better, 5.6167")


def test_a_question_is_answered_also_if_the_reference_is_the_lowest(make_run: MakeRun) -> None:
    experiment(make_run, "base", [6.0, 6.1, 6.2])
    experiment(make_run, "other", [6.1, 6.3, 6.2], changes={"model.bias": False})
    answer, lowest = headlines(findings())
    assert re.fullmatch(
        r"other − base = \+0\.1000 ± 0\.\d{4} nats .*, p = 0\.\d{3}, 3 seeds paired: could be .*", answer
    )
    assert lowest.startswith("Lowest validation loss: base")


def test_a_single_seed_names_the_commands_that_add_seeds(make_run: MakeRun) -> None:
    experiment(make_run, "tiny", [6.0])
    experiment(make_run, "tiny", [5.9], changes={"train.learning_rate": 1e-2, "train.betas": [0.8, 0.9]})
    experiment(make_run, "other", [5.8, 5.9], changes={"data.text": "my text.txt"})
    answers = dict(zip(("other", "tiny"), sorted(headlines(findings())[:2]), strict=True))
    command = "`gptlab run tiny --seeds 0,1,2 --steps 20 --set train.learning_rate={} --set 'train.betas={}'`"
    assert answers["tiny"] == (
        "tiny learning_rate=0.01 betas=[0.8, 0.9] − tiny learning_rate=0.0003 betas=[0.9, 0.95] = −0.1000 nats per "
        "token, without an interval: one seed cannot show whether this is chance; find out with "
        f"{command.format(0.0003, '[0.9, 0.95]')} and {command.format(0.01, '[0.8, 0.9]')}."
    )
    assert "`gptlab run other --seeds 0,1,2 --steps 20 --text 'my text.txt'`" in answers["other"]


def test_seeds_are_added_only_where_they_are_missing(make_run: MakeRun) -> None:
    experiment(make_run, "base", [6.0, 6.1, 6.2, 6.3])
    experiment(make_run, "other", [6.1], changes={"model.bias": False})
    (answer, _) = headlines(findings())
    assert answer.endswith("find out with `gptlab run other --seeds 0,1,2,3 --steps 20`.")


def test_without_a_seed_in_common_the_difference_is_unknown(make_run: MakeRun) -> None:
    make_run("base", 1)
    make_run("other", 4, changes={"model.bias": False})
    answer = headlines(findings())[0]
    assert answer.startswith("other − base is unknown: they have no seed in common; find out with `gptlab run base ")
    assert answer.count("--seeds 0,1,4") == 2


def test_a_branch_is_never_advised_to_start_from_scratch(make_run: MakeRun) -> None:
    experiment(make_run, "base", [6.0])
    experiment(make_run, "other", [6.1], changes={"model.bias": False})
    runs = load.runs()
    runs["initial_weights"] = ["ab" * 32 if name == "other" else None for name in runs["name"]]
    answer = headlines(analyze(runs, load.metrics(runs), load.samples(runs)))[0]
    assert "gptlab run other" not in answer
    assert "the command that started other-" in answer


def test_a_diverged_seed_is_no_number_but_a_verdict(make_run: MakeRun) -> None:
    experiment(make_run, "base", [6.0, 6.1])
    experiment(make_run, "other", [6.1], changes={"model.bias": False})
    make_run("other", 1, changes={"model.bias": False}, val_losses=(11.0, 8.0), outcome="diverged")
    answer, lowest = headlines(findings())
    assert answer == "other − base is infinite or undefined, because a seed diverged: it diverged."
    assert lowest.startswith("Lowest validation loss: base")


def test_an_experiment_without_a_value_at_that_step_says_where_it_can_be_compared(make_run: MakeRun) -> None:
    experiment(make_run, "base", [6.0])
    make_run("other", changes={"model.bias": False}, val_losses=(11.0, 8.0))
    answer = headlines(findings(at=20))[0]
    assert answer == "other − base is unknown: 1 unfinished; no run reached the budget; compare them with --at 10."


def test_many_comparisons_are_counted(make_run: MakeRun) -> None:
    experiment(make_run, "base", [6.0, 6.1, 6.2])
    for layers in range(3, 11):
        losses = [5.0, 5.11, 5.2] if layers == 10 else [6.1 + layers / 100, 6.1, 6.1]
        experiment(make_run, f"deep-{layers}", losses, changes={"model.n_layer": layers})
    answers = headlines(findings())
    assert len(answers) == verdicts.MAX_VERDICTS + 2
    assert answers[0].startswith("deep-10 − base")
    assert answers[-2] == "3 more comparisons: 3 could be chance."


def test_the_reference_can_be_chosen(make_run: MakeRun) -> None:
    base = experiment(make_run, "base", [6.0, 6.1, 6.2])
    other = experiment(make_run, "other", [6.1, 6.3, 6.2], changes={"model.bias": False})
    found = findings(against=other)
    assert (found.reference, list(found.differences.index)) == (other, [base])
    assert headlines(found)[0].startswith("base − other = −0.1000")


def decide(reference: str, experiment: str, *differences: float, steps: int = 20, comparisons: int = 1) -> str:
    """Store a decision and return its sentence."""
    plan = design(0.02, max_seeds=3, comparisons=comparisons)
    decision = decisions.new_decision(reference, experiment, steps, plan)
    for difference in differences:
        decision = decision.with_pair(6.0, 6.0 + difference)
    decisions.store(decision)
    return sentence(decision)


def test_a_stored_decision_is_the_headline_of_its_pair_and_comes_first(make_run: MakeRun) -> None:
    base = experiment(make_run, "base", [6.0, 6.1, 6.2])
    other = experiment(make_run, "other", [6.06, 6.1, 6.17], changes={"model.bias": False})
    clear = experiment(make_run, "clear", [5.5, 5.6, 5.7], changes={"model.tied": True})
    text = decide(other, base, -0.1, -0.101, -0.102)
    found = findings(decisions=decisions.all_decisions())
    answers = headlines(found)
    assert answers[0].startswith("Decided by `gptlab decide`: other is worse than base by 0.101 nats/token, 95% interv")
    assert answers[0].endswith(", 3 seeds.")
    assert "base is better than other" in text
    assert verdicts.verdicts(found)[other] == answers[0]
    assert answers[1].startswith("clear − base = ")
    assert clear in found.differences.index


def test_decisions_that_do_not_share_the_error_are_counted(make_run: MakeRun) -> None:
    base = experiment(make_run, "base", [6.0, 6.1, 6.2])
    one = experiment(make_run, "one", [6.0, 6.1, 6.2], changes={"model.bias": False})
    two = experiment(make_run, "two", [6.0, 6.1, 6.2], changes={"model.tied": True})
    equal = decide(base, one, 0.001, -0.001, 0.0)
    worse = decide(base, two, 0.1, 0.101, 0.102, comparisons=2)
    answers = headlines(findings(decisions=decisions.all_decisions()))
    assert f"Decided by `gptlab decide`: {equal} (as one of 1, but there are 2 here)." in answers
    assert f"Decided by `gptlab decide`: {worse}." in answers


@pytest.mark.parametrize(
    ("differences", "steps"), [((0.1, 0.101, 0.102), 10), ((0.5, -0.5), 20), ((0.1, float("inf")), 20)]
)
def test_a_decision_at_another_step_or_without_an_end_is_no_headline(
    make_run: MakeRun, differences: tuple[float, ...], steps: int
) -> None:
    base = experiment(make_run, "base", [6.0, 6.1, 6.2])
    other = experiment(make_run, "other", [6.06, 6.1, 6.17], changes={"model.bias": False})
    plan = decisions.new_decision(base, other, steps, design(0.02))
    for difference in differences:
        plan = plan.with_pair(6.0, 6.0 + difference if difference < 1 else None)
    decisions.store(plan)
    assert headlines(findings(decisions=decisions.all_decisions()))[0].startswith("other − base = ")


@pytest.fixture
def two_variants(make_run: MakeRun) -> list[Run]:
    return [make_run("tiny"), make_run("tiny", changes={"model.tied": True}), make_run("tiny-relu")]
