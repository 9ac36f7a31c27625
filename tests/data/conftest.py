"""Texts to split and tokenize."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.data.text import Text

SHAKESPEARE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "shakespeare.txt"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for this test only."""
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture(scope="session")
def text_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Text]:
    """`text_of(content)` is a Text of these bytes."""
    folder = tmp_path_factory.mktemp("texts")

    def make(content: bytes) -> Text:
        sha256 = hashlib.sha256(content).hexdigest()
        path = folder / f"{sha256[:16]}.txt"
        path.write_bytes(content)
        return Text(path.name, path, len(content), sha256)

    return make


@pytest.fixture(scope="session")
def shakespeare_file() -> Path:
    if not SHAKESPEARE.is_file():
        pytest.skip("needs shared/data/shakespeare.txt")
    return SHAKESPEARE
