import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gptlab.tracking import git as git_module
from gptlab.tracking import provenance
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


# --- What is code ---


def test_notebooks_documents_and_outputs_are_not_code(checkout, run_directory):
    for name in ("analysis/a.ipynb", "docs/a.md", "plot.png", "data.csv", "Makefile", "templates/page.html"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("1\n")
    commit("second")
    before = kept(run_directory)
    for name in ("analysis/a.ipynb", "docs/a.md", "plot.png", "data.csv", "Makefile", "templates/page.html"):
        (checkout / name).write_text("2\n")
    (checkout / "new.ipynb").write_text("3\n")
    assert source(run_directory)["git_dirty"] is False
    assert list(run_directory.iterdir()) == []
    commit("third")
    assert working_tree() != before
    assert compare_sources(before, working_tree()).files == {}, "another commit of the same code"


def test_python_and_pins_are_code(checkout, run_directory):
    names = ["a.py", "constraints.txt", "deep/down/a.py", "pyproject.toml", "requirements/dev.txt", "uv.lock"]
    for content in ("# 1\n[tool.gptlab]\n", "# 2\n[tool.gptlab]\n"):
        for name in names:
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_text(content)
        if "1" in content:
            commit("second")
            before = kept(run_directory)
    assert working_tree().facts()["git_dirty"] is True
    assert compare_sources(before, working_tree()).files == dict.fromkeys(names, "+1 −1")


def test_environments_runs_hidden_files_and_other_repositories_are_not_the_projects_code(checkout, run_directory):
    marked = {"venv": "pyvenv.cfg", "conda/env": "conda-meta/history", "results/micro-0-s0": "run.json"}
    for folder, marker in marked.items():
        (checkout / folder / marker).parent.mkdir(parents=True)
        (checkout / folder / marker).touch()
    (checkout / "nested").mkdir()
    subprocess.run(["git", "init", "-q", "nested"], check=True)
    folders = [*marked, "nested", "vendor/site-packages", "node_modules/x", ".ipynb_checkpoints", ".tox/py"]
    for folder in folders:
        path = checkout / folder / "lib" / "a.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import this\n")
    (checkout / "._new.py").write_bytes(b"\0\1")
    (checkout / ".#new.py").symlink_to("user@host.1")
    (checkout / "lib").mkdir()
    (checkout / "lib" / "mine.py").write_text("1\n")
    source(run_directory)
    (patch,) = run_directory.iterdir()
    added = [line for line in patch.read_text().splitlines() if line.startswith("+++")]
    assert added == ["+++ b/lib/mine.py"]


def test_many_new_files_take_as_many_git_processes_as_one(checkout, monkeypatch):
    started = []
    run = subprocess.run
    monkeypatch.setattr(git_module.subprocess, "run", lambda *a, **k: started.append(a) or run(*a, **k))
    (checkout / "0.py").write_text("x = 0\n")
    assert working_tree().patch
    few = len(started)
    for number in range(1, 60):
        (checkout / f"{number}.py").write_text(f"x = {number}\n")
    assert working_tree().patch.count(b"new file mode") == 60
    assert len(started) == 2 * few


@pytest.mark.parametrize("kind", ["huge", "many", "tracked"])
def test_a_patch_has_a_bound_and_says_when_it_is_reached(checkout, run_directory, monkeypatch, kind):
    (checkout / "lib").mkdir()
    if kind == "huge":
        with (checkout / "lib" / "x.py").open("wb") as file:
            file.truncate(10 << 30)  # read, it would take ten gigabytes
    else:
        monkeypatch.setattr(provenance, "MAX_PATCH_BYTES", 2000)
        if kind == "tracked":
            (checkout / "lib" / "0.py").write_text("")
            commit("second")
        for number in range(1 if kind == "tracked" else 30):
            (checkout / "lib" / f"{number}.py").write_text("x = 1\n" * 500 if kind == "tracked" else "x" * 99)
    tree = working_tree()
    facts = source(run_directory)
    assert len(facts["git_commit"]) == 40
    assert (facts["git_dirty"], facts["diff_sha256"]) == (None, None), "unknown is never clean"
    assert list(run_directory.iterdir()) == []
    words = {"huge": "1 new *.py files have 10,240.0 MiB", "many": "30 new *.py", "tracked": "are a patch of 0.0 MiB"}
    assert words[kind] in tree.unknown
    assert "lib/" in tree.unknown or kind == "tracked"


@pytest.mark.parametrize("key", ["staged", "forced", "removed", "hidden", "conflict", "replaced"])
def test_the_patch_holds_the_working_tree_whatever_is_in_the_index(checkout, run_directory, key):
    (checkout / "old.py").write_text("1\n")
    commit("second")
    name, content = "old.py", b"2\n"
    if key == "staged":
        name = "new.py"
        (checkout / name).write_bytes(b"3\n")
        subprocess.run(["git", "add", name], check=True)
        (checkout / name).write_bytes(content)
    elif key == "forced":
        name = "ignored.py"
        (checkout / name).write_bytes(content)
        subprocess.run(["git", "add", "-f", name], check=True)
    elif key == "removed":
        subprocess.run(["git", "rm", "-q", name], check=True)
        content = None
    elif key == "hidden":
        subprocess.run(["git", "update-index", "--skip-worktree", name], check=True)
        (checkout / name).write_bytes(content)
    elif key == "conflict":
        blob = (
            subprocess.run(["git", "rev-parse", "HEAD:old.py"], check=True, capture_output=True).stdout.decode().strip()
        )
        stages = "".join(f"100644 {blob} {stage}\told.py\n" for stage in (1, 2, 3))
        subprocess.run(
            ["git", "update-index", "--index-info"], input=f"0 {'0' * 40}\told.py\n{stages}".encode(), check=True
        )
        (checkout / name).write_bytes(content)
    else:
        (checkout / name).unlink()
        name = "old.py/now_a_folder.py"
        (checkout / name).parent.mkdir()
        (checkout / name).write_bytes(content)
    index = (checkout / ".git" / "index").read_bytes()
    assert source(run_directory)["git_dirty"] is True
    assert (checkout / ".git" / "index").read_bytes() == index
    (patch,) = run_directory.iterdir()
    subprocess.run(["git", "clone", "-q", checkout, checkout.parent / "then"], check=True)
    subprocess.run(["git", "apply", str(patch)], cwd=checkout.parent / "then", check=True)
    restored = checkout.parent / "then" / name
    assert (restored.read_bytes() if restored.exists() else None) == content


def test_a_submodules_commit_is_code_and_its_uncommitted_changes_are_unknown(checkout, tmp_path, run_directory):
    library = tmp_path / "library"
    shutil.copytree(checkout, library)
    (library / "lib.py").write_text("1\n")
    git = ["git", "-C", str(library), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "lib"], check=True)
    add = ["git", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "vendor"]
    subprocess.run(add, check=True)
    commit("second")
    before = kept(run_directory)
    assert before.patch == b""
    subprocess.run(["git", "-C", "vendor", "checkout", "-q", "HEAD~1"], check=True)
    assert working_tree().facts()["git_dirty"] is True
    assert compare_sources(before, working_tree()).files == {"vendor": "+1 −1"}
    (checkout / "vendor" / "pyproject.toml").write_text("changed = 1\n")
    tree = working_tree()
    assert tree.facts()["git_dirty"] is None
    assert "a submodule has uncommitted changes, which are not recorded: vendor" in tree.unknown


# --- When git cannot say ---


@pytest.fixture
def other_git(tmp_path, monkeypatch):
    """`other_git(script)` puts a shell script named git in place of git."""

    def put(script):
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin" / "git"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return put


def test_git_that_is_not_installed_is_said(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (working_tree(), working_tree().unknown) == (Source(None, None), "git is not installed")


def test_gits_own_reason_is_said(checkout, other_git):
    other_git(
        "echo \"fatal: detected dubious ownership in repository at '/p'\nTo add an exception, call:\n\n"
        '\tgit config --global --add safe.directory /p" >&2; exit 128'
    )
    assert working_tree().facts() == {"git_commit": None, "git_dirty": None, "diff_sha256": None}
    assert working_tree().unknown == (
        "git says: detected dubious ownership in repository at '/p' To add an exception, call: "
        "git config --global --add safe.directory /p"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_of_somebody_else_is_refused_by_git_and_its_reason_is_said(checkout, monkeypatch):
    os.chown(checkout, 4711, 4711)
    for name in ("SUDO_UID", "GIT_CONFIG_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    assert "dubious ownership" in working_tree().unknown


def test_a_git_that_hangs_is_given_up(checkout, other_git, monkeypatch):
    other_git("exec sleep 99")
    monkeypatch.setattr(git_module, "TIMEOUT_S", 0.1)
    assert working_tree().unknown == "git rev-parse did not answer within 0.1 s"


def test_a_git_that_says_nothing_gives_no_code(checkout, other_git):
    other_git("exit 0")
    assert working_tree().unknown == "git rev-parse gave an incomplete answer"


def test_a_git_that_cannot_be_started_is_said(checkout, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(git_module.subprocess, "run", refused)
    assert working_tree().unknown == "git cannot be started: Cannot allocate memory"


def damage_head(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text("garbage\n")


def damage_objects(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git" / "objects")
    (checkout / ".git" / "objects").mkdir()


def begin_again(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    subprocess.run(["git", "init", "-q"], check=True)


def leave_git(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")


def ignore_everything(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    subprocess.run(["git", "init", "-q", ".."], check=True)
    (checkout.parent / ".gitignore").write_text("*\n!.gitignore\n")
    git = ["git", "-C", "..", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "add", ".gitignore"], check=True)
    subprocess.run([*git, "commit", "-qm", "dotfiles"], check=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage_head, "git says: not a git repository"),
        (damage_objects, "git says: |HEAD is damaged"),
        (begin_again, "has no commit yet"),
        (leave_git, "^the project is not under git"),
        (ignore_everything, "holds none of the project's code"),
    ],
)
def test_code_that_git_does_not_know_is_unknown_and_never_clean(checkout, monkeypatch, change, words):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent.parent))
    change(checkout)
    tree = working_tree()
    assert tree.patch is None
    assert tree.facts()["git_dirty"] is None
    assert "\n" not in tree.unknown
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(tree.unknown)


def test_variables_of_a_git_hook_do_not_lead_to_another_repository(checkout, tmp_path, monkeypatch):
    (checkout / "new.py").write_text("1\n")
    expected = working_tree()
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git" / "objects"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")
    monkeypatch.setenv("GIT_LITERAL_PATHSPECS", "1")
    monkeypatch.setenv("GIT_TRACE", "1")
    assert working_tree() == expected
    assert expected.patch


def test_a_shallow_clone_and_a_path_with_a_colon_are_known(checkout, tmp_path, monkeypatch, run_directory):
    commit_facts = working_tree().facts()
    clone = tmp_path / 'a:b "c"'
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{checkout}", clone], check=True)
    (clone / "experiments").mkdir()
    monkeypatch.chdir(clone)
    assert working_tree().facts() == commit_facts
    before = kept(run_directory)
    (clone / "new.py").write_text("1\n")
    assert compare_sources(before, working_tree()).files == {"new.py": "+1 −0"}
