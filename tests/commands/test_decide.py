"""`gptlab decide`: paired seeds are added until the difference of two experiments is decided."""

import json
import math
from collections.abc import Callable

import pytest
from scipy.special import stdtrit

from analysis.stats import paired_by_seed
from gptlab.commands import decide as command
from gptlab.commands.decide import Outcome, Request, decide, render
from gptlab.commands.run import Options, Result, run_experiment
from gptlab.errors import BadInputError, DivergedError, GptlabError
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking import decisions
from gptlab.tracking.metrics import MetricsFile, stream_metrics
from gptlab.tracking.records import TextRecord
from gptlab.tracking.run import all_runs, create_run
from gptlab.training.plan import plan

OFF = Options(wandb="off", next_commands=False)
Losses = Callable[[str, int], float]


@pytest.fixture(scope="module")
def base(micro: Experiment) -> Experiment:
    changes = {"train.steps": 2, "train.eval_every": 2, "data.tokenizer": "bytes", "model.vocab_size": 256}
    return micro.with_changes(changes)


@pytest.fixture(scope="module")
def other(base: Experiment) -> Experiment:
    return base.vary("other", why="Does it matter?", **{"train.learning_rate": 1e-5})


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Losses], list[str]]:
    """`losses(lambda name, seed: 5.0)` records runs with these losses instead of training; returns those, by id."""

    def install(loss: Losses, yardstick: str = "aaaaaaaa") -> list[str]:
        trained: list[str] = []

        def record(experiment, seed, options, console):
            planned = plan(experiment, seed)
            text = TextRecord(source="words.txt", path="/words.txt", bytes=1, sha256=planned.text.sha256)
            run = create_run(experiment, planned.identity, seed, "float32", text, fingerprint=planned.fingerprint)
            trained.append(run.id)
            value, number = loss(experiment.name, seed), run.start_attempt(steps=2)
            if math.isfinite(value):
                with MetricsFile(run.directory, 0) as metrics:
                    metrics.append({"step": 2, "val/loss": value, "val/yardstick": yardstick})
            run.end_attempt(number, 2, "complete" if math.isfinite(value) else "diverged")
            if not math.isfinite(value):
                raise DivergedError(f"{run.id} diverged at step 2")
            return Result(run)

        monkeypatch.setattr(command, "run_experiment", record)
        return trained

    return install


def wide(name: str, seed: int) -> float:
    """Losses whose differences spread by one, with a mean of zero."""
    return 5.0 + (name == "other") * (-1) ** seed


def sentence(outcome: Outcome) -> str:
    return outcome.document()["sentence"]


def test_two_experiments_that_differ_are_decided_by_real_runs_and_asking_again_trains_nothing(
    base, other, capfd, monkeypatch
):
    slower, margin = other.with_changes({"train.steps": 10}), Request(0.02)
    faster = base.with_changes({"train.steps": 10, "train.eval_every": 10})
    slower = slower.with_changes({"train.eval_every": 10})
    outcome = decide(faster, slower, margin, OFF)
    render(outcome, Console())
    runs = {run.id: run.history().last("val/loss") for run in all_runs()}
    seeds = len(outcome.decision.pairs)
    assert 3 <= seeds <= 10
    assert len(runs) == 2 * seeds
    pairs = [(pair.reference, pair.experiment) for pair in outcome.decision.pairs]
    names = [
        f"{key}-s{seed}" for seed in range(seeds) for key in (outcome.decision.reference, outcome.decision.experiment)
    ]
    assert [loss for pair in pairs for loss in pair] == [runs[name] for name in names]
    look, mean = outcome.decision.look, paired_by_seed(*zip(*pairs, strict=True)).mean
    assert look.mean == pytest.approx(mean)
    assert sentence(outcome) == (
        f"other is worse than micro by {mean:.3f} nats/token, 95% interval {look.low:.3f} to {look.high:.3f}, "
        f"{seeds} seeds"
    )
    out = capfd.readouterr().out
    assert out.endswith(f"\n{sentence(outcome)}\n")
    assert out.count("95% interval") == 1 + seeds - 2, "one line for each look, and the sentence"
    monkeypatch.setattr(command, "run_experiment", None)
    assert decide(faster, slower, margin, OFF) == outcome
    backwards = decide(slower, faster, margin, OFF)
    assert sentence(backwards) == sentence(outcome).replace("other is worse than micro", "micro is better than other")


def test_two_experiments_that_hardly_differ_are_practically_equal_by_real_runs(base):
    near = base.vary("near", why="Does it matter?", **{"train.learning_rate": 1.0001e-2})
    outcome = decide(base, near, Request(0.02), OFF)
    assert outcome.exit_code == 0
    assert sentence(outcome) == (
        "near is practically equal to micro: difference 0.000, 95% interval 0.000 to 0.000, within ±0.02, 3 seeds"
    )


def test_runs_that_exist_count_at_the_step_of_the_decision(base, other, train, losses):
    longer = [train(each, seed=0, steps=4).run for each in (base, other)]
    trained = losses(wide)
    outcome = decide(base, other, Request(0.02, max_seeds=3), OFF)
    assert not set(trained) & {run.id for run in longer}
    at_step_2 = [next(row["val/loss"] for row in stream_metrics(run.directory) if row["step"] == 2) for run in longer]
    assert [outcome.decision.pairs[0].reference, outcome.decision.pairs[0].experiment] == at_step_2


def test_a_longer_run_without_a_loss_at_that_step_is_named(base, other, train):
    train(base, seed=0, steps=4)
    with pytest.raises(BadInputError, match=r"-s0 was trained further and has no validation loss at step 1; choose"):
        decide(*(each.with_changes({"train.steps": 1}) for each in (base, other)), Request(0.02), OFF)


def test_the_interval_narrows_until_the_budget_is_spent(base, other, losses, capfd):
    trained = losses(wide)
    outcome = decide(base, other, Request(0.02, max_seeds=6), OFF)
    assert len(trained) == 12
    assert outcome.exit_code == 0
    assert sentence(outcome).startswith("other and micro are undecided: difference 0.000, 95% interval −")
    assert sentence(outcome).endswith(", 6 seeds, the whole budget")
    out = capfd.readouterr().out
    widths = [look.high - look.low for look in outcome.decision.looks()]
    assert widths == sorted(widths, reverse=True)
    assert [out.count(f"  {seeds} seeds     difference") for seeds in (2, 3, 4, 5, 6)] == [0, 1, 1, 1, 1]
    assert "cannot be reached within the budget; it takes more than 50 seeds" in out


@pytest.mark.parametrize(
    ("margin", "answer"), [(2.0, "the margin of 2 can be reached within the budget"), (0.7, "it takes about 24 seeds")]
)
def test_after_three_seeds_it_says_whether_the_margin_can_be_reached(base, other, losses, capfd, margin, answer):
    losses(wide)
    decide(base, other, Request(margin), OFF)
    out = capfd.readouterr().out
    half = stdtrit(19, 1 - 0.00775 / 2) * math.sqrt(4 / 3) / math.sqrt(20)
    assert f"with the spread of these seeds, 20 seeds give ±{half:.3f}: the margin" in out
    assert answer in out


def test_a_decision_that_was_stopped_continues_with_its_budget(base, other, losses, train, monkeypatch, signal_at_step):
    """A real SIGINT stops a real run; the other runs are recorded."""
    real = train(base, seed=9).run.history()
    losses(wide, yardstick=next(row["val/yardstick"] for row in real.sample_rows()))
    record, seeds = command.run_experiment, []

    def run(experiment, seed, options, console):
        seeds.append((experiment.name, seed))
        if (experiment.name, seed) != ("other", 4):
            return record(experiment, seed, options, console)
        hooks = signal_at_step(1) if seeds.count(("other", 4)) == 1 else None
        return run_experiment(experiment, seed, options, console, None, hooks)

    monkeypatch.setattr(command, "run_experiment", run)
    stopped = decide(base, other, Request(0.02, max_seeds=6), OFF)
    assert stopped.exit_code == 130
    assert "not decided yet: difference" in sentence(stopped)
    assert sentence(stopped).endswith(", 4 of at most 6 seeds")
    again = decide(base, other, Request(0.02), OFF)
    assert again.decision.verdict != "open"
    assert (again.decision.max_seeds, again.decision.created) == (6, stopped.decision.created), "the stored budget"
    assert again.decision.pairs[:4] == stopped.decision.pairs
    assert [seeds.count(name) for name in (("micro", 4), ("other", 3), ("other", 4))] == [1, 1, 2]


def test_another_budget_or_margin_is_a_new_decision_and_says_so(base, other, losses, capfd):
    trained = losses(wide)
    first = decide(base, other, Request(0.02, max_seeds=4), OFF)
    capfd.readouterr()
    raised = decide(base, other, Request(0.02, max_seeds=5), OFF)
    out = capfd.readouterr().out
    assert "note: this is a new decision: the budget and the margin of a decision are fixed at its first look" in out
    assert "with --margin 0.02 --max-seeds 4 --comparisons 1, was undecided after 4 seeds" in out
    assert raised.decision.level < first.decision.level
    assert raised.decision.earlier == (first.decision.summary(),)
    assert sentence(raised).endswith("5 seeds, the whole budget, decision 2 on this pair")
    assert len(trained) == 10, "runs that exist are used again"
    third = decide(base, other, Request(0.03), OFF)
    assert (third.decision.number, third.decision.max_seeds) == (3, 5)


def test_a_diverged_seed_decides_nothing_and_no_other_takes_its_place(base, other, losses):
    trained = losses(lambda name, seed: math.inf if (name, seed) == ("other", 1) else wide(name, seed))
    outcome = decide(base, other, Request(0.02), OFF)
    assert outcome.exit_code == 3
    assert len(trained) == 4
    assert sentence(outcome) == (
        "other and micro are undecided: other diverged with seed 1, and a diverged seed decides nothing"
    )
    assert decide(base, other, Request(0.02), OFF) == outcome


def test_decisions_under_one_headline_have_wider_intervals(base, other, losses):
    losses(wide)
    alone = decide(base, other, Request(0.02, max_seeds=3), OFF)
    shared = decide(base, other, Request(0.02, max_seeds=3, comparisons=5), OFF)
    assert (alone.decision.level, shared.decision.level) == (0.05, 0.01)
    assert "simultaneous 95% interval of 5 decisions" in sentence(shared)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"train.batch_size": 4}, "differ in train.batch_size (2 and 4), so their batches differ"),
        ({"train.sequence_length": 8}, "differ in train.sequence_length (16 and 8)"),
        ({"data.val_windows": 3}, "differ in data.val_windows (4 and 3), so they are validated on different windows"),
        ({"data.val_fraction": 0.3}, "differ in data.val_fraction"),
        (
            {"data.tokenizer": "gpt2", "model.vocab_size": 50257},
            "have different tokenizers (bytes and gpt2), so their losses per token are not comparable",
        ),
        ({"train.steps": 4}, "differ in train.steps (2 and 4), so they are compared at different steps"),
        ({"data.text": "other.txt"}, "words.txt and other.txt); give both the same with --text TEXT"),
        ({"train.learning_rate": 1e-2}, "micro and other compute the same; name two experiments that differ"),
    ],
)
def test_experiments_that_are_no_pairs_are_refused_before_anything_is_written(
    base, other, changes, answer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("the other text is another text\n" * 200)
    with pytest.raises(BadInputError) as raised:
        decide(base, other.with_changes(changes), Request(0.02), OFF)
    assert answer in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_losses_of_different_yardsticks_are_never_compared(base, other, losses):
    losses(wide)
    for each in (base, other):
        command.run_experiment(each, 0, OFF, None)
    (run,) = (run for run in all_runs() if run.record.spec.name == "other")
    path = run.directory / "metrics.jsonl"
    path.write_text(path.read_text().replace("aaaaaaaa", "bbbbbbbb"))
    with pytest.raises(GptlabError, match="validated on different windows with seed 0 \\(yardsticks aaaaaaaa and bbb"):
        decide(base, other, Request(0.02), OFF)


def test_the_command_prints_one_json_document(project, micro, losses, monkeypatch, capfd):
    from gptlab import cli

    losses(wide)
    file = project / "experiments" / "micro.py"
    file.write_text(file.read_text() + "other = micro.vary('other', why='?', **{'train.learning_rate': 1e-5})\n")
    settings = ["--steps", "2", "--set", "train.eval_every=2", "--max-seeds", "3", "--json"]
    monkeypatch.setattr("sys.argv", ["gptlab", "decide", "micro", "other", "--margin", "0.02", *settings])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    document = json.loads(capfd.readouterr().out)
    assert (document["verdict"], document["seeds"], document["max_seeds"]) == ("undecided", 3, 3)
    assert document["low"] < 0 < document["high"]
    assert decisions.all_decisions()[0].model_dump(mode="json").items() <= document.items()
