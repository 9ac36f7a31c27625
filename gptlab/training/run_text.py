"""Where the text of a run is now. A text may move, and a run may come from another machine.

`run.json` names the place of the text when the run began. A new place is remembered in `text.json`. Both are hints: a
file is used only if it has the size and the sha256 that the run recorded.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gptlab.data import text as texts
from gptlab.data.text import Text
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import write_durably
from gptlab.tracking.records import AbsolutePath
from gptlab.tracking.run import Run
from gptlab.untrusted import read_document

PLACE = "text.json"
IF_MOVED = "if it has moved, pass its new place to `gptlab resume`, `eval` or `verify`: --text PATH"

logger = logging.getLogger(__name__)


class TextPlace(BaseModel):
    """`text.json`: where the text of the run was found last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: AbsolutePath


def stored_text(run: Run, remedy: str = "restore it") -> Text:
    """Return the run's text after checking that it has not changed since the run began.

    Args:
        run: The run.
        remedy: What the error message proposes if the text has changed.

    Raises:
        BadInputError: The text is gone or has changed.
    """
    record = run.record.text
    remembered = _remembered_place(run)
    if remembered and (text := _same_text(run, remembered)):
        return text
    if record.source in texts.NAMED:
        text = texts.locate(record.source)
    else:
        path = Path(record.path)
        if not os.access(path, os.R_OK):
            raise BadInputError(f"the text of {run.id} cannot be read from {remembered or path}; {IF_MOVED}")
        if path.is_file() and (size := path.stat().st_size) != record.bytes:  # no need to hash it
            raise _changed(run, f"{record.bytes:,} bytes", f"{size:,}", remedy)
        text = texts.locate(record.path)
    if text.sha256 != record.sha256:
        raise _changed(run, f"sha256 {record.sha256}", text.sha256, remedy)
    return text


def moved_text(run: Run, source: str, notice: Callable[[str], None]) -> Text:
    """Return the run's text at its new place, and remember the place.

    Raises:
        BadInputError: There is another text or none.
    """
    text = texts.locate(source)
    if not is_text_of(run, text):
        raise BadInputError(
            f"'{source}' is not the text of {run.id}: its sha256 is {text.sha256}, but the run began with "
            f"{run.record.text.sha256}"
        )
    remember_place(run, text, notice)
    return text


def is_text_of(run: Run, text: Text) -> bool:
    """Return whether a text is the one that the run began with."""
    return text.sha256 == run.record.text.sha256


def is_moved_text_of(run: Run, text: Text) -> bool:
    """Return whether a text is the run's own at a new place: the remembered one, or its old place does not have it."""
    if not is_text_of(run, text):
        return False
    if text.path == _remembered_place(run):
        return True
    try:
        stored_text(run)
    except BadInputError:
        return True
    return False


def remember_place(run: Run, text: Text, notice: Callable[[str], None]) -> None:
    """Remember where the run's text is, unless this is known. A run that cannot be written gets a notice."""
    if text.source in texts.NAMED or str(text.path) in {run.record.text.path, str(_remembered_place(run))}:
        return
    try:
        write_durably(run.directory / PLACE, TextPlace(path=str(text.path)).model_dump_json() + "\n")
    except OSError as error:
        notice(f"the place of the text could not be remembered in {run.directory / PLACE}: {error.strerror}")


def _remembered_place(run: Run) -> Path | None:
    try:
        return Path(read_document(run.directory / PLACE, TextPlace).path)
    except FileNotFoundError:
        return None
    except GptlabError as error:
        logger.warning("%s; it is ignored", error)
        return None


def _same_text(run: Run, path: Path) -> Text | None:
    """The text in a file if it is the run's, else None."""
    try:
        if not path.is_file() or path.stat().st_size != run.record.text.bytes:
            return None
        text = texts.locate(str(path))
    except (OSError, BadInputError):
        return None
    return text if is_text_of(run, text) else None


def _changed(run: Run, before: str, now: str, remedy: str) -> BadInputError:
    path = run.record.text.path
    return BadInputError(
        f"the text of {run.id} has changed: {path} had {before} and now has {now}; {IF_MOVED}; else {remedy}"
    )
