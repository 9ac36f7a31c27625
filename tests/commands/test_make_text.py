"""`gptlab text`: one text out of many files."""

import codecs
import gzip
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.commands.make_text import make, render
from gptlab.data import documents
from gptlab.errors import BadInputError
from gptlab.terminal.console import Console


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with one text of each kind, and things that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / ".git").mkdir()
    files = {
        "a.txt": b"caf\xc3\xa9\r\n",
        "b.md": codecs.BOM_UTF8 + b"mark",
        "c.txt": codecs.BOM_UTF16_LE + "wide é".encode("utf-16-le"),
        "d.txt.gz": gzip.compress(b"packed"),
        "e.jsonl": b'{"text": "one"}\n\n{"id": 1, "text": "t\\u00fco"}\n{"text": ""}',
        "f.jsonl.gz": gzip.compress(codecs.BOM_UTF8 + b'{"text": "three\\nlines"}\n'),
        "sub/a.txt": b"below",
        "sub/copy.txt": b"packed",
        "binary.bin": b"a\0b",
        "image.png": b"\x89PNG....",
        "empty.txt": b"",
        ".hidden": b"hidden",
        ".git/config": b"hidden",
    }
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "sub" / "loop").symlink_to("..")
    os.mkfifo(tmp_path / "in" / "pipe")
    return tmp_path


EXPECTED = "café\r\n|mark|wide é|packed|one|tüo|three\nlines|below|packed"


def test_files_are_decoded_and_joined_in_sorted_order(folder):
    made = make(["in"], "out.txt", separator="|")
    assert Path("out.txt").read_bytes().decode() == EXPECTED
    assert (made.files, made.documents, made.bytes) == (8, 9, len(EXPECTED.encode()))
    assert made.encodings == {"utf-8": 7, "utf-16": 1}
    assert made.duplicates == [(Path("in/sub/copy.txt"), Path("in/d.txt.gz"))]
    assert {str(skipped.path): skipped.reason for skipped in made.skipped} == {
        "in/binary.bin": "a binary file",
        "in/image.png": "an image",
        "in/empty.txt": "empty",
        "in/pipe": "not a regular file",
        "in/sub/loop": "a link to a folder",
    }
    assert made.sha256 == hashlib.sha256(EXPECTED.encode()).hexdigest()
    assert {path.name for path in folder.iterdir()} == {"in", "out.txt"}


def test_the_order_of_sources_and_a_file_given_twice_change_nothing(folder):
    make(["in/sub", "in/e.jsonl", "in/a.txt", "in/sub/a.txt", "./in/a.txt", str(folder / "in" / "sub")], "out.txt")
    assert Path("out.txt").read_bytes() == "café\r\n\none\ntüo\nbelow\npacked".encode()


def test_the_output_is_never_its_own_source(folder):
    first = make(["in"], "in/out.txt").sha256
    with pytest.raises(BadInputError, match=r"^'in/out.txt' exists; pass --force to replace it, or another --out$"):
        make(["in"], "in/out.txt")
    assert make(["in"], "in/out.txt", replace=True).sha256 == first
    with pytest.raises(BadInputError, match="is the output itself"):
        make(["in/out.txt"], "in/out.txt", replace=True)


def test_small_blocks_give_the_same_text(folder, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 1)
    make(["in"], "out.txt", separator="|")
    assert Path("out.txt").read_bytes().decode() == EXPECTED


@pytest.mark.parametrize(
    ("separator", "between"), [(r"\n\n", "\n\n"), (r"\t\\n", "\t\\n"), ("<|endoftext|>", "<|endoftext|>"), ("", "")]
)
def test_the_separator_has_escape_sequences(folder, separator, between):
    make(["in/a.txt", "in/b.md"], "out.txt", separator=separator)
    assert Path("out.txt").read_bytes().decode() == f"café\r\n{between}mark"


def test_an_encoding_holds_for_files_without_a_mark(folder):
    Path("in/old.txt").write_bytes("déjà vu".encode("cp1252"))
    made = make(["in/old.txt", "in/b.md"], "out.txt", encoding="latin-1")
    assert Path("out.txt").read_bytes().decode() == "mark\ndéjà vu"
    assert made.encodings == {"utf-8": 1, "iso8859-1": 1}


FRENCH = ("Voilà où était l'été : le garçon a mangé une crêpe très salée près du château.\n" * 20).encode("cp1252")


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        (
            "x.txt",
            FRENCH,
            r"'x.txt' is not UTF-8: its byte 4 cannot be decoded; it looks like CP125.*pass --encoding CP",
        ),
        ("x.txt.gz", gzip.compress(b"ok " + FRENCH), r"'x.txt.gz' is not UTF-8: its byte 7 .* --encoding CP125"),
        ("x.txt.gz", b"no gzip", "'x.txt.gz' is not a complete gzip file: Not a gzipped file"),
        (
            "x.txt.gz",
            gzip.compress(os.urandom(100_000).hex().encode())[:-20],
            "is not a complete gzip file: Compressed",
        ),
        ("x.jsonl", b'{"text": "a"}\n{"text": ', "x.jsonl line 2 is not valid JSON: "),
        ("x.jsonl", b"\n" + b"[" * 100_000, "x.jsonl line 2 is not valid JSON: "),
        ("x.jsonl", b"[1]", "x.jsonl line 1 is not a JSON object"),
        ("x.jsonl", b'{"body": 1, "id": 2}', "x.jsonl line 1 has no key 'text'; its keys are: body, id; .* --text-key"),
        ("x.jsonl", b'{"text": 1}', "x.jsonl line 1: the value of 'text' is not a string"),
        ("x.jsonl", b'{"text": "\\ud800"}', "x.jsonl line 1: the text has half of a surrogate pair"),
        ("x.txt", b"", r"there is no text in x.txt; x.txt \(empty\)"),
        ("x.txt", b"\x89PNG", "'x.txt' is no text: it is an image"),
        ("x.txt", b"a\0", "'x.txt' is no text: it is a binary file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_written(folder, name, content, answer):
    Path(name).write_bytes(content)
    with pytest.raises(BadInputError, match=answer) as raised:
        make([name], "out.txt")
    assert "\n" not in str(raised.value)
    assert not Path("out.txt").exists()
    assert not list(folder.glob(".*.tmp"))


def test_a_line_without_end_does_not_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE_CHARACTERS", 100)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 10)
    Path("x.jsonl").write_bytes(b'{"text": "' + b"x" * 1000)
    with pytest.raises(BadInputError, match="has a line of more than 100 characters"):
        make(["x.jsonl"], "out.txt")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"sources": ["nothing"]}, "there is no file or folder 'nothing'"),
        ({"sources": ["in/pipe"]}, "'in/pipe' is not a regular file or a folder"),
        ({"sources": ["x" * 5000]}, "there is no file or folder 'xxx"),
        ({"sources": ["in/empty.txt"]}, "there is no text in in/empty.txt"),
        ({"out": "in"}, "--out is 'in', which cannot be a file"),
        ({"out": "nowhere/x.txt"}, "--out is 'nowhere/x.txt', which cannot be a file"),
        ({"encoding": "utf8000"}, "there is no encoding 'utf8000'"),
        ({"encoding": "base64"}, "there is no encoding 'base64'"),
        ({"encoding": "utf-16", "sources": ["in/a.txt"]}, "'in/a.txt' is not UTF-16: .* BOM"),
        ({"encoding": "ascii", "sources": ["in/a.txt"]}, "'in/a.txt' is not ASCII: its byte 3 .* --encoding"),
        ({"encoding": "utf-7", "sources": ["in/half"]}, "'in/half' is not UTF-7: half a surrogate pair"),
        ({"separator": "\\q"}, r"--separator has '\\q', which means nothing"),
        ({"separator": "a\\"}, r"--separator has '\\', which means nothing"),
    ],
)
def test_a_wrong_argument_is_a_clear_error(folder, arguments, answer):
    Path("in/half").write_bytes(b"+2AA-")
    with pytest.raises(BadInputError, match=answer):
        make(**{"sources": ["in"], "out": "out.txt"} | arguments)
    assert not Path("out.txt").exists()


def test_the_summary_says_what_was_found_and_the_next_step(folder, capsys):
    made = make(["in"], "out.txt")
    render(made, Console())
    out = capsys.readouterr().out
    assert "8 files · 9 documents" in out
    assert "utf-16 (1 file), utf-8 (7 files)" in out
    assert "1 file repeats the text of another one, and the text has both: in/sub/copy.txt is in/d.txt.gz" in out
    assert "in/binary.bin (a binary file)" in out
    assert re.search(r"next: .*gptlab run tiny --text out.txt", out)
    assert json.loads(json.dumps(made.document()))["files"] == 8


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
KIND = st.sampled_from([".txt", ".gz", ".jsonl", ".jsonl.gz"])


@settings(max_examples=settings.default.max_examples // 2)
@given(
    files=st.dictionaries(
        st.tuples(st.sampled_from(["", "b/", "b/c/", "d/"]), st.text("abz", min_size=1, max_size=2), KIND),
        st.lists(TEXT, min_size=1, max_size=3),
        min_size=1,
        max_size=8,
    ),
    separator=st.sampled_from(["", "\n", "--"]),
)
def test_the_text_is_the_documents_in_the_order_of_the_paths(files, separator):
    with tempfile.TemporaryDirectory() as name:
        expected = []
        for (where, stem, kind), texts in sorted(files.items(), key=lambda item: Path("".join(item[0])).parts):
            path = Path(name, "in", f"{where}{stem}{kind}")
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = ".jsonl" in kind
            content = "\n".join(json.dumps({"text": text}) for text in texts) if lines else texts[0]
            if content.startswith("\ufeff") or any(map(content.encode().startswith, documents.BINARY_FORMATS)):
                content = f" {content}"
            expected += texts if lines else [content]
            path.write_bytes(gzip.compress(content.encode()) if kind.endswith("gz") else content.encode())
        expected = [text for text in expected if text]
        out = Path(name, "out.txt")
        if not any(expected):
            with pytest.raises(BadInputError, match="there is no text"):
                make([str(Path(name, "in"))], str(out), separator=separator)
        else:
            made = make([str(Path(name, "in"))], str(out), separator=separator)
            assert out.read_bytes().decode() == separator.join(expected)
            assert made.documents == len(expected)
