"""`gptlab tokenizer train`: make a tokenizer from a text."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptlab import project
from gptlab.data import text as texts
from gptlab.data import vocabularies
from gptlab.data.train_tokenizer import train_tokenizer, training_bytes
from gptlab.errors import BadInputError
from gptlab.files import locked_directory, make_directory, write_durably
from gptlab.spec import DataSpec
from gptlab.terminal.console import Console
from gptlab.terminal.text import shell_command

FOLDER = Path("experiments", "tokenizers")


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer file and what it was made from."""

    path: str
    sha256: str
    vocab_size: int
    """Number of tokens, which `model.vocab_size` needs."""
    requested: int
    text: str
    text_bytes: int
    trained_on_bytes: int
    """Length of the training part of the text."""
    existed: bool
    """Whether the same file was there before."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab tokenizer train --json` prints."""
        return asdict(self)


def train(source: str, vocab_size: int, out: str | None) -> TrainedTokenizer:
    """Train a tokenizer on the training part of a text, and write it to a file.

    Args:
        source: A named text or a path, as in `data.text`.
        vocab_size: Number of tokens.
        out: The file; by default `experiments/tokenizers/TEXT-TOKENS.json` in the project.

    Raises:
        BadInputError: The text cannot be used or is too short, or the file exists and is another one.
        GptlabError: The file cannot be written.
    """
    if out is not None:
        _check_place(Path(out).expanduser())
    text = texts.locate(source)
    content = train_tokenizer(text, vocab_size)
    tokens = vocabularies.FileTokenizer(source, content).vocab_size
    if tokens == vocabularies.BYTES.vocab_size:
        raise BadInputError(f"'{source}' is too short for a tokenizer: no two bytes occur together twice; use bytes")
    path = _default_place(source, tokens) if out is None else Path(out).expanduser()
    make_directory(path.parent)
    with locked_directory(path.parent):  # of two processes that write the same file, one finds the other's
        existed = path.exists()
        if existed and vocabularies.read(path, str(path)) != content:
            raise BadInputError(
                f"{project.display_path(path)} exists and differs; remove it, or pass another place: --out"
            )
        if not existed:
            write_durably(path, content)
    return TrainedTokenizer(
        path=project.display_path(path),
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=tokens,
        requested=vocab_size,
        text=source,
        text_bytes=text.size,
        trained_on_bytes=training_bytes(text),
        existed=existed,
    )


def render(result: TrainedTokenizer, console: Console) -> None:
    """Print where the tokenizer is, what it was trained on, and how to use it."""
    verb = "is there already, with the same bytes" if result.existed else "is written"
    console.print(f"{result.path} {verb}", style="bold")
    if result.vocab_size < result.requested:
        console.notice(
            f"the text gives only {result.vocab_size:,} of {result.requested:,} tokens: no other pair of tokens occurs "
            f"twice; the model needs model.vocab_size={result.vocab_size}"
        )
    console.fact("tokens", f"{result.vocab_size:,}")
    console.fact(
        "trained on",
        f"the first {result.trained_on_bytes:,} of {result.text_bytes:,} bytes of {result.text}: its training part at "
        f"data.val_fraction={DataSpec().val_fraction:g}",
    )
    console.fact("sha256", result.sha256)
    settings = [f"data.tokenizer={result.path}", f"model.vocab_size={result.vocab_size}"]
    console.fact("use it", shell_command("run", "NAME", "--set", settings[0], "--set", settings[1]))


def _default_place(source: str, tokens: int) -> Path:
    root = project.find_root()
    folder = root / FOLDER if root else Path.cwd() / FOLDER.name
    return folder / f"{Path(source).stem}-{tokens}.json"


def _check_place(path: Path) -> None:
    """Check a place before the tokenizer is trained.

    Raises:
        BadInputError: There is something other than a file.
    """
    try:
        wrong = path.exists() and not path.is_file()
    except (OSError, ValueError):  # the name is too long or has a NUL
        wrong = True
    if wrong:
        raise BadInputError(f"--out is '{path}', which cannot be a file")
