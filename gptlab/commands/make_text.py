"""`gptlab text`: make one `.txt` out of files, folders, `.gz` and `.jsonl`."""

import codecs
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gptlab import project
from gptlab.data.documents import Skipped, documents, find_files, given_path, why_no_text
from gptlab.errors import BadInputError
from gptlab.files import atomic_write
from gptlab.terminal.console import Console
from gptlab.terminal.text import plural, printable, shell_command

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
MAX_NAMED = 5
"""Files that a notice names."""


@dataclass
class Made:
    """A text, and what it was made of."""

    out: Path
    files: int = 0
    documents: int = 0
    bytes: int = 0
    sha256: str = ""
    encodings: Counter[str] = field(default_factory=Counter)
    """Number of files by encoding."""
    duplicates: list[tuple[Path, Path]] = field(default_factory=list)
    """Files with the same text as an earlier one, and that one. They are in the text, too."""
    skipped: list[Skipped] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return what `gptlab text --json` prints."""
        return {
            "text": str(self.out),
            "files": self.files,
            "documents": self.documents,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "encodings": dict(self.encodings),
            "duplicates": [{"file": str(file), "of": str(first)} for file, first in self.duplicates],
            "skipped": [{"file": str(skipped.path), "reason": skipped.reason} for skipped in self.skipped],
        }


def make(
    sources: list[str],
    out: str,
    *,
    encoding: str | None = None,
    separator: str = r"\n",
    text_key: str = "text",
    replace: bool = False,
) -> Made:
    r"""Write the documents of all sources to one UTF-8 text, sorted by the paths of their files.

    The same files always give the same bytes. Nothing is normalized, except that byte-order marks are left out. Files
    in folders that are no texts are left out; so are empty ones.

    Args:
        sources: Files and folders.
        out: The file to write, atomically.
        encoding: The encoding of files without a byte-order mark; UTF-8 for None.
        separator: What is between two documents, with the escape sequences `\n`, `\t`, `\r` and `\\`.
        text_key: The key of the text in the lines of a `.jsonl`.
        replace: Whether `out` may exist.

    Raises:
        BadInputError: A source is missing or no text, a file cannot be decoded, a line is not a JSON object with the
            key, there is no text at all, or `out` exists or cannot be a file.
    """
    path, between = Path(out).expanduser(), _unescape(separator).encode()
    _check(path, encoding, replace)
    files, skipped = find_files(sources, path)
    made = Made(path, skipped=skipped)
    given = {given_path(source) for source in sources}
    first_with: dict[bytes, Path] = {}
    with atomic_write(path) as target:
        whole = hashlib.sha256()
        for file in files:
            if reason := why_no_text(file, encoding):
                if file in given:
                    raise BadInputError(f"'{project.display_path(file)}' is no text: it is {reason}")
                skipped.append(Skipped(file, reason))
                continue
            digest = _append(file, target, made, whole, between, encoding, text_key)
            if digest is None:
                skipped.append(Skipped(file, "empty"))
            elif (first := first_with.setdefault(digest, file)) is not file:
                made.duplicates.append((file, first))
        if not made.bytes:
            raise BadInputError(f"there is no text in {', '.join(sources)}{_summary(skipped)}")
        made.sha256 = whole.hexdigest()
    return made


def _append(
    file: Path,
    target: BinaryIO,
    made: Made,
    whole: "hashlib._Hash",
    between: bytes,
    encoding: str | None,
    text_key: str,
) -> bytes | None:
    """Append the documents of a file, and return the hash of their text; None if there is none."""
    digest, before = hashlib.sha256(), made.documents
    chosen, pieces = documents(file, encoding, text_key)
    for begins, text in pieces:
        content = text.encode()
        digest.update(b"\0document\0" + content if begins else content)
        if begins:
            content = (between if made.documents else b"") + content
            made.documents += 1
        target.write(content)
        whole.update(content)
        made.bytes += len(content)
    if made.documents == before:
        return None
    made.files += 1
    made.encodings[chosen] += 1
    return digest.digest()


def render(made: Made, console: Console) -> None:
    """Print what was found, and the next step."""
    shown = project.display_path(made.out)
    console.print(printable(shown), style="bold")
    parts = plural(made.files, "file"), plural(made.documents, "document"), plural(made.bytes, "byte")
    console.fact("text", " · ".join(parts))
    console.fact("encodings", ", ".join(f"{name} ({plural(n, 'file')})" for name, n in sorted(made.encodings.items())))
    if made.duplicates:
        named = "; ".join(f"{file} is {first}" for file, first in made.duplicates[:MAX_NAMED])
        count = plural(len(made.duplicates), "file repeats", "files repeat")
        console.notice(
            printable(f"{count} the text of another one, and the text has both: {named}{_more(made.duplicates)}")
        )
    if made.skipped:
        console.notice(printable(f"left out: {_summary(made.skipped)[2:]}"))
    console.print(f"next: {shell_command('run', 'tiny', '--text', shown)}")


def _summary(skipped: list[Skipped]) -> str:
    """Return `"; "` and the files that were left out, with the reasons; an empty string if there are none."""
    named = ", ".join(f"{project.display_path(each.path)} ({each.reason})" for each in skipped[:MAX_NAMED])
    return f"; {named}{_more(skipped)}" if skipped else ""


def _more(items: list[Any]) -> str:
    return f" and {len(items) - MAX_NAMED:,} more" if len(items) > MAX_NAMED else ""


def _check(out: Path, encoding: str | None, replace: bool) -> None:
    """Check what can be checked before a file is read.

    Raises:
        BadInputError: See `make`.
    """
    try:
        codecs.getincrementaldecoder(encoding or "utf-8")
        "".encode(encoding or "utf-8")
    except (LookupError, ValueError, TypeError):
        raise BadInputError(f"there is no encoding '{encoding}'; give one such as utf-8, cp1252 or utf-16") from None
    try:
        exists, is_file, has_folder = out.resolve().exists(), out.is_file(), out.parent.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, circular links, a NUL
        exists = is_file = has_folder = False
    if not has_folder or (exists and not is_file):
        raise BadInputError(
            f"--out is '{out}', which cannot be a file; give the path of a .txt in a folder that exists"
        )
    if exists and not replace:
        raise BadInputError(f"'{project.display_path(out)}' exists; pass --force to replace it, or another --out")


def _unescape(separator: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[1] not in ESCAPES:
            raise BadInputError(rf"--separator has '{found[0]}', which means nothing; use \n, \t, \r or \\")
        return ESCAPES[found[1]]

    return re.sub(r"\\(.?)", character, separator, flags=re.DOTALL)
