import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.errors import AmbiguousRunError, BadInputError, GptlabError
from gptlab.identity import identify
from gptlab.tracking.run import RECORD, TextRecord, all_runs, create_run, find_run, load_run

TEXT = TextRecord(source="t", path="/t", bytes=1, sha256="abc")


@pytest.fixture
def new_run(micro):
    def make(seed=0, **changes):
        experiment = micro.with_changes(changes)
        identity = identify(experiment, precision="float32", text_sha256="abc", tokenizer_sha256="def")
        return create_run(experiment, identity, seed, "float32", TEXT)

    return make


def test_a_run_is_read_back_as_it_was_created(new_run):
    run = new_run()
    assert load_run(run.directory) == run
    assert run.directory.name == run.id == f"micro-{run.id.split('-')[1]}-s0"
    assert run.record.wandb_id.startswith(run.id + "-")


def test_no_run_is_created_in_a_directory_with_a_symbolic_link(new_run, tmp_path):
    run = new_run()
    (run.directory / RECORD).unlink()
    (run.directory / "heartbeat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GptlabError, match="heartbeat is a symbolic link"):
        new_run()
    assert [path.name for path in run.directory.iterdir()] == ["heartbeat"]


def test_creating_a_run_in_the_directory_of_another_is_refused(new_run):
    run, other = new_run(), new_run(**{"model.n_layer": 3})
    shutil.copy(other.directory / RECORD, run.directory / RECORD)
    with pytest.raises(GptlabError, match=f"{run.directory} holds another run, {other.id}"):
        new_run()


def test_creating_a_run_again_returns_the_existing_one(new_run):
    assert new_run() == new_run()


def test_of_two_processes_that_begin_the_same_run_one_creates_it(new_run, monkeypatch):
    """The second one waits, and neither replaces the record nor removes a temporary file of the first one."""
    from gptlab.tracking import run as runs

    write, writes, started, go = runs.write_durably, [], threading.Event(), threading.Event()

    def slow_write(path, content):
        writes.append(path)
        started.set()
        assert go.wait(60)
        write(path, content)

    monkeypatch.setattr(runs, "write_durably", slow_write)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(new_run)
        assert started.wait(60)
        second = threads.submit(new_run)
        with pytest.raises(TimeoutError):
            second.result(0.05)
        go.set()
        assert first.result() == second.result()
    assert len(writes) == 1


def test_a_run_that_another_process_removed_is_one_line(new_run):
    run = new_run()
    run.move_to_trash()
    with pytest.raises(GptlabError, match=f"{run.directory} is gone; another process has moved or removed it"):
        run.move_to_trash()


def test_a_trash_that_is_a_file_is_named(new_run, tmp_path):
    run = new_run()
    (tmp_path / "runs" / ".trash").touch()
    with pytest.raises(GptlabError, match=r"\.trash cannot be created: File exists"):
        run.move_to_trash()


@pytest.mark.parametrize(
    ("events", "status", "step"),
    [
        ([], "interrupted", 0),
        ([("start", {"steps": 9})], "interrupted", 0),
        ([("start", {"steps": 9}), ("end", (9, "complete"))], "complete", 9),
        ([("start", {"steps": 9}), ("end", (4, "diverged"))], "diverged", 4),
        ([("start", {"steps": 9}), ("end", (9, "complete")), ("start", {"steps": 12})], "interrupted", 0),
    ],
)
def test_status_and_step_come_from_the_last_attempt(new_run, events, status, step):
    run = new_run()
    for event, facts in events:
        if event == "start":
            number = run.start_attempt(**facts)
        else:
            run.end_attempt(number, *facts)
    assert (run.history().status, run.history().step) == (status, step)
    assert run.history().target == (facts["steps"] if events and events[-1][0] == "start" else 9 if events else 40)


def test_a_run_is_found_by_id_unique_prefix_or_path(new_run):
    run, other = new_run(), new_run(seed=1)
    assert find_run(run.id) == run
    assert find_run(other.id[:-1] + "1") == other
    assert find_run(str(run.directory)) == run
    assert [found.id for found in all_runs()] == [run.id, other.id]
    with pytest.raises(BadInputError, match=f"{run.id}, {other.id}"):
        find_run("micro")
    with pytest.raises(BadInputError, match="there is no run 'mikro.*did you mean 'micro-"):
        find_run(run.id.replace("micro", "mikro"))
    with pytest.raises(BadInputError, match="there is no run ''"):
        find_run("")


def test_a_complete_id_is_found_even_if_it_is_a_prefix_of_another(new_run):
    run = new_run(seed=1)
    new_run(seed=11)
    assert find_run(run.id) == run


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


WORDS = st.text(max_size=6) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "~",
        "~root",
        "runs",
        "micro",
        "micro-",
        "-s0",
        "-s1",
        "*",
        "?",
        ".trash",
        "outside",
        "run.json",
        "@40",
    ]
)


@given(data=st.data())
def test_any_reference_removes_one_run_or_none(new_run, tmp_path, data):
    runs = [new_run(), new_run(seed=1)]
    (tmp_path / "outside").mkdir(exist_ok=True)
    (tmp_path / "outside" / "precious").touch()
    words = WORDS | st.sampled_from([*(run.id for run in runs), *(str(run.directory) for run in runs), str(tmp_path)])
    reference = data.draw(st.sampled_from(["/", ""])).join(data.draw(st.lists(words, min_size=1, max_size=4)))
    before = everything(tmp_path)
    try:
        trashed = find_run(reference).move_to_trash()
    except GptlabError:
        assert everything(tmp_path) == before
        return
    assert trashed.parent == tmp_path / "runs" / ".trash"
    (gone,) = [run for run in runs if not run.directory.exists()]
    assert gone.id == load_run(trashed).id
    assert [path for path in before if path not in everything(tmp_path)] == [
        path for path in before if gone.id in path and ".trash" not in path
    ]
    trashed.rename(gone.directory)


@given(data=st.data())
def test_no_reference_to_weights_leads_outside_the_runs(new_run, tmp_path, data):
    from gptlab.training.initial import find_initial_weights

    new_run()
    with pytest.raises(BadInputError):
        find_initial_weights("".join(data.draw(st.lists(WORDS | st.just("/"), max_size=5))))


def test_a_prefix_means_the_run_and_not_its_copies(new_run):
    run, other = new_run(), new_run(seed=1)
    for name in ("copy", f"{run.id}-backup", "micro-copy"):
        shutil.copytree(run.directory, run.directory.with_name(name))
        assert load_run(run.directory.with_name(name)).is_copy
        assert load_run(run.directory.with_name(name)).reference == name
    assert not run.is_copy
    assert run.reference == run.id
    assert find_run(run.id).directory == run.directory
    assert find_run(f"{run.id}-b").directory.name == f"{run.id}-backup"
    with pytest.raises(AmbiguousRunError) as raised:
        find_run("micro")
    assert str(raised.value) == f"'micro' matches {run.id}, {other.id}; give more of the id"
    shutil.rmtree(other.directory)
    assert find_run("micro").directory == run.directory
    (run.directory / RECORD).write_text("damaged")
    with pytest.raises(GptlabError, match="is damaged"):
        find_run("micro")


def test_a_trash_that_is_a_symbolic_link_is_not_used(new_run, tmp_path):
    run = new_run()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / ".trash").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GptlabError, match=r"\.trash is a symbolic link"):
        run.move_to_trash()
    assert run.directory.is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_trash_keeps_a_removed_run_and_is_not_listed(new_run):
    run = new_run()
    trashed = run.move_to_trash()
    assert load_run(trashed).id == run.id
    assert all_runs() == []
    new_run().move_to_trash()
    assert len(list(trashed.parent.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"run": 1}'])
def test_a_damaged_record_is_named(new_run, content):
    run = new_run()
    (run.directory / RECORD).write_text(content)
    with pytest.raises(GptlabError, match=r"run\.json"):
        load_run(run.directory)


def test_a_damaged_run_does_not_hide_the_others(new_run, caplog):
    (new_run().directory / RECORD).write_text("{torn")
    other = new_run(seed=1)
    assert all_runs() == [other]
    assert "run.json" in caplog.text


def test_a_run_from_before_a_field_existed_is_read_with_its_default(new_run):
    run = new_run()
    document = json.loads((run.directory / RECORD).read_text())
    del document["spec"]["model"]["dropout"]
    (run.directory / RECORD).write_text(json.dumps(document))
    assert load_run(run.directory).record.spec == run.record.spec


def test_samples_after_a_step_are_dropped(new_run):
    run = new_run()
    for step in (1, 2, 3):
        run.add_sample(step, "p", "größer\n")
    run.drop_samples_after(2)
    assert run.samples() == [{"step": step, "prompt": "p", "text": "größer\n"} for step in (1, 2)]
