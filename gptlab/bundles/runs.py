"""The runs in an unpacked bundle, ready to be verified."""

from dataclasses import dataclass
from pathlib import Path

from gptlab.bundles.anonymous import without_paths
from gptlab.bundles.contents import CONTENTS, BundledRun, describe, parent_files, patch_name, run_name
from gptlab.bundles.unpack import Unpacked
from gptlab.checkpoints.manifest import MODEL
from gptlab.errors import BadInputError, GptlabError
from gptlab.tracking.records import Branch, InitialWeights, RunRecord
from gptlab.tracking.run import Run, load_run


@dataclass(frozen=True)
class UnpackedRun:
    """A run of a bundle."""

    run: Run
    """Its record says where the parent's files are now."""
    needs: BundledRun


def unpacked_runs(bundle: Unpacked) -> list[UnpackedRun]:
    """Return the runs of a bundle, by id.

    Raises:
        BadInputError: A record is invalid, or is not what `bundle.json` says.
    """
    return [_load(bundle, needs) for needs in bundle.contents.runs]


def _load(bundle: Unpacked, needs: BundledRun) -> UnpackedRun:
    hashes = bundle.contents.hashes
    try:
        run = load_run(bundle.folder / run_name(needs.run))
        starts = run.history().starts
    except GptlabError as error:
        raise BadInputError(str(error).replace(f"{bundle.folder}/", "")) from None
    if run.record.altered or run.id != needs.run or without_paths(run.record) != run.record:
        raise BadInputError(f"{run_name(needs.run, 'run.json')} is not as gptlab bundles it")
    if describe(run.record, starts, hashes) != needs:
        raise BadInputError(f"{CONTENTS} says of {needs.run} what its records do not")
    for attempt in needs.attempts:
        if (sha256 := attempt.diff_sha256) and hashes.get(patch_name(needs.run, sha256)) != sha256:
            raise BadInputError(f"{patch_name(needs.run, sha256)} is missing, or is not the patch of the attempt")
    return UnpackedRun(Run(run.directory, _with_parent(run.record, bundle.folder, needs)), needs)


def _with_parent(record: RunRecord, folder: Path, needs: BundledRun) -> RunRecord:
    """Return the record with the place of the parent's files in the bundle, if they are inside."""
    parent = record.parent
    if parent is None or needs.parent is None or not needs.parent.inside:
        return record
    (weights,) = (name for name in parent_files(parent) if name.endswith(MODEL))
    moved: Branch | InitialWeights = parent.model_copy(update={"path": str(folder / weights)})
    return record.model_copy(update={"branch" if isinstance(parent, Branch) else "initial_weights": moved})
