import subprocess

import pytest

from gptlab.tracking.provenance import Source, compare_sources, environment, recorded_source, working_tree


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project under git with one committed file."""
    project = tmp_path / "project"
    (project / "experiments").mkdir(parents=True)
    (project / "pyproject.toml").write_text("[tool.gptlab]\n")
    (project / ".gitignore").write_text("ignored.py\n")
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.chdir(project)
    return project


def source(directory):
    tree = working_tree()
    tree.keep_patch(directory)
    return tree.facts()


@pytest.fixture
def run_directory(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_clean_checkout_is_recorded_as_its_commit(checkout, run_directory):
    facts = source(run_directory)
    assert len(facts["git_commit"]) == 40
    assert (facts["git_dirty"], facts["diff_sha256"]) == (False, None)
    assert list(run_directory.iterdir()) == []


def test_changes_are_stored_as_one_patch_per_distinct_difference(checkout, run_directory):
    (checkout / "pyproject.toml").write_text("[tool.gptlab]\nchanged = 1\n")
    (checkout / "new.py").write_text("print('new')\n")
    facts = source(run_directory)
    assert facts["git_dirty"] is True
    assert source(run_directory) == facts
    (patch,) = run_directory.iterdir()
    assert patch.name == f"source-{facts['diff_sha256'][:8]}.patch"
    subprocess.run(["git", "stash", "-qu"], check=True, env={"GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "e",
        "GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "e", "PATH": "/usr/bin:/bin"})  # fmt: skip
    subprocess.run(["git", "apply", str(patch)], check=True)
    assert (checkout / "pyproject.toml").read_text() == "[tool.gptlab]\nchanged = 1\n"
    assert (checkout / "new.py").read_text() == "print('new')\n"


def test_the_patch_excludes_other_untracked_files(checkout, run_directory):
    (checkout / ".env").write_text("SECRET=hunter2\n")
    (checkout / "ignored.py").write_text("hunter2\n")
    (checkout / "new.py").write_text("1\n")
    source(run_directory)
    (patch,) = run_directory.iterdir()
    assert "hunter2" not in patch.read_text()


def test_outside_git_there_is_no_commit(tmp_path, run_directory, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.gptlab]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert source(run_directory) == {"git_commit": None, "git_dirty": None, "diff_sha256": None}


def test_the_environment_names_versions():
    facts = environment()
    assert facts["packages"]["torch"].startswith("2.13.0")
    assert {"host", "platform", "python"} <= facts.keys()


@pytest.mark.parametrize(
    ("key", "value"), [("diff.noprefix", "true"), ("color.ui", "always"), ("diff.external", "false"), ("", "")]
)
@pytest.mark.parametrize("inside", [True, False], ids=["a folder of a larger repository", "the repository's root"])
def test_the_patch_applies_with_any_git_configuration_and_project_location(
    checkout, run_directory, tmp_path, monkeypatch, key, value, inside
):
    project = checkout
    if inside:
        project = checkout / "projects" / "mine"
        (project / "experiments").mkdir(parents=True)
        (project / "pyproject.toml").write_text("[tool.gptlab]\n")
        git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", "second"], check=True)
        monkeypatch.chdir(project)
    if key:
        subprocess.run(["git", "config", key, value], check=True)
    (project / "pyproject.toml").write_text("[tool.gptlab]\nchanged = 1\n")
    (project / "größer.py").write_text("print('new')\n")
    assert source(run_directory)["git_dirty"] is True
    (patch,) = run_directory.iterdir()
    subprocess.run(["git", "checkout", "-q", "--", "."], check=True)
    subprocess.run(["git", "clean", "-qf", "--", "."], check=True)
    subprocess.run(["git", "apply", str(patch)], check=True)
    assert (project / "pyproject.toml").read_text() == "[tool.gptlab]\nchanged = 1\n"
    assert (project / "größer.py").read_text() == "print('new')\n"


def test_a_failure_of_git_is_recorded_as_unknown_and_not_as_clean(checkout, run_directory):
    (checkout / ".git" / "index").write_bytes(b"damaged")
    facts = source(run_directory)
    assert len(facts["git_commit"]) == 40
    assert (facts["git_dirty"], facts["diff_sha256"]) == (None, None)


def commit(message):
    for arguments in (["add", "-A"], ["commit", "-qm", message]):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True)


def kept(directory):
    """The code as a run records it, read back."""
    tree = working_tree()
    tree.keep_patch(directory)
    return recorded_source(directory, [{"event": "start", "steps": 1, **tree.facts()}])


def test_the_recorded_code_of_a_run_reads_back(checkout, run_directory):
    assert kept(run_directory) == working_tree()
    (checkout / "new.py").write_text("1\n")
    assert kept(run_directory) == working_tree()
    assert b"new.py" in working_tree().patch


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
def test_a_missing_or_modified_patch_makes_the_code_unknown(checkout, run_directory, damage):
    (checkout / "new.py").write_text("1\n")
    tree = working_tree()
    tree.keep_patch(run_directory)
    damage(next(run_directory.iterdir()))
    read = recorded_source(run_directory, [{"event": "start", "steps": 1, **tree.facts()}])
    assert read == Source(tree.commit, None)
    assert compare_sources(read, tree) is None


def test_code_changes_are_computed_by_git_without_changing_the_repository(checkout, run_directory):
    (checkout / "old.py").write_text("one\ntwo\n")
    (checkout / "dirty.py").write_text("untracked\n")
    before = kept(run_directory)
    commit("second")
    (checkout / "old.py").write_text("one\nthree\nfour\n")
    (checkout / "dirty.py").unlink()
    (checkout / "blob.py").write_bytes(b"\0binary")
    files = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    told = compare_sources(before, working_tree())
    assert told.files == {"blob.py": "binary", "dirty.py": "+0 −1", "old.py": "+2 −1"}
    assert b"+three" in told.patch
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == files


def test_a_patch_that_was_committed_later_is_the_same_code(checkout, run_directory):
    (checkout / "new.py").write_text("1\n")
    before = kept(run_directory)
    commit("second")
    assert before != working_tree()
    assert compare_sources(before, working_tree()).files == {}


def test_a_commit_missing_from_the_repository_cannot_be_compared(checkout):
    assert compare_sources(Source("0" * 40, b""), working_tree()) is None
    assert compare_sources(Source(None, None), working_tree()) is None
    assert compare_sources(Source(None, None), Source(None, None)) is None
    assert compare_sources(Source("0" * 40, b"x"), Source("0" * 40, b"x")).files == {}


def test_files_outside_the_project_are_ignored(checkout, monkeypatch, run_directory):
    project = checkout / "projects" / "mine"
    (project / "experiments").mkdir(parents=True)
    (project / "pyproject.toml").write_text("[tool.gptlab]\n")
    commit("a folder of a larger repository")
    monkeypatch.chdir(project)
    before = kept(run_directory)
    (checkout / "elsewhere.py").write_text("1\n")
    (project / "mine.py").write_text("1\n")
    commit("second")
    assert compare_sources(before, working_tree()).files == {"projects/mine/mine.py": "+1 −0"}
