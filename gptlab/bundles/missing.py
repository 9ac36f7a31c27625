"""What a replay of a bundled run needs and finds neither in the bundle nor here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gptlab import project
from gptlab.bundles.contents import text_name
from gptlab.bundles.runs import UnpackedRun
from gptlab.bundles.unpack import Unpacked
from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.data import text as texts
from gptlab.data import vocabularies
from gptlab.data.text import Text
from gptlab.errors import BadInputError, GptlabError
from gptlab.identity import UNKNOWN
from gptlab.terminal.text import abbreviate_hash
from gptlab.tracking.lineage import places
from gptlab.tracking.run import run_directories


@dataclass(frozen=True)
class Found:
    """What a run's replay needs, as far as it is here."""

    text: str | None
    """The path of the text."""
    missing: tuple[str, ...]
    """What is missing, a line each with the remedy."""
    notes: tuple[str, ...]
    """What is here and differs."""


def find_needed(found: UnpackedRun, bundle: Unpacked, given: Text | None, first: int | None) -> Found:
    """Look for what the replay of a run needs.

    Args:
        found: The run.
        bundle: Its bundle.
        given: The text that the user has given.
        first: The step to start from; None for the run's first one.
    """
    text = _find_text(found, bundle, given)
    missing = [*_missing_text(found, text), *_missing_tokenizer(found), *_missing_start(found, first)]
    changed = []
    for name, sha256 in found.needs.parts.items():
        here = _hash(name)
        if here is None:
            missing.append(f"{name}, code that the spec names; it is in the repository that the run was made with")
        elif here != sha256 and sha256 != UNKNOWN:
            changed.append(f"{name} differs here from the one that the run was made with")
    return Found(None if text is None else str(text), tuple(missing), tuple(changed))


def _find_text(found: UnpackedRun, bundle: Unpacked, given: Text | None) -> Path | None:
    needed = found.needs.text
    if needed.inside:
        return bundle.folder / text_name(needed.sha256)
    if given and given.sha256 == needed.sha256:
        return given.path
    if needed.name in texts.NAMED:
        try:
            text = texts.locate(needed.name)
        except GptlabError:  # it cannot be made or downloaded
            return None
        return text.path if text.sha256 == needed.sha256 else None
    return None


def _missing_text(found: UnpackedRun, text: Path | None) -> Iterator[str]:
    needed = found.needs.text
    if text is None:
        yield f"the text '{needed.name}', {needed.bytes:,} bytes, sha256 {needed.sha256}; pass it with --text"


def _missing_tokenizer(found: UnpackedRun) -> Iterator[str]:
    needed = found.needs.tokenizer
    if not needed.inside:
        yield f"the tokenizer '{needed.name}', sha256 {needed.sha256}; ask for a bundle with tokenizer.json"
    elif needed.name in vocabularies.NAMED and vocabularies.NAMED[needed.name].sha256 != needed.sha256:
        yield f"the tokenizer '{needed.name}' with sha256 {needed.sha256}; here it is another one"


def _missing_start(found: UnpackedRun, first: int | None) -> Iterator[str]:
    record, needs = found.run.record, found.needs
    kept = [checkpoint.step for checkpoint in list_checkpoints(found.run.directory) if checkpoint.resumable]
    steps = [step for step in kept if step < found.run.history().step]
    if first not in {None, record.start_step}:
        if first not in kept:
            inside = ", ".join(map(str, steps))
            remedy = "pass --from with one of them" if steps else "ask for a bundle with --checkpoints all"
            yield f"the resumable checkpoint of step {first} of {needs.run}; inside: {inside or 'none'}; {remedy}"
    elif record.parent and needs.parent and not needs.parent.inside:
        if not any(path.is_file() for path in places(record.parent, run_directories())[1:]):
            remedy = f", or pass --from {steps[-1]}" if steps else ""
            yield f"its parent {record.parent.reference}; bundle both{remedy}"
    elif needs.imported_weights:
        sha256 = abbreviate_hash(needs.imported_weights.sha256)
        remedy = f"pass --from {steps[-1]}" if steps else "ask for a bundle with --checkpoints all"
        yield (
            f"the weights '{needs.imported_weights.name}' of transformers, sha256 {sha256}, which a bundle never "
            f"holds; {remedy}"
        )


def _hash(name: str) -> str | None:
    """Return the sha256 of a file of the project; None if there is none."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable():
        return None
    try:
        file = project.root() / path
        return texts.sha256_of(file) if file.is_file() else None
    except (OSError, BadInputError, ValueError):
        return None
