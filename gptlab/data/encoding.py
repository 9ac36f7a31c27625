"""What a file is that is not UTF-8, and which command makes UTF-8 text of it.

Text in a wrong encoding looks like text to every later step, so advice must not lead there. A command is given where
the format is certain or where dropping a few bytes is the worst that can happen. A guess is called a guess.
"""

import bz2
import codecs
import gzip
import lzma
import os
import re
import shlex
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptlab import project

WINDOW_BYTES = 1 << 20
"""How much of a file is looked at."""
SAMPLE_BYTES, SAMPLES = 1 << 12, 64
MAX_BAD_SHARE = 0.01
"""Cuts between samples tear fewer characters than this."""
CONTROL_SHARE = 0.001
"""Texts have fewer control characters than this, apart from tabs and line ends."""

COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
}
"""By the first bytes: the format, and the program that unpacks it."""
UNPACK: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
"""Formats that Python can unpack, to look for an archive inside."""
MARKED = {  # the longer marks first: UTF-32's begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
OTHER_FORMATS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document",
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table",
    b"SQLite format 3\0": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x7fELF": "a program",
}
WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
LEGACY = {  # Python's name and that of iconv; the more common of two that decode a text alike comes first
    "cp1252": "CP1252",
    "cp1251": "CP1251",
    "gb18030": "GB18030",
    "cp932": "CP932",
    "euc_jp": "EUC-JP",
    "cp949": "CP949",
    "big5": "BIG5",
    "big5hkscs": "BIG5-HKSCS",
    "koi8_r": "KOI8-R",
    "koi8_u": "KOI8-U",
    "cp1250": "CP1250",
    "iso8859_2": "ISO-8859-2",
    "cp866": "CP866",
    "mac_cyrillic": "MAC-CYRILLIC",
    "iso8859_5": "ISO-8859-5",
    "cp1253": "CP1253",
    "cp1254": "CP1254",
    "cp1255": "CP1255",
    "cp1256": "CP1256",
    "iso8859_6": "ISO-8859-6",
    "cp1257": "CP1257",
    "cp1258": "CP1258",
    "cp874": "CP874",
    "cp850": "CP850",
    "mac_roman": "MACINTOSH",
}
MAX_GUESSES = 3
NEARLY_UTF8 = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]|\xc0\x80")
"""Surrogates (CESU-8) and overlong NUL (Java), in what is UTF-8 otherwise."""


def advice(path: Path, offset: int) -> str:
    """Say what a file is whose byte at `offset` is not UTF-8, and what to do."""
    with path.open("rb") as file:
        beginning = file.read(WINDOW_BYTES)
        file.seek(offset if offset >= WINDOW_BYTES else 0)  # before it, everything is UTF-8
        window = file.read(WINDOW_BYTES)
    return (
        _format_advice(path, beginning)
        or _wide_advice(path, beginning)
        or _damage_advice(path, window)
        or _guess_advice(path, window)
    )


def control_notice(path: Path) -> str | None:
    """Say if a file has too many NUL bytes or other control characters for a text.

    Returns None if it is not UTF-8: there will be an error with `advice`.
    """
    sample = _sample(path)
    bad, _ = _count_characters(sample)
    if bad and (bad > MAX_BAD_SHARE * len(sample) or _format_advice(path, sample)):
        return None
    nuls = sample.count(0)
    controls = sum(map(sample.count, {*range(32), 127} - set(b"\t\n\f\r")))
    if controls <= CONTROL_SHARE * len(sample):
        return None
    kind = "NUL" if nuls == controls else "NUL or control characters" if nuls else "control characters"
    shown, percent = project.display_path(path), 100 * controls / len(sample)
    notice = f"{percent:.2g}% of the bytes of '{shown}' are {kind}; they are tokenized as they are"
    encoding = _wide_encoding(sample[:SAMPLE_BYTES]) or ("ISO-2022-JP" if b"\x1b$B" in sample else None)
    if encoding:
        return f"{notice}; it looks like {encoding}; to convert it: {_iconv(encoding, path)}"
    return f"{notice}; check that it is the right file and complete"


def _sample(path: Path) -> bytes:
    """Evenly spaced parts of a file, its beginning first."""
    with path.open("rb") as file:
        blocks = range(0, os.fstat(file.fileno()).st_size, SAMPLE_BYTES)
        chosen = blocks if len(blocks) <= SAMPLES else [blocks[i * len(blocks) // SAMPLES] for i in range(SAMPLES)]
        return b"".join(os.pread(file.fileno(), SAMPLE_BYTES, start) for start in chosen)


def _format_advice(path: Path, beginning: bytes) -> str | None:
    """Advice for a file whose format its first bytes tell."""
    for magic, (name, program) in COMPRESSED.items():
        if beginning.startswith(magic):
            if _holds_tar(path, name):
                unpack = _into_folder("tar -xf", path, "-C")
                return f"it is a tar archive; unpack it and pass one of its files: {unpack}"
            return f"it is compressed with {name}; unpack it: {program} -c < {_quoted(path)} > {_output(path)}"
    if beginning.startswith(b"%PDF"):
        return f"it is a PDF; extract its text: pdftotext -enc UTF-8 {_quoted(path)} {_output(path)}"
    for mark, encoding in MARKED.items():
        if beginning.startswith(mark):
            return f"it is {encoding}; convert it: {_iconv(encoding, path)}"
    if beginning.startswith(b"PK\x03\x04"):
        if _is_document(path):
            return "it is an office document or e-book; save it as plain text in UTF-8 in the program that opens it"
        return f"it is a ZIP archive; unpack it and pass one of its files: {_into_folder('unzip', path, '-d')}"
    for magic, name in OTHER_FORMATS.items():
        if beginning.startswith(magic):
            return f"it is {name}; extract its text to a .txt in UTF-8 first"
    return None


def _holds_tar(path: Path, compression: str) -> bool:
    if compression not in UNPACK:
        return False
    try:
        with UNPACK[compression](path) as file:
            return bool(file.read(512)[257:262] == b"ustar")
    except (OSError, EOFError, lzma.LZMAError, zlib.error):  # it is damaged
        return False


def _is_document(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return bool({"[Content_Types].xml", "mimetype"} & set(archive.namelist()))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):  # it is damaged
        return False


def _wide_advice(path: Path, beginning: bytes) -> str | None:
    """Advice for UTF-16 and UTF-32 without a mark."""
    encoding = _wide_encoding(beginning)
    return f"it looks like {encoding} without a mark; convert it: {_iconv(encoding, path)}" if encoding else None


def _wide_encoding(beginning: bytes) -> str | None:
    """UTF-16 or UTF-32 in the byte order in which the text has most spaces and stops, if it reads like text at all."""
    found = {}
    for encoding in WIDE:
        whole = beginning[: len(beginning) // 4 * 4]
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(whole)
            strange = sum(unicodedata.category(c) in {"Cc", "Cn", "Co", "Cs"} and c not in "\t\n\f\r" for c in text)
            stops = sum(map(text.count, " \n,.。、，"))
            if text and strange <= CONTROL_SHARE * len(text) and stops > 0.01 * len(text):
                found[encoding] = stops
    return max(found, key=lambda encoding: found[encoding]) if found else None


def _damage_advice(path: Path, window: bytes) -> str | None:
    """Advice for UTF-8 in which a few bytes are wrong."""
    bad, good = _count_characters(window)
    serious, _ = _count_characters(NEARLY_UTF8.sub(b"", window))
    if serious > max(good / 10, len(window) / 1000, min(2, len(window) / 20)):
        return None
    output = _output(path)
    least = "at least " if len(window) == WINDOW_BYTES else ""
    drop = f"bad bytes: {least}{bad:,}; drop them: iconv -c -f UTF-8 -t UTF-8 {_quoted(path)} > {output}"
    if good:
        return drop
    return f"{drop} (if they are letters of another encoding, find out which one, and convert from it instead)"


def _count_characters(window: bytes) -> tuple[int, int]:
    """The number of bytes that are not UTF-8, and of characters beyond ASCII that are."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(window, final=len(window) < WINDOW_BYTES)
    bad = len(text) - len(text.encode(errors="ignore").decode())
    return bad, len(text) - len(text.encode("ascii", errors="ignore")) - bad


def _guess_advice(path: Path, window: bytes) -> str:
    """Advice for a text in an unknown encoding, with the likely ones."""
    guesses = guess_encodings(window)
    if not guesses:
        return "no known encoding fits, so it may not be a text; convert it to UTF-8 in the program that made it"
    first, *others = guesses
    otherwise = f" (or {' or '.join(others)})" if others else ""
    return (
        f"find its encoding first; it looks like {first}{otherwise}; convert it, and check that the result reads well, "
        f"because a wrong encoding garbles the text: {_iconv(first, path)}"
    )


def guess_encodings(window: bytes) -> list[str]:
    """The likely encodings, the likeliest first, by iconv's names."""
    import charset_normalizer

    whole_lines = window[: window.rfind(b"\n") + 1] or window
    found = []
    for match in charset_normalizer.from_bytes(whole_lines, cp_isolation=list(LEGACY)):
        alike = {match.encoding, *match.could_be_from_charset}
        found += [name for encoding, name in LEGACY.items() if encoding in alike][:1]
    return list(dict.fromkeys(found))[:MAX_GUESSES]


def _iconv(encoding: str, path: Path) -> str:
    return f"iconv -f {encoding} -t UTF-8 {_quoted(path)} > {_output(path)}"


def _into_folder(program: str, path: Path, option: str) -> str:
    folder = _quoted(_unused(path.with_name(path.stem)))
    return f"mkdir {folder} && {program} {_quoted(path)} {option} {folder}"


def _output(path: Path) -> str:
    """A new file beside the text."""
    return _quoted(_unused(path.with_name(f"{path.stem}.utf8.txt")))


def _unused(path: Path) -> Path:
    name, number = path.name.removesuffix(".txt"), 2
    while os.path.lexists(path):
        path, number = path.with_name(f"{name}-{number}{'.txt' if path.suffix == '.txt' else ''}"), number + 1
    return path


def _quoted(path: Path) -> str:
    shown = project.display_path(path)
    return shlex.quote(f"./{shown}" if shown.startswith("-") else shown)
