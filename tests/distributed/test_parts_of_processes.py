"""The pieces that several processes are made of, in one process."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gptlab.checkpoints.gathered import write_gathered
from gptlab.checkpoints.tensors import DTYPES, write_tensors
from gptlab.data.windows import Windows
from gptlab.distributed.division import check_division
from gptlab.distributed.place import Place
from gptlab.distributed.workers import SINGLE, Group
from gptlab.errors import BadInputError, GptlabError
from gptlab.training.distribution import choose_for_processes
from gptlab.training.joint_step import JointStep
from gptlab.training.settings import Available, resolve_settings
from gptlab.training.step import TrainingStep


def of_rank(rank: int, size: int) -> Group:
    """A process that is not connected to the others."""
    group = object.__new__(Group)
    group.rank, group.size = rank, size
    return group


def test_the_processes_have_the_windows_of_one():
    windows = Windows(np.arange(5000), 10, batch_size=6, seed=3)
    rows = [replace(windows, rows=of_rank(rank, 3).rows(6)).batch(7) for rank in range(3)]
    assert [len(each) for each in rows] == [2, 2, 2]
    assert (np.concatenate(rows) == windows.batch(7)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_equal_shares_have_all_windows_of_an_evaluation(count):
    shares = [of_rank(rank, 3).share(np.arange(count)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1  # else a process would wait for the others' gathering of weights
    assert np.concatenate(shares)[:count].tolist() == list(range(count))


def test_what_cannot_be_divided_is_refused_in_one_line_with_what_can(micro):
    def refused(processes: int, *, shard: bool = False, **changes: object) -> str:
        with pytest.raises(BadInputError) as error:
            check_division(
                micro.with_changes({f"train.{key}": value for key, value in changes.items()}), processes, shard=shard
            )
        return str(error.value)

    assert refused(4, batch_size=6) == (
        "train.batch_size 6 cannot be divided by 4 processes; use 1, 2, 3 or 6 processes, or "
        "--set train.batch_size=4 or 8"
    )
    assert "use 1 process, or --set train.batch_size=2" in refused(2, batch_size=1)
    assert "there is only one; add --nproc" in refused(1, shard=True)
    assert "leave --shard out" in refused(2, shard=True, optimizer="experiments.parts.lion:Lion")
    settings = resolve_settings("cpu", "float32", Available(cuda=True, mps=False, bfloat16=False))
    two = Place(0, 2, 0, 2)
    assert choose_for_processes(replace(settings, device="cpu", capture=True), two, None).capture is False
    for device, capture, reason in (("cpu", True, "--capture"), ("mps", None, "mps"), ("cuda", None, "0")):
        with pytest.raises(BadInputError, match=reason):
            choose_for_processes(replace(settings, device=device), two, capture)


def test_gathered_tensors_have_the_bytes_of_those_written_at_once(tmp_path):
    tensors = {
        f"{'äb'[n % 2]}/{n}\t": torch.arange(6 * n).reshape(2, 3, n).to(d) for n, d in enumerate(DTYPES.values())
    }
    tensors["scalar"] = torch.tensor(1.5)
    metadata = {"gptlab": '{"why":"ü \\" \\n"}'}
    at_once = write_tensors(tmp_path / "one", tensors, metadata)
    gathered = write_gathered(tmp_path / "two", tensors, metadata, lambda tensor: tensor)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert at_once == gathered
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode


class Part(nn.Module):
    """Stands for a model whose part does something that several processes cannot."""

    def __init__(self, deed: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("count", torch.zeros(()))
        self.deed = deed

    def forward(self, tokens, targets):
        if self.deed == "draws":
            torch.rand(1)
        if self.deed == "counts":
            self.count += 1
        return self.weight.sum()


@pytest.mark.parametrize(("deed", "reason"), [("draws", "draws random numbers"), ("counts", "its buffer count")])
def test_parts_that_several_processes_cannot_share_are_refused(micro, deed, reason):
    experiment = micro.with_changes({"model.norm": "experiments.parts.rms_norm:RMSNorm"})
    settings = resolve_settings("cpu", "float32", Available(cuda=False, mps=False, bfloat16=False))
    for what, expected in (("nothing", None), (deed, reason)):
        model = Part(what)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = TrainingStep(model, optimizer, experiment, 0, settings)
        joint = JointStep(step, SINGLE, lambda model=model: model.weight.grad.square().sum(), lambda: False)
        if expected is None:
            loss, norm = joint(torch.zeros(1, 3, dtype=torch.long), 0)
            assert (float(loss), float(norm)) == (4.0, 2.0)
            assert not joint.stops()
        else:
            with pytest.raises(GptlabError, match=expected):
                joint(torch.zeros(1, 3, dtype=torch.long), 0)
