"""`make lint` refuses code that could execute an untrusted run, and imports against the architecture."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("gptlab", "analysis", "experiments")

DANGEROUS = """
import pickle
import joblib
import shelve
import numpy as np; np.load("a", allow_pickle=True)
import pandas as pd; pd.read_pickle("a")
import pandas as pd; pd.eval("a")
import torch; torch.load("a", weights_only=True)
import torch; torch.save({}, "a")
import torch; torch.jit.load("a")
from torch.serialization import load
import torch.distributed.checkpoint as dcp
import yaml; yaml.load("a")
eval("1")
exec("1")
import runpy
import os; os.system("ls")
import subprocess; subprocess.run("ls", shell=True)
import tarfile; tarfile.open("a").extractall()
""".strip().splitlines()
UNKNOWN_TO_RUFF = re.compile(r"\.(?:to_pickle|to_hdf)\b|\ballow_pickle\b|(?<![\w.])(?:compile|__import__)\(")

FORBIDDEN_IMPORTS = {  # one per contract
    "gptlab/catalog.py": "import gptlab.data",
    "gptlab/checkpoints/tensors.py": "import gptlab.checkpoints.saver",
    "gptlab/tracking/lock.py": "import gptlab.tracking.run",
    "gptlab/training/step.py": "import gptlab.training.loop",
    "gptlab/model/loss.py": "import gptlab.model.gpt",
    "gptlab/distributed/place.py": "import gptlab.distributed.workers",
    "gptlab/bundles/members.py": "import gptlab.bundles.unpack",
    "gptlab/verification/rounding.py": "import gptlab.verification.verify",
    "gptlab/data/text.py": "import gptlab.data.tokens",
    "gptlab/explanation/bins.py": "import gptlab.explanation.rows",
    "gptlab/mirror/server.py": "import gptlab.mirror.wandb_run",
    "gptlab/slurm/records.py": "import gptlab.slurm.job",
    "gptlab/huggingface/layout.py": "import gptlab.huggingface.config",
    "gptlab/commands/show.py": "import gptlab.commands.diff",
    "gptlab/terminal/tables.py": "import gptlab.terminal.console",
    "experiments/tiny.py": "import gptlab.data",
    "analysis/load.py": "import wandb",
    "analysis/palette.py": "import analysis.report",
    "gptlab/data/windows.py": "import pandas",
    "gptlab/training/memory.py": "import wandb",
}


def test_linter_refuses_unpickling_and_execution(tmp_path):
    for number, line in enumerate([*DANGEROUS, "import json; json.loads('1')"]):
        (tmp_path / f"line_{number}.py").write_text(line + "\n")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json", "--config"]
    done = subprocess.run([*command, ROOT / "pyproject.toml", tmp_path], capture_output=True, text=True)
    violations = [one for one in json.loads(done.stdout) if one["code"].startswith(("S", "TID251"))]
    refused = {Path(one["filename"]).read_text().strip() for one in violations}
    assert sorted(refused) == sorted(DANGEROUS)


def test_no_source_uses_what_the_linter_does_not_know():
    assert UNKNOWN_TO_RUFF.search("table.to_pickle('a')")
    assert not UNKNOWN_TO_RUFF.search("re.compile('a')")
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        assert not UNKNOWN_TO_RUFF.search(path.read_text()), path


def test_every_import_contract_can_be_broken(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    for folder in ("experiments", "experiments/parts"):  # else they are namespaces, of which this project's are parts
        (tmp_path / folder / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert "0 broken" in lint_imports(tmp_path)
    for path, line in FORBIDDEN_IMPORTS.items():
        with (tmp_path / path).open("a") as file:
            file.write(f"\n{line}\n")
    assert "0 kept" in lint_imports(tmp_path)


def lint_imports(folder: Path) -> str:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True).stdout
