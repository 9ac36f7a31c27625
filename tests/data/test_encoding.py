"""What a file that is not UTF-8 is. Each command that an error or a notice gives is executed."""

import bz2
import gzip
import io
import lzma
import random
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from gptlab.data.encoding import LEGACY, WIDE, advice, control_notice
from gptlab.data.text import locate

TEXTS = {
    "ru": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. Всё смешалось "
    "в доме Облонских. Жена узнала, что муж был в связи с бывшею в их доме француженкою-гувернанткой.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "zh-tw": "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心，並應以兄弟關係的精神相對待。",
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성을 부여받았다.",
    "fr": "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si "
    "vite que je n'avais pas le temps de me dire: je m'endors. Et la pensée qu'il était temps m'éveillait.",
    "pl": "Litwo, Ojczyzno moja! ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się dowie, kto cię stracił. "
    "Dziś piękność twą w całej ozdobie widzę i opisuję, bo tęsknię po tobie.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "en": "“It’s a truth universally acknowledged,” she said, “that a single man in possession of a good fortune — "
    "must be in want of a wife.” However little known the feelings… may be, he’s considered the rightful property.",
}
LEGACY_TEXTS = [
    ("ru", "cp1251"),
    ("ru", "koi8-r"),
    ("ru", "cp866"),
    ("zh", "gbk"),
    ("zh", "gb18030"),
    ("zh-tw", "big5"),
    ("ja", "shift_jis"),
    ("ja", "euc_jp"),
    ("ko", "euc_kr"),
    ("fr", "latin-1"),
    ("fr", "mac-roman"),
    ("pl", "cp1250"),
    ("pl", "iso8859-2"),
    ("el", "cp1253"),
    ("en", "cp1252"),
]
ENGLISH = "The cat sat on the mat.\n" * 200


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message_for(path: Path, content: bytes) -> str:
    """The error's advice, or the notice for valid UTF-8."""
    path.write_bytes(content)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return advice(path, error.start)
    notice = control_notice(path)
    assert notice, "there is neither an error nor a notice"
    return notice


def follow(message: str, folder: Path) -> bytes:
    """Execute the command in a message, and return the content of the file that it makes."""
    command = message[message.rindex(": ") + 2 :].partition(" (if ")[0]
    before = set(folder.rglob("*"))
    subprocess.run(["sh", "-c", command], cwd=folder, check="-c -f" not in command, capture_output=True)
    (made,) = (path for path in set(folder.rglob("*")) - before if path.is_file())
    return made.read_bytes()


@pytest.mark.parametrize(("language", "encoding"), LEGACY_TEXTS)
def test_the_command_for_another_encoding_gives_the_text(here: Path, language: str, encoding: str):
    text = (TEXTS[language] + "\n") * 3
    raw = text.encode(encoding)
    message = message_for(here / "a.txt", raw)
    assert message.startswith("find its encoding first; it looks like ")
    assert "check that the result reads well" in message
    assert follow(message, here).decode() == text


def test_iconv_knows_every_encoding_that_is_named():
    for name in [*LEGACY.values(), *WIDE, "UTF-16", "UTF-32", "ISO-2022-JP"]:
        subprocess.run(["iconv", "-f", name, "-t", "UTF-8"], input=b"", check=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", TEXTS)
def test_the_command_for_utf_16_and_utf_32_gives_the_text(here: Path, language: str, encoding: str):
    text = (TEXTS[language] + "\n") * 3
    message = message_for(here / "a.txt", text.encode(encoding))
    assert follow(message, here).decode() == text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ENGLISH.encode() + b"\xff" + ENGLISH.encode(), ENGLISH * 2),
        ((TEXTS["ru"] * 3).encode() + b"\n\xe9t\xe9\n" + TEXTS["ru"].encode(), TEXTS["ru"] * 3 + "\nt\n" + TEXTS["ru"]),
        (TEXTS["zh"].encode()[:-1], TEXTS["zh"][:-1]),  # the last character is incomplete
        (TEXTS["zh"].encode()[1:], TEXTS["zh"][1:]),
        (b"a \xed\xa0\xbd\xed\xb9\x82 smile\n" * 40, "a  smile\n" * 40),  # surrogates, as in CESU-8
        (b"a\xc0\x80b\n" * 40, "ab\n" * 40),  # overlong, as in Java
    ],
    ids=["one byte", "a line of Latin-1", "cut at the end", "cut at the beginning", "surrogates", "overlong"],
)
def test_the_command_for_a_few_bad_bytes_drops_them(here: Path, content: bytes, expected: str):
    message = message_for(here / "a.txt", content)
    assert "drop them: iconv -c -f UTF-8 -t UTF-8 a.txt > a.utf8.txt" in message
    assert follow(message, here).decode() == expected


def test_bad_bytes_far_into_a_large_file_are_found(here: Path):
    content = b"The cat sat on the mat.\n" * 100_000
    message = message_for(here / "a.txt", content + b"\xff" + content)
    assert message.startswith("bad bytes: at least 1; drop them: ")


@pytest.mark.parametrize(
    ("program", "pack"),
    [("gunzip", gzip.compress), ("bunzip2", bz2.compress), ("unxz", lzma.compress), ("unzstd", None)],
)
def test_the_command_for_a_compressed_file_gives_its_text(here: Path, program: str, pack):
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    raw = ENGLISH.encode()
    packed = pack(raw) if pack else subprocess.run(["zstd", "-c"], input=raw, capture_output=True, check=True).stdout
    message = message_for(here / "a.txt", packed)
    assert f"{program} -c < a.txt > a.utf8.txt" in message
    assert follow(message, here) == raw


def test_a_compressed_tar_archive_is_unpacked_into_a_new_folder(here: Path):
    with tarfile.open(here / "a.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("one.txt"), io.BytesIO())
    (here / "a").mkdir()
    message = message_for(here / "a.txt", (here / "a.tgz").read_bytes())
    assert "mkdir a-2 && tar -xf a.txt -C a-2" in message
    follow(message, here)
    assert (here / "a-2" / "one.txt").is_file()


def zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, TEXTS["ru"])
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zip_of("a.txt"), "a ZIP archive; unpack it and pass one of its files: mkdir a && unzip a.txt -d a"),
        (zip_of("[Content_Types].xml"), "office document or e-book; save it as plain text"),
        (b"PK\x03\x04\xff damaged", "a ZIP archive"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "pdftotext -enc UTF-8 a.txt a.utf8.txt"),
        (b"\x1f\x8b damaged \xff", "gunzip"),
        (b"7z\xbc\xaf\x27\x1c\0", "a 7z archive"),
        (b"Rar!\x1a\x07\1\0\xff", "a RAR archive"),
        (b"PAR1\xff", "a Parquet table"),
        (b"SQLite format 3\0\xff", "an SQLite database"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\xff\xd8\xff\xe0", "an image"),
        (b"\x7fELF\x02\xff", "a program"),
    ],
)
def test_other_formats_are_named(here: Path, content: bytes, words: str):
    assert words in message_for(here / "a.txt", content)


def test_what_is_no_text_gets_no_command(here: Path):
    message = message_for(here / "a.txt", b"\xff" + random.Random(0).randbytes(20_000))
    assert "may not be a text" in message
    assert "iconv" not in message


@pytest.mark.parametrize("name", ["it's a text.txt", "-f.txt", "$HOME;`id`.txt", "no suffix", "über.txt"])
def test_a_command_can_be_pasted_and_overwrites_nothing(here: Path, name: str):
    precious = here / f"{Path(name).stem}.utf8.txt"
    precious.write_text("precious")
    message = message_for(here / name, TEXTS["ru"].encode("cp1251"))
    assert follow(message, here).decode() == TEXTS["ru"]
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            ENGLISH.encode("utf-16-le"),
            "50% of the bytes of 'a.txt' are NUL; they are tokenized as they are; it looks like",
        ),
        (
            TEXTS["ru"].encode("utf-16-be"),
            "NUL or control characters; they are tokenized as they are; it looks like UTF-16BE",
        ),
        (ENGLISH.encode() + bytes(2_000), "29% of the bytes of 'a.txt' are NUL; they are tokenized as they are; check"),
        (b"\x1b[31mred\x1b[0m\n" * 9, "are control characters"),
        (TEXTS["ja"].encode("iso2022_jp"), "it looks like ISO-2022-JP"),
    ],
    ids=["UTF-16", "Cyrillic UTF-16", "lost blocks", "colors", "ISO-2022-JP"],
)
def test_a_text_full_of_nul_gets_a_notice_and_stays_as_it_is(
    here: Path, caplog: pytest.LogCaptureFixture, content: bytes, words: str
):
    (here / "a.txt").write_bytes(content)
    assert locate("a.txt").size == len(content)
    (record,) = caplog.records
    assert words in record.getMessage()
    assert (here / "a.txt").read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [gzip.compress(random.Random(0).randbytes(900)), ENGLISH.encode("utf-16"), TEXTS["zh"].encode("utf-16-le")],
)
def test_what_will_be_an_error_gets_no_notice(here: Path, caplog: pytest.LogCaptureFixture, content: bytes):
    (here / "a.txt").write_bytes(content)
    locate("a.txt")
    assert not caplog.records


@pytest.mark.parametrize("content", [ENGLISH.encode() + b"\0", b"\xef\xbb\xbfa\tb\r\n\f\n", TEXTS["zh"].encode()])
def test_an_ordinary_text_gets_no_notice(here: Path, caplog: pytest.LogCaptureFixture, content: bytes):
    (here / "a.txt").write_bytes(content)
    locate("a.txt")
    assert not caplog.records
