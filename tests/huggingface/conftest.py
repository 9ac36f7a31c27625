"""`transformers`, offline and quiet."""

import os
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The library; tests skip without it. Its import takes 3 s of CPU time."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    library = pytest.importorskip("transformers", reason="needs transformers: pip install 'gptlab[dev]'")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library
