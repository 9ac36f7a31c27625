"""The checks hold for every part that is shipped or built in, and each fails for a part that is wrong in that way."""

import json
from pathlib import Path

import pytest

from gptlab import parts as resolving
from gptlab.commands import check as command
from gptlab.errors import BadInputError
from gptlab.part_names import BUILT_IN
from gptlab.training.check import check_part

PARTS = Path(__file__).parents[2] / "experiments" / "parts"
SHIPPED = [
    ("model.feed_forward", "relu:ReLUFeedForward"),
    ("model.activation", "relu:squared_relu"),
    ("model.activation", "relu:exact_gelu"),
    ("model.feed_forward", "swiglu:SwiGLU"),
    ("model.norm", "rms_norm:RMSNorm"),
    ("model.block", "post_norm:PostNormBlock"),
    ("model.position", "positions:NoPositions"),
    ("model.position", "positions:Rotary"),
    ("train.optimizer", "sgd:sgd"),
    ("train.optimizer", "adam:adam_l2"),
    ("train.optimizer", "lion:lion"),
    ("train.optimizer", "muon:muon"),
]
NAMED = [(field, name) for field, names in BUILT_IN.items() for name in names]


def test_every_shipped_file_is_checked():
    assert {name.partition(":")[0] for _, name in SHIPPED} == {file.stem for file in PARTS.glob("*.py")}


@pytest.mark.parametrize(
    ("field", "name"), [*((field, f"experiments.parts.{name}") for field, name in SHIPPED), *NAMED]
)
def test_a_shipped_part_passes_its_checks(field: str, name: str):
    checks = check_part(field, name)
    assert len(checks) >= 5
    assert [check for check in checks if not check.passed] == []


WRONG = '''
import math, random
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, spec, layer=0):
        super().__init__()
        self.projection = nn.Linear(spec.n_embd, spec.n_embd)
        self.spec = spec

    def forward(self, x, rotate=None, cache=None):
        return self.projection(x)

class Narrow(Base):
    def forward(self, x, rotate=None, cache=None): return self.projection(x)[..., :1]

class LooksAhead(Base):
    def forward(self, x, rotate=None, cache=None): return self.projection(x) + x.mean(1, keepdim=True)

class LooksBack(Base):
    def forward(self, x): return self.projection(x.cumsum(1))

class Detached(Base):
    def forward(self, x): return self.projection(x).tanh().detach() + self.projection(x)

class Unused(Base):
    def forward(self, x): return x * 0.5

class Random(Base):
    def forward(self, x): return self.projection(x) + torch.randn(()) * random.random()

class Single(Base):
    def forward(self, x): return self.projection(x) * (1.0 if x.dtype == torch.float64 else 1.01)

class Table(Base):
    def __init__(self, spec):
        super().__init__(spec)
        self.table = nn.Parameter(torch.ones(3 if self.projection.weight.is_meta else 4))
    def forward(self, x): return self.projection(x) * self.table.mean()

class Counts(Base):
    def __init__(self, spec):
        super().__init__(spec)
        self.scale = random.random()
    def forward(self, x): return self.projection(x) * self.scale

class Remembers(nn.Module):
    """An attention whose cache forgets."""
    def __init__(self, spec, layer):
        super().__init__()
        self.projection = nn.Linear(spec.n_embd, spec.n_embd)
    def forward(self, x, rotate=None, cache=None):
        return self.projection(x.cumsum(1))

def in_rows(x): return x - x.amax(-1, keepdim=True) + x.flip(1) * 0 if x.ndim > 1 else x[:-1]

class Opt(torch.optim.Optimizer):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                with torch.no_grad():
                    p.sub_(self.update(p), alpha=group["lr"])
    def update(self, p): return p.grad

class Climbs(Opt):
    def update(self, p): return -p.grad

class Skips(Opt):
    def update(self, p): return p.grad * (p.ndim > 1)

class Rolls(Opt):
    def update(self, p): return p.grad * random.random()

class Forgets(Opt):
    """Its state is no part of `state`."""
    def update(self, p):
        self.seen = getattr(self, "seen", 0) + 1
        return p.grad / self.seen

class Halves(Opt):
    def update(self, p): return torch.dot(p.grad.float().flatten(), torch.ones(p.numel(), dtype=p.dtype)) + p.grad

def make(kind): return lambda parameters, spec: kind([p for _, p in parameters], {"lr": spec.learning_rate})
climbs, skips, rolls, forgets, halves = map(make, (Climbs, Skips, Rolls, Forgets, Halves))
def partial(parameters, spec): return Opt([p for _, p in parameters][1:], {"lr": 1.0})

def negative(step, spec): return -1.0
def infinite(step, spec): return math.inf
def text(step, spec): return "fast"
def zero(step, spec): return 0
def rolls_rate(step, spec): return random.random()
def extended(step, spec): return spec.learning_rate * (1 - step / (spec.steps * 1000))
def too_short(step, spec): return [1e-3] * spec.horizon and ([1e-3] * spec.horizon)[step]
'''


@pytest.fixture
def wrong(project: Path) -> None:
    (project / "experiments" / "mine.py").write_text(WRONG)
    resolving._import.cache_clear()


@pytest.mark.parametrize(
    ("field", "name", "failing"),
    [
        ("model.feed_forward", "Narrow", "keeps the shape"),
        ("model.attention", "LooksAhead", "a later token"),
        ("model.block", "LooksAhead", "a later token"),
        ("model.feed_forward", "LooksBack", "key-value cache"),
        ("model.attention", "Remembers", "key-value cache"),
        ("model.feed_forward", "Detached", "gradients agree"),
        ("model.feed_forward", "Unused", "every parameter has a gradient"),
        ("model.feed_forward", "Random", "the same bits"),
        ("model.feed_forward", "Single", "float32 agrees"),
        ("model.feed_forward", "Table", "builds"),
        ("model.feed_forward", "Counts", "a restored model"),
        ("model.activation", "in_rows", "keeps the shape"),
        ("train.optimizer", "climbs", "descends"),
        ("train.optimizer", "skips", "changes every parameter"),
        ("train.optimizer", "rolls", "the same gradients"),
        ("train.optimizer", "forgets", "saved and restored"),
        ("train.optimizer", "halves", "works in float64"),
        ("train.optimizer", "partial", "has every parameter"),
        ("train.schedule", "negative", "finite and not negative"),
        ("train.schedule", "infinite", "finite and not negative"),
        ("train.schedule", "text", "finite and not negative"),
        ("train.schedule", "zero", "some rate is positive"),
        ("train.schedule", "rolls_rate", "depends on the step"),
        ("train.schedule", "extended", "the number of steps"),
        ("train.schedule", "too_short", "horizon is reached"),
    ],
)
def test_a_check_fails_for_a_part_that_is_wrong(wrong, field: str, name: str, failing: str):
    checks = check_part(field, f"experiments.mine:{name}")
    assert any(failing in check.name for check in checks if not check.passed), checks
    assert all("\n" not in check.problem for check in checks)


def test_the_command_finds_the_field_and_reports_each_check(wrong, project: Path, capsys):
    (project / "experiments" / "user.py").write_text(
        "from experiments.micro import micro\n"
        'skips = micro.vary("skips", why="?", **{"train.optimizer": "experiments.mine:skips"})\n'
    )
    result = command.check("experiments.mine:skips", None)
    assert (result.field, result.exit_code) == ("train.optimizer", 1)
    command.render(result)
    printed = capsys.readouterr().out
    assert "✗ a step changes every parameter" in " ".join(printed.split())
    assert "✓ has every parameter once" in " ".join(printed.split())
    document = json.loads(json.dumps(result.document()))
    assert (document["passed"], len(document["checks"])) == (False, len(result.checks))
    assert command.check("cosine", None).exit_code == 0


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("experiments.mine:skips", None, "no experiment uses it; give --field"),
        ("experiments.mine:skips", "train.optimiser", "did you mean 'train.optimizer'?"),
        ("experiments.mine:skip", "train.optimizer", "experiments/mine.py defines no skip; did you mean 'skips'?"),
        ("experiments.gone:x", "model.norm", "there is no file experiments/gone.py"),
        ("rleu", "model.activation", "there is no part 'rleu' of model.activation; did you mean 'relu'?"),
        ("gptlab.cli:main", "model.norm", "a part is named like experiments.parts.NAME:NAME"),
    ],
)
def test_a_part_that_cannot_be_checked_is_one_line(wrong, name, field, message):
    with pytest.raises(BadInputError, match=message.replace("?", r"\?")) as caught:
        command.check(name, field)
    assert "\n" not in str(caught.value)
