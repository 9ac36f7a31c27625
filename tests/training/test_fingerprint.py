"""A fingerprint changes with what the code computes, and with nothing else."""

import ast
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mutants
import pytest
import refactorings
from edits import (
    ACTIVATIONS,
    EVALUATE,
    EXTRACTIONS,
    LOSS,
    MODEL,
    MUTATIONS,
    OPTIMIZER,
    PIECES,
    RANDOMNESS,
    RECOMPUTE,
    SCHEDULE,
    SMALL,
    STEP,
    TOKENS,
    WINDOWS,
    Edit,
)

from gptlab.data import windows
from gptlab.data.vocabularies import tokenizer_of
from gptlab.errors import BadInputError
from gptlab.spec import Experiment, ModelSpec
from gptlab.training import fingerprint as fingerprints_module


@pytest.fixture(autouse=True, scope="module")
def _warm():
    mutants.warm_up(SMALL)


@cache
def original(changes: tuple[tuple[str, Any], ...]):
    return mutants.fingerprint_of(dict(changes), {})


def fingerprints(edit: Edit):
    """The fingerprints of the code as it is and as it is edited."""
    spec = {**SMALL, **edit.spec}
    return original(tuple(spec.items())), mutants.fingerprint_of(spec, edit.apply())


@pytest.mark.parametrize("edit", MUTATIONS, ids=str)
def test_an_edit_that_computes_something_else_changes_the_fingerprint(edit: Edit):
    before, after = fingerprints(edit)
    moved = [abs(after.numbers.get(name, math.inf) - value) for name, value in before.numbers.items()]
    assert max(moved) > 1e-6
    assert before.hash != after.hash


FILES = (
    *(ACTIVATIONS, EVALUATE, LOSS, MODEL, OPTIMIZER, PIECES, RANDOMNESS, RECOMPUTE, SCHEDULE, STEP, TOKENS, WINDOWS),
    *("model/parts.py", "data/vocabularies.py"),
)
UNCHECKED = {name.partition(":")[2].split(".")[-1] for name in fingerprints_module.UNCHECKED}
REFACTORINGS = refactorings.kinds(UNCHECKED)


@pytest.mark.parametrize("kind", REFACTORINGS)
def test_a_refactoring_does_not_change_the_fingerprint(kind: str):
    edits = {}
    for file in FILES:
        source = (mutants.PACKAGE / file).read_text()
        edits[file] = REFACTORINGS[kind](source)
        assert edits[file] != source, file
    expected = original(tuple(SMALL.items())).hash
    if mutants.fingerprint_of(SMALL, edits).hash != expected:  # of all files at once
        moving = [file for file in FILES if mutants.fingerprint_of(SMALL, {file: edits[file]}).hash != expected]
        pytest.fail(f"'{kind}' of {moving or 'all files together'} changes the fingerprint")


@pytest.mark.parametrize("edit", EXTRACTIONS, ids=str)
def test_the_same_computation_in_other_words_has_the_same_fingerprint(edit: Edit):
    before, after = fingerprints(edit)
    assert before.hash == after.hash


def test_code_that_computes_below_float64_enters_as_its_syntax():
    narrow = Edit(MODEL, "x = self.final_norm(x)", "x = self.final_norm(x).float().double()")
    before, after = fingerprints(narrow)
    assert "gptlab.model.gpt:GPT.forward" in after.code.keys() - before.code.keys()
    renamed = narrow.apply()[MODEL].replace("T = tokens.shape[1]", "T = tokens.size(1)")
    assert mutants.fingerprint_of(SMALL, {MODEL: renamed}).hash != after.hash


BFLOAT16 = {**SMALL, "train.precision": "bfloat16"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, SMALL) for name in fingerprints_module.UNCHECKED),
        *((name, BFLOAT16) for name in fingerprints_module.UNCHECKED_IN_BFLOAT16[::6]),  # each takes half a second
    ],
)
def test_code_that_does_not_run_here_enters_as_its_syntax(name: str, changes: dict[str, Any]):
    module, _, function = name.partition(":")
    file = f"{module.replace('.', '/')}.py".removeprefix("gptlab/")
    source = (mutants.PACKAGE / file).read_text()
    tree = ast.parse(source)
    scope, _, own_name = function.rpartition(".")
    places = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == scope] if scope else [tree]
    (node,) = [n for n in places[0].body if isinstance(n, ast.FunctionDef) and n.name == own_name]
    node.body.insert(-1, ast.parse("if False: print()").body[0])
    assert mutants.fingerprint_of(changes, {file: ast.unparse(tree)}).hash != original(tuple(changes.items())).hash


def test_all_code_of_the_gpu_enters_the_fingerprint_of_an_experiment_in_bfloat16():
    code = original(tuple(BFLOAT16.items())).code
    assert set(fingerprints_module.UNCHECKED_IN_BFLOAT16) == code.keys() - original(tuple(SMALL.items())).code.keys()
    hashes = [code[name] for name in fingerprints_module.UNCHECKED_IN_BFLOAT16]
    assert len(set(hashes)) == len(hashes)
    assert "not found" not in hashes


def test_code_of_the_gpu_does_not_change_the_fingerprint_of_an_experiment_in_float32():
    source = (mutants.PACKAGE / "model/fused_loss.py").read_text()
    edited = source.replace("* scale", "* scale * 2")
    assert edited != source
    assert mutants.fingerprint_of(SMALL, {"model/fused_loss.py": edited}).hash == original(tuple(SMALL.items())).hash


def test_the_small_model_is_small_whatever_the_spec_says():
    largest = {"n_layer": 2**10, "n_head": 2**10, "n_embd": 2**20, "context_length": 2**20, "vocab_size": 2**20}
    experiment = Experiment(name="large", why="How large?", model=ModelSpec(**largest))
    assert fingerprints_module._small(experiment).model.parameters < 3e7


PARTS = """
import torch
from torch import nn

class NoNorm(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.empty = nn.Parameter(torch.ones(4, 0))
    def forward(self, x):
        return x + self.empty.sum()

def power(x):
    return x.relu() ** 2

def fails(x):
    raise ValueError("no\\nway")

def diverges(parameters, spec):
    return torch.optim.SGD([p for _, p in parameters], lr=1e100)
"""


@pytest.fixture
def with_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that returns the fingerprint of a deep model with own parts."""
    (tmp_path / "experiments" / "parts").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\ndependencies = ["gptlab"]\n')
    file = tmp_path / "experiments" / "parts" / "mine.py"
    file.write_text(PARTS)
    monkeypatch.chdir(tmp_path)

    def compute(changes: dict[str, Any]):
        deep = Experiment(name="deep", why="Is it finite?").with_changes({**SMALL, "model.n_layer": 12})
        own = {field: f"experiments.parts.mine:{name}" for field, name in changes.items()}
        experiment = deep.with_changes(own)
        return fingerprints_module.compute(experiment, tokenizer_of(experiment))

    return compute


def test_a_model_that_overflows_with_noise_is_trained_with_less(with_part):
    numbers = with_part({"model.norm": "NoNorm", "model.activation": "power"}).numbers
    assert {"loss before training", "loss 3"} <= numbers.keys()


def test_numbers_that_are_not_finite_are_left_out(with_part):
    numbers = with_part({"train.optimizer": "diverges"}).numbers
    assert "loss before training" in numbers
    assert "loss 3" not in numbers


def test_a_part_that_raises_an_error_is_bad_input_in_one_line(with_part):
    with pytest.raises(BadInputError, match=r"model\.activation experiments\.parts\.mine:fails: ValueError: no way$"):
        with_part({"model.activation": "fails"})


# --- Everything that computes is run, or its syntax is hashed ---

SPECS = [
    SMALL,
    {**SMALL, "model.tied": True, "model.dropout": 0.1, "train.grad_clip": 0, "train.warmup_steps": 3},
    *({**SMALL, "model.activation": name} for name in ("gelu-exact", "relu", "relu2", "silu")),
    *({**SMALL, "train.schedule": name, "train.horizon": 100} for name in ("linear", "cosine", "wsd")),
    {**SMALL, "train.schedule": "wsd", "train.warmup_steps": 5},
]
COMPUTING = (ACTIVATIONS, EVALUATE, LOSS, MODEL, OPTIMIZER, RANDOMNESS, RECOMPUTE, SCHEDULE, STEP, WINDOWS)
NOT_TRAINING = (
    *("key, value = cache.extend(self.layer, key, value)", "cache.length += T", "x = x[:, -1:]"),
    *(
        "return F.linear(x, output) if",
        "return token_cross_entropy(x, weight, targets).mean()",
        "return math.exp(self.loss)",
    ),
    *(
        "_check_tensors(model)",
        "optimizers.check_gradients(self.model)",
        "longest = len(self.tokens) // 2",
        "return (self.offset + step",
    ),
)
"""Beginnings of lines that run when a model is sampled, or only check something."""
WITH_PARTS_OR_SAVED_STATE = {
    *(
        "learning_rate",
        "_learning_rate",
        "_scaled",
        "build",
        "_problem",
        "with_weights",
        "_check_tensors",
        "check_gradients",
    ),
    *("state_tensors", "state_values", "load_state", "load_state_tensors"),
}


def executed_lines(changes: Mapping[str, Any]) -> set[tuple[str, int]]:
    """The lines of the package that a small training runs, and their files."""
    lines: set[tuple[str, int]] = set()
    package = str(mutants.PACKAGE)

    def trace(frame: FrameType, event: str, argument: object):
        if not frame.f_code.co_filename.startswith(package):
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    experiment = Experiment(name="traced", why="Which lines run?").with_changes(changes)
    windows._block_starts.cache_clear()
    sys.settrace(trace)
    try:
        fingerprints_module.compute(experiment, tokenizer_of(experiment))
    finally:
        sys.settrace(None)
    return lines


def code_lines(code: CodeType) -> Iterator[tuple[str, int]]:
    """Each line of the functions in a code object, with the function's qualified name."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_lines(constant)
            if constant.co_flags & inspect.CO_OPTIMIZED and not constant.co_name.startswith("<"):  # no class body
                body = {line for *_, line in constant.co_lines() if line and line > constant.co_firstlineno}
                yield from ((constant.co_qualname, line) for line in body)


@pytest.mark.slow
def test_every_line_that_computes_is_run_or_hashed():
    executed = set().union(*map(executed_lines, SPECS))
    unchecked = fingerprints_module.UNCHECKED + fingerprints_module.UNCHECKED_IN_BFLOAT16
    hashed = {name.partition(":")[2] for name in unchecked}
    missed = []
    for file in COMPUTING:
        path = mutants.PACKAGE / file
        source = path.read_text()
        raising = {
            line
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Raise | ast.ExceptHandler)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        for function, line in code_lines(compile(source, str(path), "exec")):
            text = source.splitlines()[line - 1].strip()
            ignored = function in hashed | WITH_PARTS_OR_SAVED_STATE or text.startswith(NOT_TRAINING)
            if not ignored and line not in raising and (str(path), line) not in executed:
                missed.append(f"{file}:{line} {function}: {text}")
    assert not missed, "\n".join(missed)
