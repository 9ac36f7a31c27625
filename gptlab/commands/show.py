"""`gptlab show`: the spec, identity and architecture of an experiment or a run."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from gptlab import catalog
from gptlab.commands import run_messages
from gptlab.errors import AmbiguousRunError, BadInputError
from gptlab.identity import hash_of
from gptlab.model.measure import size_of
from gptlab.model.summary import layers
from gptlab.size import Size
from gptlab.spec import NOT_IDENTITY, RESOLVED, SECTIONS, Experiment, Precision, fields_of
from gptlab.terminal.chart import Curve, chart
from gptlab.terminal.console import Console
from gptlab.terminal.sparkline import bars, resample
from gptlab.terminal.tables import borderless
from gptlab.terminal.text import plural, printable
from gptlab.tracking.run import Run, find_run
from gptlab.tracking.verifications import current_verification, describe_verification, verified_facts
from gptlab.training.plan import plan
from gptlab.training.schedule import learning_rates
from gptlab.validation import did_you_mean

MIB = 2**20
MAX_RATES = 4800
"""Learning rates from which a schedule is drawn."""


@dataclass(frozen=True)
class Description:
    """An experiment with its resolved precision and identity."""

    experiment: Experiment
    hash: str
    identity: dict[str, Any]
    precision: Precision
    size: Size
    run: Run | None = None
    """The run that the experiment was read from; None for a current experiment."""

    def document(self) -> dict[str, Any]:
        """Return what `gptlab show --json` prints."""
        spec = self.experiment
        return {
            "name": spec.name,
            "why": spec.why,
            "spec": spec.model_dump(mode="json", include=set(SECTIONS)),
            "parameters": self.size.parameters,
            "forward_flops_per_token": self.size.forward_flops_per_token,
            "precision": self.precision,
            "tokenizer": {"name": spec.data.tokenizer, "sha256": self.identity["tokenizer_sha256"]},
            "identity": {"hash": self.hash, "content": self.identity},
            "run": self.run.id if self.run else None,
            **({"verified": verified_facts(current_verification(self.run.directory))} if self.run else {}),
            **(self.run.record.parent_facts() if self.run else {}),
        }


def describe(name: str) -> Description:
    """Describe the experiment with this name as it would run here and now, else the run (see `find_run`).

    Raises:
        BadInputError: There is neither, or the experiment's text or precision cannot be used here.
    """
    found = catalog.load()
    problem = found.problem_with(name) if name not in found.experiments else None
    catalog.report(other for other in found.problems if other is not problem)
    if name in found.experiments:
        planned = plan(found.experiments[name])
        identity, size = planned.identity, size_of(planned.experiment)
        return Description(planned.experiment, identity.hash, identity.content, planned.settings.precision, size)
    try:
        run = find_run(name)
    except AmbiguousRunError:
        raise
    except BadInputError:
        if problem:
            raise BadInputError(problem.message) from None
        if hint := did_you_mean(name, found.experiments):
            raise BadInputError(f"there is no experiment '{name}'{hint}") from None
        raise BadInputError(
            f"there is no experiment or run '{name}'; `gptlab list` and `gptlab runs` list them"
        ) from None
    record = run.record
    return Description(record.spec, hash_of(record.identity), record.identity, record.precision, record.model_size, run)


def render(description: Description) -> None:
    """Print the description; for a run also its losses."""
    console, experiment = Console(), description.experiment
    name = description.run.id if description.run else experiment.name
    console.rich.print(Text.assemble((name, "bold"), f" · {printable(experiment.why)}"))
    tokenizer, sha256 = printable(experiment.data.tokenizer), description.identity["tokenizer_sha256"]
    console.print(f"identity {description.hash} · precision {description.precision}{_arithmetic(description)}")
    console.print(f"tokenizer {tokenizer} · {experiment.model.vocab_size:,} embeddings · sha256 {sha256:.8}")
    if description.run and (parent := description.run.record.parent):
        console.print(f"parent {run_messages.describe_parent(parent)}")
    elif description.run and (imported := description.run.record.imported_weights):
        console.print(f"weights {printable(imported.path)} · sha256 {imported.sha256:.8}, as step 0")
    console.print()
    console.table(_spec_table(experiment))
    console.print()
    try:
        console.table(_layer_table(experiment))
    except BadInputError as error:  # a run's part is gone
        console.notice(f"the layers are not shown: {error}")
    console.print()
    if lines := _schedule_lines(experiment):
        console.print("\n".join([*lines, ""]))
    size, length = description.size, experiment.train.sequence_length
    console.print(f"total parameters         {size.parameters:,} (all trainable)")
    console.print(f"parameter size           {4 * size.parameters / MIB:,.2f} MiB in float32")
    console.print(f"forward FLOPs per token  {size.forward_flops_per_token:,} at sequence length {length}")
    if description.run:
        _render_losses(console, description.run)


def _arithmetic(description: Description) -> str:
    """What the code computes, as the report calls it; nothing for a run of an earlier version of gptlab."""
    found = description.identity.get("fingerprint")
    return f" · arithmetic {found:.8}" if found else ""


def _render_losses(console: Console, run: Run) -> None:
    history = run.history()
    rows = history.sample_rows()
    validated = [row for row in rows if "val/loss" in row]
    trained = [row for row in rows if "train/loss" in row]
    loss = f" · val loss {validated[-1]['val/loss']:.4f}" if validated else ""
    console.print(f"\n{history.status} · step {history.step} of {history.target}{loss}")
    if verified := current_verification(run.directory):
        console.print(f"verified {describe_verification(verified)} · {verified['time']:.10}")
    if history.damage:
        console.notice(f"{history.damage}; its losses are not shown")
    curves = [
        Curve("·", [row["step"] for row in trained], [row["train/loss"] for row in trained]),
        Curve("●", [row["step"] for row in validated], [row["val/loss"] for row in validated]),
    ]
    if lines := chart(curves, min(console.chart_width, 100)):
        console.print("\n".join(["loss in nats per token over steps: · training, ● validation", *lines]))


def _schedule_lines(experiment: Experiment) -> list[str]:
    """Draw the learning rate over the steps to the horizon or to the end; nothing if it is constant."""
    train = experiment.train
    steps = range(train.horizon or train.steps)
    try:
        rate = learning_rates(train)
        rates = [rate(step) for step in steps[:: max(len(steps) // MAX_RATES, 1)]]
    except BadInputError as error:  # a run's part is gone
        return [f"note: the schedule is not drawn: {error}"]
    if min(rates) == max(rates):
        return []
    low, high = f"{min(rates):.3g}", f"{max(rates):.3g}"
    return [
        f"learning rate            {bars(resample(rates, 48), 0.0)} {low} to {high} over {plural(len(steps), 'step')}"
    ]


def _spec_table(experiment: Experiment) -> Table:
    table = borderless("field", "value", "", title="Spec")
    for key, field in fields_of(type(experiment)):
        if "." not in key:  # the name and the question are above
            continue
        value: Any = experiment
        for part in key.split("."):
            value = getattr(value, part)
        marks = [mark for mark in (NOT_IDENTITY, RESOLVED) if mark in field.metadata]
        marks += [f"default {field.default}"] if value != field.default else []
        table.add_row(key, printable(str(value)), ", ".join(marks))
    return table


def _layer_table(experiment: Experiment) -> Table:
    title = f"Architecture for {plural(experiment.train.sequence_length, 'token')} (-1: batch size)"
    table = borderless("layer (type:depth-idx)", "output shape", "parameters", right=("parameters",), title=title)
    for layer in layers(experiment.model, experiment.train.sequence_length):
        table.add_row(layer.label, str(list(layer.output_shape)), f"{layer.parameters:,}")
    return table
