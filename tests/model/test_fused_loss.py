"""The loss of the GPU, executed by Triton's interpreter on the CPU."""

import pytest

pytest.importorskip("triton", reason="Triton has no build for this system")


@pytest.fixture(scope="module")
def fused():
    """The module with a kernel that is interpreted, apart from the one that others import."""
    import importlib.util
    import os

    spec = importlib.util.find_spec("gptlab.model.fused_loss")
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        os.environ.pop("TRITON_INTERPRET") if before is None else os.environ.update(TRITON_INTERPRET=before)
