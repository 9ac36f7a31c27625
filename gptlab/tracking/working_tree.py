"""The uncommitted changes to the project's code, as a patch.

Git makes the patch in a temporary index and a temporary object directory; it modifies neither the working tree nor the
repository. The number of git processes does not depend on the number of files.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from gptlab import project
from gptlab.tracking.git import GitError, git

CODE = (
    "*.py",
    ":(glob)pyproject.toml",
    ":(glob)setup.cfg",
    ":(glob)constraints*.txt",
    ":(glob)requirements*.txt",
    ":(glob)requirements/*.txt",
    ":(glob)*.lock",
    ":(glob)pylock*.toml",
    ":(glob)environment*.y*ml",
    ":(glob).python-version",
)
"""Git's patterns of code, relative to the project: Python at any depth, the pins of packages at its top."""
NOT_CODE = ("pyvenv.cfg", "conda-meta", "run.json", ".git")
"""What a folder holds whose untracked files are not the project's: an environment, a run, another repository."""
NOT_CODE_NAMES = frozenset({"site-packages", "node_modules", "__pypackages__"})
LITERAL = ":(literal)"
DIFF_OPTIONS = (
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--no-relative",
    "--submodule=short",
    "--unified=3",
    "--inter-hunk-context=0",
    "--diff-algorithm=default",
    "-O/dev/null",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
"""Options for a patch that git can apply, whatever the user's configuration of `git diff`."""


@dataclass(frozen=True)
class Repository:
    """The git repository that holds the project."""

    top: str
    commit: str
    objects: str
    """The object directory."""


def find_repository() -> Repository:
    """Return the repository that holds the project, at its current commit.

    Raises:
        GitError: There is none, it has no commit, or git refuses it.
    """
    try:
        output = git("rev-parse", "--show-toplevel", "--git-path", "objects", "--verify", "HEAD^{commit}")
    except GitError as error:
        root = project.root()
        if "not a git repository" in str(error) and not any((at / ".git").exists() for at in (root, *root.parents)):
            raise GitError("the project is not under git; `git init` and a commit make its code known") from None
        if "Needed a single revision" in str(error):
            raise GitError("the git repository has no commit yet, or HEAD is damaged") from None
        raise
    lines = os.fsdecode(output).removesuffix("\n").rsplit("\n", 2)  # the first line, a path, may hold a line feed
    if len(lines) != 3:
        raise GitError("git rev-parse gave an incomplete answer")
    top, objects, commit = lines
    return Repository(top, commit, str(project.root() / objects))


@contextmanager
def temporary_index(repository: Repository) -> Iterator[dict[str, str]]:
    """Yield environment variables for git with an index and an object directory that are removed afterwards."""
    quoted = repository.objects.replace("\\", "\\\\").replace('"', '\\"')  # a colon would separate two paths
    with tempfile.TemporaryDirectory() as folder:
        yield {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": folder,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
        }


def uncommitted_changes(repository: Repository, limit: int) -> bytes:
    """Return the patch that makes the working tree's code from the commit.

    The temporary index starts as the commit, not as the user's index, which may hide changes or have conflicts.

    Raises:
        GitError: Git fails, the repository holds none of the project's code, a submodule has uncommitted changes, or
            the patch has more than `limit` bytes.
    """
    staged = _list_files("--cached", "--", *CODE)
    new = _own_code(_list_files("--others", "--exclude-standard", "--", "*.py"))
    _check_size(new, limit)
    with temporary_index(repository) as index:
        git("read-tree", repository.commit, environment=index)
        committed = _list_files("--cached", "--", *CODE, environment=index)
        linked = submodules(index)
        names = {*staged, *new, *committed, *(name.removeprefix(LITERAL) for name in linked)}
        if not names:
            raise GitError(f"the git repository {repository.top} holds none of the project's code")
        if linked:
            _check_clean(linked)
        # `--info-only` writes no objects, which takes most of the time for many files; the diff reads the files.
        arguments = ("update-index", "--info-only", "--add", "--remove", "--replace", "-z", "--stdin")
        git(*arguments, stdin=os.fsencode("".join(f"{name}\0" for name in sorted(names))), environment=index)
        options = (*DIFF_OPTIONS, "--ignore-submodules=dirty")
        patch = git("diff", *options, repository.commit, "--", *CODE, *linked, environment=index)
    if len(patch) > limit:
        raise GitError(
            f"the uncommitted changes are a patch of {_mib(len(patch))}, more than the {_mib(limit)} that are stored; "
            "commit them"
        )
    return patch


def submodules(index: Mapping[str, str]) -> list[str]:
    """Return patterns for the submodules in the project, whose commits are part of its code."""
    entries = _list_files("--stage", "--", ".", environment=index)
    return [LITERAL + entry.partition("\t")[2] for entry in entries if entry.startswith("160000 ")]


def _list_files(*arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
    output = git("ls-files", "-z", *arguments, environment=environment)
    return [name for name in os.fsdecode(output).split("\0") if name]


def _own_code(names: list[str]) -> list[str]:
    """Return the untracked files that are the project's: not hidden, and not in an environment or a run."""
    root = project.root()

    @cache
    def is_foreign(folder: PurePosixPath) -> bool:
        return any((root / folder / marker).exists() for marker in NOT_CODE)

    def is_own(path: PurePosixPath) -> bool:
        hidden = any(part.startswith(".") for part in path.parts)
        return not (hidden or NOT_CODE_NAMES & set(path.parts) or any(map(is_foreign, path.parents[:-1])))

    return [name for name in names if is_own(PurePosixPath(name))]


def _check_size(names: list[str], limit: int) -> None:
    """Check that new files fit into a patch, before git reads them.

    Raises:
        GitError: They do not; the message says where most of them are.
    """
    root = project.root()
    sizes: Counter[str] = Counter()
    for name in names:
        first, slash, _ = name.partition("/")
        sizes[first + slash] += _size(root / name)
    if sizes.total() > limit:
        most = sizes.most_common(1)[0][0]
        raise GitError(
            f"{len(names):,} new *.py files have {_mib(sizes.total())}, more than the {_mib(limit)} that are stored, "
            f"most of it in {most}; commit them, or add what is not code of the project to .gitignore"
        )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # removed in the meantime, or git will say
        return 0


def _check_clean(linked: list[str]) -> None:
    options = ("--no-ext-diff", "--no-color", "--submodule=short", "--ignore-submodules=untracked")
    if b"-dirty\n" in git("diff", *options, "--", *linked):
        names = ", ".join(name.removeprefix(LITERAL) for name in linked)
        raise GitError(f"a submodule has uncommitted changes, which are not recorded: {names}; commit them there")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
