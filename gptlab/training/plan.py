"""Resolve an experiment on this machine: device, precision, text, code and identity."""

from dataclasses import dataclass
from pathlib import Path

from gptlab import project
from gptlab.data import text as texts
from gptlab.data.text import Text
from gptlab.data.vocabularies import Tokenizer, tokenizer_of
from gptlab.errors import BadInputError
from gptlab.identity import Fingerprint, Identity, identify
from gptlab.spec import Experiment
from gptlab.tracking.records import Branch, ImportedWeights, InitialWeights
from gptlab.training.fingerprint_cache import fingerprint
from gptlab.training.settings import Available, Settings, resolve_settings

Parent = InitialWeights | ImportedWeights | Branch
"""What a run starts from instead of drawing its weights from its seed."""


@dataclass(frozen=True)
class Plan:
    """An experiment and a seed with resolved settings, text and identity."""

    experiment: Experiment
    seed: int
    settings: Settings
    text: Text
    tokenizer: Tokenizer
    fingerprint: Fingerprint
    identity: Identity
    initial_weights: InitialWeights | None = None
    """None unless the run starts from another run's weights."""
    branch: Branch | None = None
    """None unless the run continues from another run's checkpoint."""
    imported_weights: ImportedWeights | None = None
    """None unless the run starts from a directory of `transformers`."""

    @property
    def run_directory(self) -> Path:
        """The run's directory, whether it exists or not."""
        return project.runs_directory() / self.identity.run_id(self.seed)


def plan(experiment: Experiment, seed: int = 0, device: str = "auto", parent: Parent | None = None) -> Plan:
    """Resolve an experiment.

    Raises:
        BadInputError: The text, the tokenizer or the code cannot be read or used, the device is not available or does
            not support the precision, or the parent has another tokenizer.
    """
    settings = resolve_settings(device, experiment.train.precision, Available.here())
    tokenizer = tokenizer_of(experiment)
    origin = parent.path if isinstance(parent, ImportedWeights) else parent and parent.run
    if parent and parent.tokenizer_sha256 not in {None, tokenizer.sha256}:
        raise BadInputError(
            f"{origin} has another tokenizer than '{tokenizer.name}' of experiment {experiment.name}, so "
            "its embeddings are those of other tokens; start from weights with the same data.tokenizer"
        )
    text = texts.locate(experiment.data.text)
    code = fingerprint(experiment, tokenizer, settings.precision)
    weights = parent if isinstance(parent, InitialWeights) else None
    imported = parent if isinstance(parent, ImportedWeights) else None
    branch = parent if isinstance(parent, Branch) else None
    identity = identify(
        experiment,
        precision=settings.precision,
        text_sha256=text.sha256,
        tokenizer_sha256=tokenizer.sha256,
        initial_weights_sha256=start.sha256 if (start := weights or imported) else None,
        branch=branch.identity() if branch else None,
        fingerprint=code,
    )
    return Plan(experiment, seed, settings, text, tokenizer, code, identity, weights, branch, imported)
