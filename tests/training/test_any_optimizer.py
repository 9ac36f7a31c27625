"""Any `torch.optim.Optimizer` is saved and restored with the same bits, or refused with one line."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from gptlab.checkpoints.manifest import MODEL, OPTIMIZER, checkpoint_directory, list_checkpoints
from gptlab.errors import BadInputError, GptlabError
from gptlab.model import gpt
from gptlab.spec import Experiment
from gptlab.tracking.records import RunRecord
from gptlab.tracking.run import Run
from gptlab.training import optimizer
from gptlab.training.initial import find_branch

MINE = '''
import torch
from torch.optim import ASGD, Adadelta, Adafactor, Adagrad, Adamax, NAdam, RAdam, RMSprop, Rprop, SGD

def plain(kind, **options):
    return lambda parameters, spec: kind([p for _, p in parameters], lr=spec.learning_rate, **options)

momentum = plain(SGD, momentum=0.9, nesterov=True)
sgd = plain(SGD)
adagrad, adamax, nadam, radam, asgd = map(plain, (Adagrad, Adamax, NAdam, RAdam, ASGD))
rprop, adadelta, adafactor = map(plain, (Rprop, Adadelta, Adafactor))
rmsprop = plain(RMSprop, centered=True, momentum=0.5)

def decayed(parameters, spec):
    return plain(SGD, momentum=0.9, weight_decay=spec.weight_decay)(parameters, spec)

class Odd(torch.optim.Optimizer):
    """State of every kind: other dtypes and shapes, numbers, None, and values in the group that change."""
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group["k"] * 1.1 + 1
            group["seen"] = (*group["seen"][-2:], group["k"])
            group["table"] = group["table"] + 0.5
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(half=torch.zeros_like(p, dtype=torch.bfloat16), count=torch.tensor(0), n=0, best=None,
                                 limit=float("inf"), signs=torch.zeros(p.shape[0], dtype=torch.bool), flag=True)
                state["half"].add_(p.grad.bfloat16())
                state["count"] += 3
                state["n"] += 1
                state["best"] = None if state["n"] % 2 else p.grad.abs().max().item()
                state["signs"] = p.grad.reshape(len(p), -1)[:, 0] > 0
                with torch.no_grad():
                    p.sub_(state["half"].float() + state["signs"].reshape(-1, *[1] * (p.ndim - 1)) * group["k"] * 0.01
                           + 0.001 * state["count"] + (state["best"] or 0.1) + group["table"].mean(), alpha=group["lr"])

def odd(parameters, spec):
    return Odd([p for _, p in parameters], {"lr": spec.learning_rate, "k": 0.0, "seen": (), "table": torch.zeros(3)})

class Bad(Odd):
    value = [{}]
    def step(self, closure=None):
        super().step()
        p = self.param_groups[0]["params"][0]
        self.state[p].update(self.extra(p))

def bad(extra):
    def make(parameters, spec):
        made = odd(parameters, spec)
        made.__class__ = type("Bad", (Bad,), {"extra": lambda self, p: extra(self, p)})
        return made
    return make

bad_object = bad(lambda self, p: {"thing": object()})
bad_list = bad(lambda self, p: {"old": [torch.ones(2)]})
bad_alias = bad(lambda self, p: {"alias": self.state[p]["half"]})
bad_parameter = bad(lambda self, p: {"alias": p.detach()})
bad_complex = bad(lambda self, p: {"c": torch.ones(2, dtype=torch.complex64)})
bad_large = bad(lambda self, p: {"history": [0.5] * 100_000})
def _under_text(self, p):
    self.state["everything"] = {"k": 1}
    return {}
bad_owner = bad(_under_text)

def forgets(parameters, spec):
    return SGD([p for _, p in parameters][1:], lr=0.1)
def twice(parameters, spec):
    return SGD([{"params": [p for _, p in parameters]}, {"params": [torch.nn.Parameter(torch.ones(1))]}], lr=0.1)
def nothing(parameters, spec):
    return None
def fails(parameters, spec):
    raise ValueError("no such thing")
def closure(parameters, spec):
    return torch.optim.LBFGS([p for _, p in parameters])
'''


@pytest.fixture
def parts(project: Path) -> Path:
    folder = project / "experiments" / "parts"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    return folder


def variant(micro: Experiment, name: str) -> Experiment:
    part = name if ":" in name else f"experiments.parts.mine:{name}"
    changes = {"train.optimizer": part, "model.n_layer": 1, "train.eval_every": 8, "train.checkpoint_every": 100}
    return micro.with_changes({**changes, "train.log_every": 4, "data.val_windows": 1})


def files_of(run: Run, step: int) -> list[Path]:
    return [checkpoint_directory(run.directory, step) / file for file in (MODEL, OPTIMIZER)]


def bytes_of(run: Run, step: int) -> list[bytes]:
    return [path.read_bytes() for path in files_of(run, step)]


OPTIMIZERS = ["momentum", "sgd", "adagrad", "adamax", "nadam", "radam", "asgd", "rprop", "adadelta", "adafactor"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "rmsprop", "odd"])
def test_a_resumed_run_ends_with_the_same_bytes(parts, train, micro, tmp_path, monkeypatch, name):
    spec = variant(micro, name)
    whole = train(spec, steps=6).run
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "resumed"))
    train(spec, steps=3)
    resumed = train(spec, steps=6).run
    assert bytes_of(resumed, 6) == bytes_of(whole, 6)
    values = [list_checkpoints(run.directory)[-1].manifest.optimizer_values for run in (whole, resumed)]
    assert values[0] == values[1]


def start_branch(train, parent: Run, spec: Experiment, **changes: object) -> Run:
    child = spec.vary("child", why="Does it continue?", **{"train.steps": 6, **changes})
    return train(child, initial_weights=find_branch(f"{parent.id}@3", child)).run


@pytest.mark.parametrize("name", ["momentum", "sgd", "radam", "odd"])
def test_a_branch_that_changes_nothing_ends_with_the_parents_state(parts, train, micro, name):
    spec = variant(micro, name).with_changes({"train.keep_steps": [3]})
    parent = train(spec, steps=6).run
    child = start_branch(train, parent, spec)
    ours, theirs = ([load_file(file) for file in files_of(run, 6)] for run in (child, parent))
    for one, other in zip(ours, theirs, strict=True):
        assert {k: (v.dtype, v.tolist()) for k, v in one.items()} == {
            k: (v.dtype, v.tolist()) for k, v in other.items()
        }
    values = [list_checkpoints(run.directory)[-1].manifest.optimizer_values for run in (child, parent)]
    assert values[0] == values[1]
    assert child.id != parent.id


def test_a_branch_takes_settings_from_its_spec_and_state_from_its_parent(parts, train, micro):
    spec = variant(micro, "decayed").with_changes({"train.keep_steps": [3]})
    parent = train(spec, steps=3).run
    child = start_branch(train, parent, spec, **{"train.weight_decay": 0.5, "train.steps": 4})
    (before,) = (c.manifest for c in list_checkpoints(parent.directory) if c.step == 3)
    values = list_checkpoints(child.directory)[-1].manifest.optimizer_values
    assert before.optimizer_values["param_groups/0/weight_decay"] == spec.train.weight_decay
    assert values == {**before.optimizer_values, "param_groups/0/weight_decay": 0.5}
    momentum = [load_file(files_of(run, step)[1]) for run, step in ((parent, 3), (child, 4))]
    assert momentum[0].keys() == momentum[1].keys() != set()


def test_the_identity_of_a_branch_covers_the_optimizers_values_and_tensors(parts, train, micro):
    spec = variant(micro, "odd").with_changes({"train.keep_steps": [3]})
    parent = train(spec, steps=3).run
    document = start_branch(train, parent, spec).record.model_dump(mode="json")
    RunRecord.model_validate(document)
    values = {**document["branch"]["optimizer_values"], "position_embedding.weight/n": 4}
    with pytest.raises(ValidationError, match="identity does not belong"):
        RunRecord.model_validate({**document, "branch": {**document["branch"], "optimizer_values": values}})
    path = files_of(parent, 3)[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInputError, match=f"{OPTIMIZER} is damaged.*choose another step"):
        start_branch(train, parent, spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad_object", "position_embedding.weight/thing is a object, which cannot be saved"),
        ("bad_list", "position_embedding.weight/old is a Tensor, which cannot be saved"),
        ("bad_alias", "shares memory with position_embedding.weight/half"),
        ("bad_parameter", "shares memory with position_embedding.weight"),
        ("bad_complex", "position_embedding.weight/c is torch.complex64"),
        ("bad_large", "bytes besides its tensors, more than"),
        ("bad_owner", "keeps state under 'everything', which is no parameter"),
    ],
)
def test_state_that_cannot_be_restored_exactly_is_refused_at_the_first_save(parts, train, micro, name, message):
    with pytest.raises(GptlabError, match=message):
        train(variant(micro, name), steps=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forgets", "leaves out position_embedding.weight; give it every parameter"),
        ("twice", "has a tensor that is no parameter of the model"),
        ("nothing", "returns NoneType, not a torch.optim.Optimizer"),
        ("fails", r"experiments/parts/mine.py:\d+: ValueError: no such thing"),
        ("momentun", "experiments/parts/mine.py defines no momentun; did you mean 'momentum'?"),
        ("torch", "torch in experiments/parts/mine.py is no function or class"),
        ("experiments.parts.gone:sgd", "there is no file experiments/parts/gone.py"),
    ],
)
def test_a_wrong_optimizer_is_one_line(parts, micro, name, message):
    model = gpt.build(micro.model, seed=0)
    with pytest.raises(BadInputError, match=message) as caught:
        optimizer.build(model, variant(micro, name).train, fused=True)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_fails_in_a_step_is_one_line(parts, train, micro):
    with pytest.raises(GptlabError, match=r"LBFGS failed in a step: TypeError: .*closure"):
        train(variant(micro, "closure"), steps=1)


def test_a_run_whose_optimizer_is_gone_is_not_resumed(parts, train, micro):
    spec = variant(micro, "experiments.parts.mine:sgd")
    run = train(spec, steps=1).run
    (parts / "mine.py").rename(parts / "other.py")
    from gptlab import parts as resolving

    resolving._import.cache_clear()
    with pytest.raises(BadInputError, match="there is no file experiments/parts/mine.py; restore it"):
        train(spec, steps=2)
    assert run.history().step == 1
