"""The tokenizer of a run. A run with a tokenizer file has a copy of it, so it can be used on another machine.

The copy is written before `run.json`. It is used only if it has the sha256 that the run recorded.
"""

import hashlib
import logging
from pathlib import Path

from gptlab import project
from gptlab.data import vocabularies
from gptlab.data.byte_pairs import MAX_BYTES
from gptlab.data.text import find_file
from gptlab.data.vocabularies import FileTokenizer, Tokenizer
from gptlab.errors import BadInputError, GptlabError
from gptlab.files import write_durably
from gptlab.terminal.text import shell_command
from gptlab.tracking.run import TOKENIZER, Run
from gptlab.untrusted import open_regular

logger = logging.getLogger(__name__)


def run_tokenizer(run: Run) -> Tokenizer:
    """Return the tokenizer that a run began with.

    Raises:
        BadInputError: gptlab's own tokenizer has changed; or the run's copy of its file is gone or damaged, and its
            original is, too.
    """
    name, expected = run.record.spec.data.tokenizer, run.record.tokenizer_sha256
    if name in vocabularies.NAMED:
        named = vocabularies.NAMED[name]
        if named.sha256 != expected:
            again = shell_command("run", run.record.spec.name, "--text", run.record.text.path)
            raise BadInputError(
                f"{run.id} was started with another tokenizer: sha256 {expected}, now {named.sha256}; start a new run "
                f"with: {again}"
            )
        return named
    copy = run.directory / TOKENIZER
    content = _copy(copy)
    if content is None or _sha256(content) != expected:
        problem = f"{project.display_path(copy)} is {'damaged' if copy.exists() else 'missing'}"
        content = _original(name, expected)
        if content is None:
            raise BadInputError(f"{problem}; copy a tokenizer.json with sha256 {expected} there")
        logger.warning("%s; '%s' is used instead, which is the same tokenizer", problem, name)
    found = FileTokenizer(name, content)
    if found.vocab_size != run.record.spec.model.vocab_size:
        raise BadInputError(f"{run.id}: the tokenizer has {found.vocab_size} tokens, but the model does not")
    return found


def restore_copy(run: Run, tokenizer: Tokenizer) -> None:
    """Write the run's copy of its tokenizer file if it is missing or damaged. The caller trains the run."""
    copy = run.directory / TOKENIZER
    if tokenizer.content is not None and _copy(copy) != tokenizer.content:
        write_durably(copy, tokenizer.content)


def _copy(path: Path) -> bytes | None:
    """The content of a file of the run, up to the length of a tokenizer; None if there is no file that can be read."""
    try:
        with open_regular(path) as file:
            return file.read(MAX_BYTES)
    except (FileNotFoundError, GptlabError):
        return None


def _original(source: str, expected: str) -> bytes | None:
    """The content of the file that the spec names; None if it is not that tokenizer."""
    path = find_file(source)
    try:
        content = vocabularies.read(path, source) if path else b""
    except GptlabError:
        return None
    return content if _sha256(content) == expected else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
