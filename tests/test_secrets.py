"""Secrets appear neither in the run's directory, nor in W&B's files, nor on the console."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.tracking.run import all_runs

pytestmark = pytest.mark.slow

CANARIES = {
    "the environment": "canary0environment0canary",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefcafe0123",
    "the command line": "canary0commandline0canary",
    "an untracked .env": "canary0dotenv0canary",
    "an untracked notebook": "canary0notebook0canary",
    "a refused option": "canary0option0canary",
}
SHOWN = "notes0that0belong0there"


def spellings(word: str) -> list[bytes]:
    """The word as it is, and in the encodings that may hide it in a file."""
    plain = word.encode()
    shifted = [base64.b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3)]
    return [plain, plain.hex().encode(), word.encode("utf-16-le"), *shifted]


def found(place: Path, word: str) -> list[Path]:
    files = [path for path in place.rglob("*") if path.is_file()]
    return [path for path in files if any(spelling in path.read_bytes() for spelling in spellings(word))]


@pytest.fixture
def left(project: Path, tmp_path: Path) -> tuple[Path, str]:
    """The directory of a run that saw every secret, mirrored offline and profiled, and its console output."""
    (project / ".env").write_text(f"TOKEN={CANARIES['an untracked .env']}\n")
    (project / "notes.ipynb").write_text(f'{{"token": "{CANARIES["an untracked notebook"]}"}}\n')
    (project / "new.py").write_text(f"# {SHOWN}\n")
    environment = {
        **os.environ,
        "MY_TOKEN": CANARIES["the environment"],
        "WANDB_API_KEY": CANARIES["WANDB_API_KEY"],
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    base = [sys.executable, "-X", f"canary={CANARIES['the command line']}", "-m", "gptlab", "run", "micro"]
    said = ""
    for arguments, code in (
        (["--notes", SHOWN, "--profile"], 0),  # offline: no server answers
        ([f"--pasword={CANARIES['a refused option']}"], 2),
    ):
        done = subprocess.run([*base, *arguments], cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        said += done.stdout + (done.stderr if code == 0 else "")
    (run,) = all_runs()
    return run.directory, said


def test_no_secret_is_in_a_runs_directory_in_wandbs_file_or_on_the_console(left):
    directory, said = left
    kept = {path.suffix for path in found(directory, SHOWN)}
    assert {".wandb", ".patch", ".jsonl"} <= kept  # the search works
    for source, secret in CANARIES.items():
        assert found(directory, secret) == [], source
        assert secret not in said, source
