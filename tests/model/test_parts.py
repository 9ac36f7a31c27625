"""A model with parts is trained, resumed, evaluated, sampled and analyzed like any other."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptlab import catalog, parts
from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory, list_checkpoints
from gptlab.checkpoints.read import load_model
from gptlab.commands import list_experiments, show
from gptlab.data.vocabularies import tokenizer_of
from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.model.measure import count, size_of
from gptlab.model.sample import samples
from gptlab.spec import Experiment, ModelSpec
from gptlab.tracking.run import load_run

HERE = Path(__file__).parents[2]
SHIPPED = {
    "model.feed_forward": "experiments.parts.swiglu:SwiGLU",
    "model.norm": "experiments.parts.rms_norm:RMSNorm",
    "model.block": "experiments.parts.post_norm:PostNormBlock",
    "model.position": "experiments.parts.positions:Rotary",
}

MINE = '''
import torch
from torch import nn
from experiments.parts.base import Base

class Scaled(Base):
    """A learned scale that begins at 2, random offsets, tables, masks, a running mean and its own dropout."""
    def __init__(self, spec):
        super().__init__(spec)
        self.scale = nn.Parameter(torch.empty(()))
        self.offset = nn.Parameter(torch.empty(spec.n_embd))
        self.mask = torch.ones(spec.n_embd)
        self.register_buffer("table", torch.arange(spec.n_embd).float() / spec.n_embd, persistent=False)
        self.register_buffer("even", torch.arange(spec.n_embd) % 2 == 0)
        self.register_buffer("mean", torch.zeros(spec.n_embd))

    def initialize(self, name, parameter, generator):
        if name == "scale":
            parameter.fill_(2.0)
        elif name == "offset":
            nn.init.normal_(parameter, generator=generator)
        else:
            return False

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
            x = nn.functional.dropout(x, 0.1)
        x = self.projection(x) + self.offset + self.table * self.even - self.mean * self.mask
        return self.scale * x
'''
BASE = """
from torch import nn

class Base(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.projection = nn.Linear(spec.n_embd, spec.n_embd)
"""
WRONG = """
import torch
from torch import nn
def no_module(spec): return lambda x: x
def fails(spec): raise KeyError("x")
def arguments(): return nn.Identity()
class Crashes(nn.Module):
    def __init__(self, spec): super().__init__()
    def forward(self, x): return x[..., :3] @ x
class Unused(nn.Linear):
    def __init__(self, spec): super().__init__(spec.n_embd, spec.n_embd)
    def forward(self, x): return x
class Doubled(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.a = self.b = nn.Linear(spec.n_embd, spec.n_embd)
    def forward(self, x): return self.a(x)
class Frozen(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.a = nn.Parameter(torch.ones(1), requires_grad=False)
    def forward(self, x): return x * self.a
number = 3
"""


@pytest.fixture
def mine(project: Path) -> Path:
    folder = project / "experiments" / "parts"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    (folder / "base.py").write_text(BASE)
    (folder / "wrong.py").write_text(WRONG)
    (folder / "broken.py").write_text("import os\nimport nothing_of_this_name\n")
    (folder / "exits.py").write_text("raise SystemExit(3)\n")
    parts._import.cache_clear()
    return folder


def variant(micro: Experiment, changes: dict[str, object]) -> Experiment:
    few = {"train.steps": 6, "train.log_every": 3, "train.eval_every": 6, "data.val_windows": 1}
    return micro.with_changes({**few, **changes})


def bytes_of(directory: Path, step: int) -> list[bytes]:
    return [(checkpoint_directory(directory, step) / file).read_bytes() for file in (MODEL, OPTIMIZER)]


@pytest.mark.parametrize("changes", [SHIPPED, {"model.feed_forward": "experiments.parts.mine:Scaled"}])
def test_a_model_with_parts_is_resumed_exactly(request, train, micro, tmp_path, monkeypatch, changes):
    if changes is not SHIPPED:
        request.getfixturevalue("mine")
    spec = variant(micro, changes)
    whole = train(spec).run
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "resumed"))
    train(spec, steps=3)
    resumed = train(spec).run
    assert bytes_of(resumed.directory, 6) == bytes_of(whole.directory, 6)
    model = load_model(list_checkpoints(whole.directory)[-1], spec.model)
    assert whole.record.size == size_of(spec) == count(spec.model, 16)
    assert whole.record.size.parameters == sum(parameter.numel() for parameter in model.parameters())
    (text,) = samples(model, "The", 1, trained_length=16, tokenizer=tokenizer_of(spec))
    assert load_run(whole.directory).samples()[-1]["text"] == text


def test_flops_counted_on_the_built_model_are_those_of_the_closed_form():
    for shape in ({}, {"tied": True}, {"bias": False, "n_layer": 3}):
        spec = ModelSpec(**{"n_layer": 1, "n_head": 2, "n_embd": 8, "context_length": 32, **shape})
        counted = count(spec, 7)
        assert counted.parameters == spec.parameters
        assert counted.forward_flops_per_token == spec.forward_flops_per_token(7)


def test_swiglu_has_as_many_parameters_as_the_mlp():
    for bias in (True, False):
        spec = ModelSpec(n_layer=1, n_head=4, n_embd=128, bias=bias)
        swiglu = count(spec.model_copy(update={"feed_forward": SHIPPED["model.feed_forward"]}), 8).parameters
        assert abs(swiglu - spec.parameters) <= (3 * 128 + 2 * bias) / 2


def test_initial_values_of_parts_depend_on_seed_and_name_only(mine, micro):
    spec = variant(micro, {"model.feed_forward": "experiments.parts.mine:Scaled"}).model
    torch.manual_seed(0)
    one = gpt.build(spec, seed=1).state_dict()
    torch.manual_seed(1)
    two, other = gpt.build(spec, seed=1).state_dict(), gpt.build(spec, seed=2).state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    offsets = [state[f"blocks.{layer}.feed_forward.offset"] for state in (one, other) for layer in (0, 1)]
    assert len({tuple(offset.tolist()) for offset in offsets}) == 4
    assert one["blocks.0.feed_forward.scale"] == 2
    plain = gpt.build(micro.model, seed=1).state_dict()
    shared = plain.keys() & one.keys()
    assert all(torch.equal(plain[name], one[name]) for name in shared if plain[name].shape == one[name].shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parts.wrong:no_module", "returns function, not a torch.nn.Module"),
        ("parts.wrong:fails", r"experiments/parts/wrong.py:5: KeyError: 'x'"),
        ("parts.wrong:arguments", r"experiments/parts/wrong.py: TypeError: arguments\(\) takes 0 positional arguments"),
        ("parts.wrong:Crashes", "cannot be computed with model.feed_forward experiments.parts.wrong:Crashes: RuntimeE"),
        ("parts.wrong:Unused", "blocks.0.feed_forward.weight has no gradient"),
        ("parts.wrong:Doubled", "use blocks.0.feed_forward.a.weight again as blocks.0.feed_forward.b.weight"),
        ("parts.wrong:Frozen", "a parameter without gradient; parameters are trainable and float32, use a buffer"),
        ("parts.wrong:number", "number in experiments/parts/wrong.py is no function or class"),
        ("parts.wrong:crashes", "defines no crashes; did you mean 'Crashes'"),
        (
            "parts.broken:X",
            r"experiments/parts/broken.py:2: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        ("parts.exits:X", r"experiments/parts/exits.py:1: SystemExit: 3"),
        ("parts.gone:X", "but there is no file experiments/parts/gone.py; restore it"),
    ],
)
def test_a_wrong_part_is_one_line_and_nothing_is_written(mine, train, micro, tmp_path, name, message):
    with pytest.raises(BadInputError, match=message) as caught:
        train(variant(micro, {"model.feed_forward": f"experiments.{name}"}))
    assert "model.feed_forward" in str(caught.value) or "blocks.0.feed_forward" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_whose_part_is_gone_can_be_read_but_not_used(mine, train, micro, capsys):
    spec = variant(micro, {"model.feed_forward": "experiments.parts.mine:Scaled", "train.steps": 1})
    run = train(spec).run
    (mine / "mine.py").unlink()
    parts._import.cache_clear()
    gone = "model.feed_forward is experiments.parts.mine:Scaled, but there is no file experiments/parts/mine.py"
    with pytest.raises(BadInputError, match=gone):
        train(spec, steps=2)
    with pytest.raises(BadInputError, match=gone):
        load_model(list_checkpoints(run.directory)[-1], spec.model)
    assert "damaged" not in capsys.readouterr().err
    description = show.describe(run.id)
    assert description.document()["parameters"] == run.record.size.parameters
    show.render(description)
    assert f"the layers are not shown: {gone}" in " ".join(capsys.readouterr().out.split())
    from analysis import load, weights

    table = load.runs().iloc[0]
    assert (table["parameters"], table["model.feed_forward"]) == (
        run.record.size.parameters,
        "experiments.parts.mine:Scaled",
    )
    assert {row["tensor"] for row in weights.statistics(run)} >= {"blocks.0.feed_forward.offset", "output.weight"}


def test_a_part_is_read_from_the_users_own_project_only(mine, micro, tmp_path, monkeypatch):
    """Neither a folder in a run's directory nor gptlab's own checkout stands in for the user's project."""
    with pytest.raises(BadInputError, match="there is no file experiments/parts/swiglu.py"):
        parts.resolve("model.feed_forward", SHIPPED["model.feed_forward"])
    assert parts.resolve("model.feed_forward", "experiments.parts.mine:Scaled").__name__ == "Scaled"
    run = tmp_path / "project" / "runs" / "somebodys"
    (run / "experiments" / "parts").mkdir(parents=True)
    (run / "experiments" / "parts" / "evil.py").write_text("raise SystemError('executed')\n")
    (run / "pyproject.toml").write_text("[tool.gptlab]\n")
    (run / "run.json").write_text("{}")
    monkeypatch.chdir(run)
    with pytest.raises(BadInputError, match=r"there is no file .*/project/experiments/parts/evil.py"):
        parts.resolve("model.norm", "experiments.parts.evil:X")
    assert str(tmp_path / "project") not in sys.path


@pytest.mark.parametrize(
    "name", ["os:system", "experiments:x", "experiments.a.:b", "experiments.a:_b", "experiments.a:b.c"]
)
def test_other_names_are_no_parts(name):
    with pytest.raises(BadInputError, match="there is no norm"):
        Experiment(name="x", why="?").with_changes({"model.norm": name})


def test_listing_imports_no_part_and_no_torch(mine, project):
    (mine / "mine.py").write_text("raise SystemError('imported')\n")
    (project / "experiments" / "user.py").write_text(
        "from experiments.micro import micro\n"
        'own = micro.vary("own", why="?", **{"model.norm": "experiments.parts.mine:Scaled"})\n'
    )
    assert {row["name"]: row["parameters"] is None for row in list_experiments.list_experiments()} == {
        "micro": False,
        "own": True,
    }
    code = "import sys; from gptlab import catalog, parts; catalog.experiments(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_shipped_experiments_are_those_of_their_files(monkeypatch):
    monkeypatch.chdir(HERE)
    for experiment in catalog.experiments().values():
        assert size_of(experiment).parameters > 10**5


def test_a_record_with_a_wrong_or_missing_size_is_refused(train, micro):
    run = train(variant(micro, {"train.steps": 1})).run
    document = run.record.model_dump(mode="json")
    with pytest.raises(ValueError, match="the size does not belong to the spec"):
        type(run.record).model_validate({**document, "size": {"parameters": 1, "forward_flops_per_token": 1}})
    assert type(run.record).model_validate({**document, "size": None}).model_size == run.record.size


def test_a_parameter_without_gradient_in_a_step_is_one_line(mine, train, micro):
    (mine / "late.py").write_text(
        "from torch import nn\nclass Late(nn.Linear):\n    def __init__(self, spec): super().__init__(8, 8)\n"
        "    def forward(self, x): return x if x.device.type == 'cpu' else super().forward(x)\n"
    )
    with pytest.raises(GptlabError, match=r"blocks\.0\.feed_forward\.weight has no gradient: the model's part"):
        train(variant(micro, {"model.feed_forward": "experiments.parts.late:Late"}))
