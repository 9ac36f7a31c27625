"""Edited code is another experiment: what runs, reports and messages make of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gptlab
from analysis import caveats, compare, load
from gptlab import catalog, parts
from gptlab.cli import app
from gptlab.commands import diff, evaluate, sample
from gptlab.commands.run import Options, resume_run
from gptlab.data.vocabularies import tokenizer_of
from gptlab.errors import BadInputError
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.run import RECORD, Run, load_run
from gptlab.training import fingerprint_cache as fingerprints

SCHEDULE = """
def halved(step, spec):
    return spec.learning_rate / 2
"""


@pytest.fixture
def edit(project: Path) -> Callable[[str, str], None]:
    """Replaces text in the part `experiments.parts.mine`, which the next run imports anew."""
    file = project / "experiments" / "parts" / "mine.py"
    file.parent.mkdir()
    file.write_text(SCHEDULE)

    def replace(old: str, new: str) -> None:
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        parts._import.cache_clear()
        for name in [name for name in sys.modules if name.startswith("experiments.parts")]:
            del sys.modules[name]

    replace("def", "def")
    return replace


@pytest.fixture
def halved(micro: Experiment) -> Experiment:
    """The micro experiment with a schedule of the user's own."""
    changes = {"train.schedule": "experiments.parts.mine:halved", "train.log_every": 2, "train.eval_every": 2}
    return micro.with_changes({**changes, "train.checkpoint_every": 2, "model.n_layer": 1, "data.val_windows": 2})


def resume(run: Run, steps: int, **options: object) -> Run:
    return resume_run(run, Options(steps=steps, wandb="off", **options), Console(stderr=True)).run


def test_an_edit_starts_another_run_and_says_which_file_differs(edit, halved, train, capfd):
    first = train(halved, steps=2).run
    edit("/ 2", "/ 4")
    second = train(halved, steps=2).run
    assert second.id != first.id
    assert second.record.spec.name == first.record.spec.name
    expected = f"new run; differs from {first.id}: different arithmetic (experiments/parts/mine.py)"
    assert expected in capfd.readouterr().err


def test_an_edit_and_a_changed_field_are_both_named(edit, halved, train, capfd):
    first = train(halved, steps=2).run
    edit("/ 2", "/ 4")
    train(halved.with_changes({"train.batch_size": 3}), steps=2)
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("new run; differs from"))
    assert line.startswith(f"new run; differs from {first.id}: train.batch_size 2 → 3, different arithmetic (")


def test_a_changed_field_alone_is_no_change_of_the_code(edit, halved, train, capfd):
    train(halved, steps=2)
    train(halved.with_changes({"train.batch_size": 3}), steps=2)
    assert "arithmetic" not in capfd.readouterr().err


def test_a_run_is_not_resumed_by_code_that_computes_something_else(edit, halved, train):
    run = train(halved, steps=2).run
    before = (run.directory / "attempts.jsonl").read_bytes()
    edit("/ 2", "/ 4")
    with pytest.raises(BadInputError) as refusal:
        resume(run, 4)
    assert "was trained by code that computes something else (experiments/parts/mine.py)" in str(refusal.value)
    assert "--accept-code-change" in str(refusal.value)
    assert (run.directory / "attempts.jsonl").read_bytes() == before


def test_an_accepted_change_of_the_code_is_recorded_and_never_silent(edit, halved, train, capfd):
    run = train(halved, steps=2).run
    edit("/ 2", "/ 4")
    resume(run, 4, accept_code_change=True)
    assert "different arithmetic (experiments/parts/mine.py)" in capfd.readouterr().err
    assert resume(run, 6).history().step == 6  # the newest attempt ran this code
    edit("/ 4", "/ 2")
    with pytest.raises(BadInputError, match="was last trained by other code, which was accepted"):
        resume(run, 8)
    with pytest.raises(BadInputError, match="was last trained by other code, which was accepted"):
        train(halved, steps=8)
    train(halved, steps=6)
    assert (
        "it is that of the first attempt, but not of the last one; `gptlab run` with --fresh" in capfd.readouterr().err
    )
    table = load.runs()
    assert "arithmetic: " in caveats.find_caveats(table)[0]
    assert "differ in code or environment" in caveats.find_caveats(table)[0]


def test_a_refactoring_resumes_with_one_notice(edit, halved, train, capfd):
    train(halved, steps=2)
    edit("spec.learning_rate / 2", "0.5 * spec.learning_rate  # half of it")
    run = train(halved, steps=4).run
    err = capfd.readouterr().err
    assert run.history().step == 4
    assert err.count("changed since the last attempt") == 1
    assert "uncommitted changes; the same arithmetic; bitwise" in err
    edit("0.5 *", "0.50 *")
    train(halved, steps=4)
    assert "the code has changed since then; its arithmetic is the same" in capfd.readouterr().err
    assert not any("differ in code" in caveat for caveat in caveats.find_caveats(load.runs()))


def test_a_run_without_a_fingerprint_is_read_but_not_resumed_silently(micro, train, capfd):
    run = train(micro, steps=2).run
    as_of_an_earlier_version(run)
    assert "by an earlier version of gptlab" in refusal_of(run)
    assert len(load.runs()) == 1
    assert resume(load_run(run.directory), 3, accept_code_change=True).history().step == 3
    assert "different arithmetic (the older run did not record it)" in capfd.readouterr().err


def as_of_an_earlier_version(run: Run) -> None:
    """Remove the fingerprint from a run's records, and give it the id that it had."""
    from gptlab.identity import identify

    record = run.record
    identity = identify(
        record.spec,
        precision=record.precision,
        text_sha256=record.text.sha256,
        tokenizer_sha256=record.tokenizer_sha256,
    )
    document = json.loads(record.to_json())
    for key in ("digest", "fingerprint"):
        del document[key]
    old, new = record.run, identity.run_id(record.seed)
    document |= {"run": new, "identity": identity.content, "wandb_id": record.wandb_id.replace(old, new)}
    for path in run.directory.glob("checkpoints/*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text())["content"]).replace(old, new))
    (run.directory / RECORD).write_text(json.dumps(document))
    rows = [json.loads(line) for line in (run.directory / "attempts.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key not in {"fingerprint", "digest"}} for row in rows]
    (run.directory / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.directory.rename(run.directory.with_name(new))
    object.__setattr__(run, "directory", run.directory.with_name(new))


def refusal_of(run: Run) -> str:
    with pytest.raises(BadInputError) as refusal:
        resume(load_run(run.directory), 3)
    return str(refusal.value)


def test_diff_and_report_put_both_variants_side_by_side(edit, halved, train):
    first = train(halved, steps=2).run
    edit("/ 2", "/ 4")
    second = train(halved, steps=2).run
    found = diff.compare(diff.recorded_side(first), diff.recorded_side(second))
    assert "different arithmetic: these files differ: experiments/parts/mine.py" in found.notes
    table = load.runs()
    labels = compare.labels(table)
    assert len(set(labels.values())) == 2
    assert all(label.startswith("micro arithmetic=") for label in labels.values())
    (caveat,) = [line for line in caveats.find_caveats(table) if line.startswith("Different arithmetic")]
    assert "experiments/parts/mine.py" in caveat
    assert all(run.id.rpartition("-s")[0] in caveat for run in (first, second))


def test_diff_with_the_working_tree_compares_the_code_and_not_the_spec(edit, halved, train, project):
    run = train(halved, steps=2).run
    current = diff.compare(diff.recorded_side(run), diff.current_side(run))
    assert not any("arithmetic" in note for note in current.notes)
    edit("/ 2", "/ 4")
    current = diff.compare(diff.recorded_side(run), diff.current_side(run))
    assert "different arithmetic: these files differ: experiments/parts/mine.py" in current.notes


def test_a_fingerprint_is_computed_once_per_edit(micro, monkeypatch, tmp_path):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    computed = []
    compute = fingerprints.compute
    monkeypatch.setattr(fingerprints, "compute", lambda *arguments: computed.append(1) or compute(*arguments))
    tokenizer = tokenizer_of(micro)
    first = fingerprints.fingerprint(micro, tokenizer)
    assert fingerprints.fingerprint(micro, tokenizer) == first
    assert len(computed) == 1
    (file,) = (tmp_path / "cache" / "fingerprints").iterdir()
    for damaged in (b"", b"{}", file.read_bytes().replace(b'"loss 0"', b'"loss 9"'), b"\xff" * 100):
        file.write_bytes(damaged)
        assert fingerprints.fingerprint(micro, tokenizer) == first
    assert len(computed) == 5
    document = json.loads(file.read_text())
    assert fingerprints._read(file) == first
    monkeypatch.setattr(
        Path, "read_bytes", lambda path, read=Path.read_bytes: read(path) + b" " * (path.suffix == ".py")
    )
    assert fingerprints._read(file) is None  # a file of code has changed
    assert document["digest"]


def test_a_process_with_older_code_uses_no_cache(micro, monkeypatch, tmp_path):
    """The process has imported the older code, as a notebook may have."""
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    started = gptlab.STARTED_NS
    monkeypatch.setattr("gptlab.STARTED_NS", 0)
    tokenizer = tokenizer_of(micro)
    older = fingerprints.fingerprint(micro, tokenizer)
    assert not (tmp_path / "cache" / "fingerprints").exists()
    newer = older.model_copy(update={"numbers": {"loss 0": 1.0}})
    monkeypatch.setattr("gptlab.STARTED_NS", started)
    monkeypatch.setattr(fingerprints, "compute", lambda *arguments: newer)
    assert fingerprints.fingerprint(micro, tokenizer) == newer  # another process puts the edited code into the cache
    monkeypatch.setattr("gptlab.STARTED_NS", 0)
    monkeypatch.setattr(fingerprints, "compute", lambda *arguments: older)
    assert fingerprints.fingerprint(micro, tokenizer) == older


def test_list_and_runs_compute_no_fingerprint(project, micro, train, monkeypatch):
    train(micro, steps=1)
    monkeypatch.setattr(fingerprints, "compute", lambda *arguments: pytest.fail("a fingerprint was computed"))
    monkeypatch.setattr(fingerprints, "fingerprint", lambda *arguments: pytest.fail("a fingerprint was read"))
    for command in ("list", "runs"):
        with pytest.raises(SystemExit) as ended:
            app([command])
        assert not ended.value.code
    assert len(load.runs()) == 1
    assert catalog.experiments()


@pytest.mark.slow
def test_instruction_sets_and_thread_counts_agree_to_twelve_digits():
    """Each environment needs a process of its own."""
    script = (
        "import json, sys\n"
        "from gptlab.spec import Experiment\n"
        "from gptlab.data.vocabularies import tokenizer_of\n"
        "from gptlab.training.fingerprint import compute\n"
        "small = {'model.n_layer': 3, 'model.n_head': 3, 'data.tokenizer': 'bytes', 'model.vocab_size': 256}\n"
        "experiment = Experiment(name='x', why='x').with_changes(small)\n"
        "print(json.dumps(compute(experiment, tokenizer_of(experiment)).model_dump()))\n"
    )
    environments = [
        {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        {"OMP_NUM_THREADS": "2"},
    ]
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=os.environ | each, stdout=subprocess.PIPE)
        for each in environments
    ]
    results = [json.loads(process.communicate()[0]) for process in processes]
    for other in results[1:]:
        assert other["numbers"] == pytest.approx(results[0]["numbers"], rel=1e-12, abs=1e-15)
        assert other["code"] == results[0]["code"]


def test_commits_that_differ_in_other_files_are_no_mixed_code(micro, train, project):
    train(micro, steps=2)
    (project / "unrelated.py").write_text("VALUE = 1\n")
    train(micro, 1, steps=2)
    table = load.runs()
    assert table["diff_sha256"].nunique(dropna=False) == 2
    assert not any("Mixed code" in caveat for caveat in caveats.find_caveats(table))
    other = table["code_files"].str.replace("gptlab/model/gpt.py", "gptlab/model/other.py")
    assert not any("Mixed code" in caveat for caveat in caveats.find_caveats(table.assign(code_files=other)))
    table.loc[0, "code_files"] = table.loc[0, "code_files"].replace('gpt.py": "', 'gpt.py": "0')
    assert any("Mixed code" in caveat for caveat in caveats.find_caveats(table))


BLOCK = """
from torch import nn

class Scaled(nn.Linear):
    def __init__(self, spec):
        super().__init__(spec.n_embd, spec.n_embd)
    def forward(self, x):
        return 2 * super().forward(x)
"""


def test_weights_are_not_evaluated_silently_by_a_changed_model(edit, micro, train, project, caplog):
    (project / "experiments" / "parts" / "mine.py").write_text(BLOCK + SCHEDULE)
    changes = {"model.feed_forward": "experiments.parts.mine:Scaled", "train.schedule": "experiments.parts.mine:halved"}
    run = train(micro.with_changes({**changes, "model.n_layer": 1}), steps=2).run
    edit("/ 2", "/ 4")  # the schedule does not matter here
    assert evaluated(run).not_stored is None
    edit("2 * super", "3 * super")
    changed = f"the model of {run.id} was trained by code that computes something else (experiments/parts/mine.py)"
    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    assert evaluated(run).not_stored == changed
    assert {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()} == before
    sample.sample(run, None, "the", 1, max_tokens=2, temperature=1.0, top_k=0, seed=0)
    assert caplog.messages == [changed]
    gptlab.load(str(run.directory))
    assert caplog.messages == [changed, changed]


def evaluated(run: Run):
    return evaluate.evaluate_run(run, step=None, text=None, device="cpu", console=Console(stderr=True))


def test_a_new_run_is_compared_with_the_one_that_is_most_like_it(edit, halved, train, capfd):
    first = train(halved, steps=2).run
    train(halved.with_changes({"train.batch_size": 3}), steps=2)
    edit("/ 2", "/ 4")
    train(halved, steps=2)
    assert f"differs from {first.id}: different arithmetic (experiments/parts/mine.py)\n" in capfd.readouterr().err


def test_a_new_run_begins_although_the_part_of_an_older_one_is_gone(edit, halved, train, project, micro):
    train(halved, steps=2)
    (project / "experiments" / "parts" / "mine.py").unlink()
    parts._import.cache_clear()
    assert train(micro, steps=1).run.history().step == 1


def test_a_module_of_the_project_that_a_part_imports_belongs_to_the_code(edit, halved, train, project):
    (project / "rates.py").write_text("def rate(base): return base / 2\n")
    edit("def halved", "from rates import rate\n\ndef halved")
    edit("spec.learning_rate / 2", "rate(spec.learning_rate)")
    first = train(halved, steps=2).run
    assert first.record.fingerprint
    assert {"rates.py", "experiments/parts/mine.py"} <= first.record.fingerprint.files.keys()
    sys.modules.pop("rates", None)
