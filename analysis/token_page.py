"""One self-contained HTML page that colors each token of a passage, for `gptlab tokens`.

It displays the document that `gptlab tokens --json` prints. `analysis.rendering` makes it safe.
"""

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from analysis.rendering import asset, render
from analysis.token_text import TEXT, Piece, pieces, spoken, whole_characters
from gptlab import project
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import make_directory, write_durably

FOLDER = "tokens"
"""Where pages are by default, in the runs directory."""
LISTED = 12
"""Tokens with the largest losses, or differences, in the table."""
AROUND = 6
"""Tokens of context on each side of them."""
BOUNDS = (0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20)
"""Ends of the scale of differences, in nats: the smallest one that includes `WITHIN` of them."""
WITHIN = 0.95
LETTERS = "AB"
"""Names of the runs on a page with two."""
MINUS = "−"

Document = dict[str, Any]


class Token(NamedTuple):
    """A token as the passage shows it."""

    number: int
    """From 0 in the passage."""
    parts: list[Piece]
    label: str | None
    """For screen readers, if the text says nothing."""
    style: str
    """Where its numbers are on the scales, as CSS variables: `a` and `b` for losses, `d` for the difference."""
    kind: str
    """`worse` or `better` if there is a difference, `first` for the first token of a text."""


class Group(NamedTuple):
    """Tokens that make up whole characters."""

    tokens: list[Token]
    whole: list[Piece]
    """The characters, if a single token is not one."""
    name: str


class Tick(NamedTuple):
    """A mark on a scale."""

    percent: float
    value: str
    meaning: str


def page_path(out: str | None, names: Sequence[str]) -> Path:
    """Return where the page of these runs is to be written.

    Raises:
        BadInputError: `out` cannot be the path of a page.
    """
    if out is None:
        name = "-".join(re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:100] for name in names)
        return project.runs_directory() / FOLDER / f"{name}.html"
    try:
        path = Path(out).expanduser().absolute()
        nearest = next(folder for folder in path.parents if folder.exists())
        with suppress(FileNotFoundError):
            path.lstat()
        usable = path.suffix == ".html" and nearest.is_dir() and not path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a NUL
        usable = False
    if not usable:
        raise BadInputError(f"--out is '{out}', which cannot be a page; give the path of a file that ends in .html")
    return path


def write(document: Document, path: Path) -> None:
    """Write the page.

    Raises:
        GptlabError: The file cannot be written.
    """
    try:
        make_directory(path.parent)
        write_durably(path, to_html(document))
    except (OSError, GptlabError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GptlabError(
            f"the page cannot be written to {path}: {reason}; write it elsewhere with --out FILE"
        ) from error


def to_html(document: Document) -> str:
    """Return the page of what `gptlab tokens --json` prints."""
    tokens, runs = document["tokens"], document["runs"]
    top = math.log(document["vocab_size"])
    changes = [_difference(token) for token in tokens]
    bound = _bound([abs(change) for change in changes if change is not None])
    shown = [_token(number, token, top, bound) for number, token in enumerate(tokens)]
    return render(
        "tokens.html.j2",
        styles=["tokens.css"],
        document=document,
        runs=[{**run, "letter": letter} for run, letter in zip(runs, LETTERS, strict=False)],
        last=document["first_token"] + len(tokens) - 1,
        context=_context(runs),
        groups=_groups(tokens, shown),
        listed=_listed(tokens, shown),
        loss_ticks=_loss_ticks(top),
        difference_ticks=_difference_ticks(bound),
        signed=signed,
        script=asset("tokens.js"),
        data={
            "first": document["first_token"],
            "vocabulary": document["vocab_size"],
            "tokens": [[token["id"], [_compact(scores) for scores in token["scores"]]] for token in tokens],
            "texts": _texts(tokens),
        },
    )


def signed(value: float, digits: int = 4) -> str:
    """Return a difference with its sign, a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def _context(runs: list[Document]) -> str:
    """Say how much of the text each prediction was made from."""
    lengths = [run["sequence_length"] for run in runs]
    least = [max(length // 2, 1) for length in lengths]
    if len(set(lengths)) == 1:
        lengths, least = lengths[:1], least[:1]
        names = [""]
    else:
        names = [f" for {letter}" for letter in LETTERS]
    most = " and ".join(f"{length:,} tokens{name}" for length, name in zip(lengths, names, strict=True))
    some = " and ".join(f"{length:,}{name}" for length, name in zip(least, names, strict=True))
    return (
        f"The text is read in windows of {most}, which overlap by half: each token is predicted from at least {some} "
        "tokens before it, or from all that the text has."
    )


def _token(number: int, token: Document, top: float, bound: float) -> Token:
    scores, change = token["scores"], _difference(token)
    content = bytes.fromhex(token["bytes"])
    if scores[0] is None:
        return Token(number, pieces(content), spoken(content), "", "first")
    levels = {letter: min(found["loss"] / top, 1) for letter, found in zip("ab", scores, strict=False)}
    if change is not None:
        levels["d"] = min(abs(change) / bound, 1)
    style = ";".join(f"--{name}:{level:.3f}" for name, level in levels.items())
    kind = "" if change is None else "worse" if change > 0 else "better"
    return Token(number, pieces(content), spoken(content), style, kind)


def _difference(token: Document) -> float | None:
    """The second run's loss less the first one's; None if there is one run, or no loss."""
    losses = [scores["loss"] for scores in token["scores"] if scores]
    return losses[1] - losses[0] if len(losses) == len(LETTERS) else None


def _bound(sizes: list[float]) -> float:
    """The end of the scale of differences."""
    wanted = sorted(sizes)[math.ceil(WITHIN * len(sizes)) - 1] if sizes else 0
    return next((bound for bound in BOUNDS if bound >= wanted), BOUNDS[-1])


def _groups(tokens: list[Document], shown: list[Token]) -> list[Group]:
    contents = [bytes.fromhex(token["bytes"]) for token in tokens]
    groups = []
    for numbers in whole_characters(contents):
        members = [shown[number] for number in numbers]
        whole = pieces(b"".join(contents[number] for number in numbers)) if len(members) > 1 else []
        name = "".join(piece.text for piece in whole)
        groups.append(Group(members, whole, f"{name}, {len(members)} tokens"))
    return groups


def _listed(tokens: list[Document], shown: list[Token]) -> list[dict[str, Any]]:
    """The rows of the table: the tokens with the largest losses, or differences."""

    def size(token: Token) -> float:
        entry = tokens[token.number]
        change = _difference(entry)
        return abs(change) if change is not None else entry["scores"][0]["loss"]

    largest = sorted((token for token in shown if token.style), key=lambda token: -size(token))[:LISTED]
    return [
        {
            "token": token,
            "index": tokens[token.number]["index"],
            "before": _joined(tokens[max(token.number - AROUND, 0) : token.number]),
            "after": _joined(tokens[token.number + 1 : token.number + 1 + AROUND]),
            "scores": tokens[token.number]["scores"],
            "change": _difference(tokens[token.number]),
            "likeliest": [
                pieces(bytes.fromhex(scores["alternatives"][0]["bytes"])) for scores in tokens[token.number]["scores"]
            ],
        }
        for token in largest
    ]


def _joined(tokens: Iterable[Document]) -> list[Piece]:
    return pieces(b"".join(bytes.fromhex(token["bytes"]) for token in tokens))


def _loss_ticks(top: float) -> list[Tick]:
    """Marks of the scale of losses, with the probability of the token."""
    step = 1 if top < 6 else 2
    values = [value for value in range(0, math.ceil(top), step) if value < top - 0.75 * step]
    ticks = [Tick(100 * value / top, str(value), _percent(math.exp(-value))) for value in values]
    return [*ticks, Tick(100, f"{top:.1f}", _percent(math.exp(-top)))]


def _difference_ticks(bound: float) -> list[Tick]:
    """Marks of the scale of differences, with the ratio of the token's probabilities."""
    values = [-bound, -bound / 2, 0, bound / 2, bound]
    return [
        Tick(
            50 + 50 * value / bound,
            f"{value:+g}".replace("-", MINUS) if value else "0",
            f"× {math.exp(-value):.2g}",
        )
        for value in values
    ]


def _percent(probability: float) -> str:
    return f"{100 * probability:.2g}%" if probability < 0.995 else "100%"


def _compact(scores: Document | None) -> list[Any] | None:
    """What one run says about a token, for the script."""
    if scores is None:
        return None
    alternatives = scores["alternatives"]
    return [
        round(scores["loss"], 4),
        scores["rank"],
        scores["context"],
        [alternative["id"] for alternative in alternatives],
        [float(f"{alternative['probability']:.3g}") for alternative in alternatives],
    ]


def _texts(tokens: list[Document]) -> dict[int, list[Any]]:
    """The pieces of all tokens that the page names, by id. A piece of plain text is a string."""
    contents = {token["id"]: token["bytes"] for token in tokens}
    for token in tokens:
        for scores in filter(None, token["scores"]):
            contents |= {alternative["id"]: alternative["bytes"] for alternative in scores["alternatives"]}
    return {
        number: [piece.text if piece.kind == TEXT else list(piece) for piece in pieces(bytes.fromhex(content))]
        for number, content in contents.items()
    }
