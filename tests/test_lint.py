"""What would run code out of a file that somebody made is refused by the linter, so that it never gets here."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DANGEROUS = """
import pickle
from pickle import loads
import _pickle
import marshal
import shelve
import dill
import cloudpickle
import joblib
import jsonpickle
import numpy as np; np.load("a", allow_pickle=True)
from numpy import load
import pandas as pd; pd.read_pickle("a")
import pandas as pd; pd.to_pickle({}, "a")
import pandas as pd; pd.read_hdf("a")
import pandas as pd; pd.HDFStore("a")
import pandas as pd; pd.eval("a")
import torch; torch.load("a")
import torch; torch.load("a", weights_only=True)
import torch; torch.save({}, "a")
from torch import load
from torch.serialization import load
import torch; torch.jit.load("a")
import torch; torch.export.load("a")
import torch; torch.hub.load("a", "b")
import torch; torch.ops.load_library("a")
import torch.package
import torch.distributed.checkpoint as dcp
import torch.utils.cpp_extension
import yaml; yaml.load("a")
from yaml import unsafe_load
eval("1")
exec("1")
import runpy
import code
import importlib.util; importlib.util.spec_from_file_location("a", "a.py")
import os; os.system("ls")
import os; os.popen("ls")
import subprocess; subprocess.run("ls", shell=True)
import subprocess; subprocess.getoutput("ls")
import asyncio; asyncio.create_subprocess_shell("ls")
import pty
import tarfile; tarfile.open("a").extractall()
import xml.etree.ElementTree as tree; tree.parse("a")
""".strip().splitlines()


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> set[str]:
    """Those lines that ruff refuses, with the project's configuration, for reasons of safety."""
    folder = tmp_path_factory.mktemp("dangerous")
    for number, line in enumerate(DANGEROUS):
        (folder / f"line_{number}.py").write_text(line + "\n")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json", "--config"]
    done = subprocess.run([*command, ROOT / "pyproject.toml", folder], capture_output=True, text=True)
    found = [violation for violation in json.loads(done.stdout) if violation["code"].startswith(("S", "TID251"))]
    return {Path(violation["filename"]).read_text().strip() for violation in found}


@pytest.mark.parametrize("line", DANGEROUS)
def test_what_unpickles_or_executes_is_refused_by_the_linter(refused, line):
    assert line in refused


def test_harmless_lines_are_not_refused(tmp_path):
    (tmp_path / "harmless.py").write_text('"""A module."""\n\nimport json\n\nloaded = json.loads("{}")\n')
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path]
    assert subprocess.run(command, capture_output=True).returncode == 0


def unseen(tree: ast.AST) -> set[str]:
    """What pickles or executes and no rule of ruff's knows: methods, and two builtins."""
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    return names & {"compile", "__import__"} | (attributes | keywords) & {"to_pickle", "to_hdf", "allow_pickle"}


def test_neither_is_what_no_rule_knows_anywhere_in_the_sources():
    assert unseen(ast.parse("table.to_pickle(compile('1', '', 'eval'))")) == {"to_pickle", "compile"}
    for folder in ("gptlab", "analysis", "experiments", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not unseen(ast.parse(path.read_text())), path
