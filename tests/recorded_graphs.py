"""CUDA graphs on a CPU: operations of a function are recorded and repeated on the same tensors, without its Python."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
"""Operations for which the host would wait for a GPU."""


class _Strict(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING:
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


class _Recorder(_Strict):
    """Records operations, and the values that tensors from outside had before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []
        self.outside: dict[int, tuple[Tensor, Tensor]] = {}
        self._inside: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._inside:
                self.outside.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._inside |= {id(tensor): tensor for tensor in _tensors(result)}
        self.operations.append((func, args, kwargs, result))
        return result


class RecordedGraphs:
    """Takes the place of `CudaGraphs`."""

    def warm_up(self, function: Callable[[], None], *, strict: bool) -> None:
        if strict:
            with _Strict():
                function()
        else:
            function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        with _Recorder() as recorder:
            function()
        for tensor, value in recorder.outside.values():
            tensor.detach().copy_(value)  # a capture runs nothing

        @torch.no_grad()
        def replay() -> None:
            for func, args, kwargs, result in recorder.operations:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    if old is not new:
                        old.detach().copy_(new.clone())

        return replay


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
