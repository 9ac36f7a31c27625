"""Fingerprints are kept in the cache directory, so that each is computed once per edit of the code."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import gptlab
from gptlab import project
from gptlab.data.vocabularies import Tokenizer
from gptlab.digests import canonical_json, check_digest, with_digest
from gptlab.errors import GptlabError
from gptlab.files import atomic_write, writable_cache
from gptlab.identity import NUMERICS, UNKNOWN, Fingerprint, identity_fields
from gptlab.sources import PROJECT
from gptlab.spec import Experiment, Precision
from gptlab.training.fingerprint import code_folders, compute
from gptlab.training.memory import explain_out_of_memory


def fingerprint(experiment: Experiment, tokenizer: Tokenizer, precision: Precision = "float32") -> Fingerprint:
    """Return the fingerprint of an experiment with the code that this process has imported.

    It is in the cache if no file has changed. A process that imported older code, such as a notebook, neither reads nor
    writes it there.

    Raises:
        BadInputError: The code cannot be read.
        GptlabError: The code does not train the small model, or memory runs out.
    """
    path = _cache_path(experiment, tokenizer, precision)
    cached = _read(path)
    if cached and all(map(_is_older, _paths(cached).values())):
        return cached
    with explain_out_of_memory():
        found = compute(experiment, tokenizer, precision)
    changed = {name: UNKNOWN for name, path in _paths(found).items() if not _is_older(path)}
    if changed:
        return found.model_copy(update={"files": found.files | changed})
    _write(path, found)
    return found


def _cache_path(experiment: Experiment, tokenizer: Tokenizer, precision: Precision) -> Path:
    """Return the path of the cached fingerprint, which depends on everything but the code's files."""
    folders = {name: str(folder) for name, folder in code_folders().items()}
    key = [folders, identity_fields(experiment), tokenizer.sha256, precision, NUMERICS]
    key += [torch.__version__, np.__version__]
    name = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    return project.cache_directory() / "fingerprints" / f"{name}.json"


def _read(path: Path) -> Fingerprint | None:
    """Return a cached fingerprint; None if there is none, it is damaged, or a file has changed."""
    try:
        found = Fingerprint.model_validate(check_digest(json.loads(path.read_bytes())))
        current = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _paths(found).items()}
    except (OSError, ValueError, GptlabError):
        return None
    return found if current == found.files else None


def _paths(found: Fingerprint) -> dict[str, Path]:
    """Return the paths of a fingerprint's files."""
    folders = code_folders()
    root = folders.get(PROJECT, folders["gptlab"])
    return {name: folders.get(name.partition("/")[0], root / "-").parent / name for name in found.files}


def _is_older(path: Path) -> bool:
    """Return whether this process imported the file as it is on the disk, as far as its time tells."""
    return path.stat().st_mtime_ns < gptlab.STARTED_NS


def _write(path: Path, found: Fingerprint) -> None:
    with suppress(OSError, GptlabError):  # it is only a cache
        writable_cache(path.parent.name)
        with atomic_write(path) as file:
            file.write(json.dumps(with_digest(found.model_dump(mode="json"))).encode())
