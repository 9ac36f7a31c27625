"""Tensor files have the bytes that safetensors writes; reading one gives its tensors or an error."""

import json
import struct

import pytest
import safetensors.torch
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from strategies import as_json, damaged, oddly

from gptlab.checkpoints import tensors as module
from gptlab.checkpoints.manifest import MIB, compute_digest
from gptlab.checkpoints.tensors import DTYPES, pieces, read_tensors, write_tensors
from gptlab.errors import GptlabError

METADATA = "__metadata__"

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != METADATA)
FILES = st.dictionaries(NAMES, st.lists(st.integers(0, 4), max_size=4), max_size=6)


def filled(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def read(path, shapes, expected=None):
    with path.open("rb") as file:
        return read_tensors(path, file, path.stat().st_size, shapes, xxhash.xxh3_128(), expected)


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == others[name].shape
        assert torch.equal(tensor, others[name])


@given(shapes=FILES, metadata=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_file_has_the_bytes_that_the_library_writes(shapes, metadata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tensors = filled(shapes)
    digest = write_tensors(folder / "ours", tensors, {"gptlab": metadata})
    save_file(tensors, folder / "theirs", {"gptlab": metadata})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert digest == compute_digest(folder / "ours")
    assert_equal(read(folder / "ours", {name: tuple(shape) for name, shape in shapes.items()}), tensors)


def test_a_tensor_of_many_pieces_is_written_and_read_without_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MIB", 1000)  # no tensor's length is a multiple of it
    tensors = filled({"a": (300, 7), "b": (1,), "c": ()})
    digest = write_tensors(tmp_path / "file", tensors, {"gptlab": "{}"})
    assert (tmp_path / "file").read_bytes() == save(tensors, {"gptlab": "{}"})
    assert_equal(read(tmp_path / "file", {"a": (300, 7), "b": (1,), "c": ()}, digest.xxh3_128), tensors)
    for piece in pieces(tensors["a"]):
        piece[:] = bytes(len(piece))
    assert not tensors["a"].any()


def test_tensors_are_read_into_memory_aligned_like_torchs_own(tmp_path):
    tensors = filled({"a": (3,), "b": (5,), "c": (MIB,)})
    save_file(tensors, tmp_path / "file", {"gptlab": "{ }"})
    read_back = read(tmp_path / "file", {"a": (3,), "b": (5,), "c": (MIB,)})
    assert {tensor.data_ptr() % 64 for tensor in read_back.values()} == {0}


def test_tensors_of_every_dtype_and_shape_are_written_and_read(tmp_path):
    tensors = {name: torch.arange(count).to(dtype) for count, (name, dtype) in enumerate(DTYPES.items())}
    tensors["scalar"] = torch.tensor(True)
    digest = write_tensors(tmp_path / "file", tensors, {"gptlab": "{}"})
    assert digest == compute_digest(tmp_path / "file")
    with (tmp_path / "file").open("rb") as file:
        found = read_tensors(tmp_path / "file", file, digest.bytes, None, xxhash.xxh3_128(), digest.xxh3_128)
    assert_equal(found, tensors)
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in tensors.items()}
    with pytest.raises(GptlabError, match=r"BF16 as \[3\] BF16, but this model needs \[3\] F32"):
        read(tmp_path / "file", {name: tuple(tensor.shape) for name, tensor in tensors.items()})


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex64), torch.ones(2).to(torch.float8_e4m3fn)])
def test_other_dtypes_cannot_be_written(tmp_path, tensor):
    with pytest.raises(ValueError, match=r"a is torch\.(complex64|float8_e4m3fn), which checkpoints cannot hold"):
        write_tensors(tmp_path / "file", {"a": tensor}, {"gptlab": "{}"})


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(GptlabError, match="file cannot be written: it exists"):
        write_tensors(tmp_path / "file", {}, {"gptlab": "{}"})
    assert (tmp_path / "file").read_text() == "precious"


TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3), "a.bias/step": torch.tensor(4.0)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
SAVED = save(TENSORS, {"gptlab": "{}"})
LENGTH = struct.unpack("<Q", SAVED[:8])[0]
HEADER = json.loads(SAVED[8 : 8 + LENGTH])


def with_header(encoded):
    return struct.pack("<Q", len(encoded)) + encoded + SAVED[8 + LENGTH :]


CHANGED = oddly(HEADER).map(as_json).map(with_header)


@given(content=damaged(SAVED) | CHANGED | damaged(SAVED[8 : 8 + LENGTH]).map(with_header) | st.binary(max_size=64))
def test_any_file_is_read_as_the_library_reads_it_or_named_in_an_error(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    path.write_bytes(content)
    try:
        tensors = read(path, SHAPES)
    except GptlabError as error:
        message = str(error)
        assert message.startswith(str(path))
        return
    assert_equal(tensors, safetensors.torch.load(content))


def placed(*entries, metadata=None):
    """A header with entries (name, begin, end), each a float32 vector of length three."""
    document = {name: {"dtype": "F32", "shape": [3], "data_offsets": [begin, end]} for name, begin, end in entries}
    return json.dumps(document if metadata is None else {METADATA: metadata, **document}).encode()


@pytest.mark.parametrize(
    ("encoded", "tail", "valid"),
    [
        (placed(("a", 0, 12), ("b", 12, 24)), 24, True),
        (placed(("b", 0, 12), ("a", 12, 24)), 24, True),
        (placed(("b", 12, 24), ("a", 0, 12)) + b"    ", 24, True),
        (placed(("a", 0, 12), ("b", 12, 24), metadata={"x": "y", "z": ""}), 24, True),
        (placed(("a", 0, 12), ("b", 12, 24), metadata={"x": 1}), 24, False),
        (placed(("a", 0, 12), ("b", 12, 24), metadata=["x"]), 24, False),
        (placed(("a", 0, 12), ("b", 0, 12)), 24, False),
        (placed(("a", 0, 12), ("b", 0, 12)), 12, False),
        (placed(("a", 0, 12), ("b", 16, 28)), 28, False),
        (placed(("a", 4, 16), ("b", 16, 28)), 28, False),
        (placed(("a", 0, 16), ("b", 16, 28)), 28, False),
        (placed(("a", 12, 0), ("b", 12, 24)), 24, False),
        (placed(("a", 0, 12), ("b", 12, 24)), 23, False),
        (placed(("a", 0, 12), ("b", 12, 24)), 25, False),
        (placed(("a", 0.0, 12.0), ("b", 12, 24)), 24, False),
        (placed(("a", "0", "12"), ("b", 12, 24)), 24, False),
        (placed(("a", False, 12), ("b", 12, 24)), 24, False),
        (placed(("a", 0, 12), ("b", 12, 24)) + b"{}", 24, False),
        (placed(("a", 0, 12), ("b", 12, 24)).replace(b"[3]", b"[3.0]"), 24, False),
        (placed(("a", 0, 12), ("b", 12, 24)).replace(b"[3]", b"[-3]"), 24, False),
        (b"[" * 100_000, 24, False),
        (b"\xff" + placed(("a", 0, 12), ("b", 12, 24)), 24, False),
        (b"", 24, False),
    ],
)
def test_a_header_is_refused_if_the_library_refuses_it(tmp_path, encoded, tail, valid):
    content = struct.pack("<Q", len(encoded)) + encoded + bytes(range(tail))
    path = tmp_path / "file"
    path.write_bytes(content)
    if valid:
        assert_equal(read(path, {"a": (3,), "b": (3,)}), safetensors.torch.load(content))
        return
    with pytest.raises(SafetensorError):
        safetensors.torch.load(content)
    with pytest.raises(GptlabError, match="file is not a safetensors file"):
        read(path, {"a": (3,), "b": (3,)})


@pytest.mark.parametrize("cut", [0, 7, 8, 20, len(SAVED) - 1])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path, cut):
    path = tmp_path / "file"
    path.write_bytes(SAVED[:cut])
    with path.open("rb") as file, pytest.raises(GptlabError, match="file (is not a safetensors file|became shorter)"):
        read_tensors(path, file, len(SAVED), SHAPES, xxhash.xxh3_128(), None)


def test_a_wrong_checksum_is_reported_before_its_consequences(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(SAVED.replace(b"a.weight", b"a.height"))
    with pytest.raises(GptlabError, match="has a tensor a.height"):
        read(path, SHAPES)
    with pytest.raises(GptlabError, match="file is damaged: its checksum is not"):
        read(path, SHAPES, xxhash.xxh3_128_hexdigest(SAVED))
