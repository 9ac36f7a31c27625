"""torch's AdamW without the dynamo wrappers, for steps that are captured as a CUDA graph or not.

torch wraps these methods so that `torch.compile` skips them. The first call of a wrapper imports the compiler, which
adds 1.0 s to every start (0.95 to 1.2 s in eight fresh processes, against 0.002 s without the wrappers).
"""

import torch
from torch.optim import Optimizer


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that does not import `torch.compile`; the numbers are the same."""

    # functools.wraps sets `__wrapped__`, which the type stubs do not know.
    add_param_group = Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    load_state_dict = Optimizer.load_state_dict.__wrapped__  # type: ignore[attr-defined]
    state_dict = Optimizer.state_dict.__wrapped__  # type: ignore[attr-defined]
    step = torch.no_grad()(torch.optim.AdamW.step.__wrapped__)  # type: ignore[attr-defined]
    zero_grad = Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]

    def _accelerator_graph_capture_health_check(self) -> None:
        """Do nothing: torch would warn of a capturable optimizer that also runs without a capture."""
