"""`gptlab show`: what an experiment or a run is, as a page or as JSON."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptlab import catalog
from gptlab.chart import Curve, chart
from gptlab.console import printable
from gptlab.data import text as texts
from gptlab.data import tokenizer
from gptlab.errors import AmbiguousRunError, BadInputError
from gptlab.model.summary import layers
from gptlab.spec import NOT_IDENTITY, RESOLVED, SECTIONS, Experiment, Precision, identify
from gptlab.tracking import run as runs
from gptlab.tracking.metrics import read_metrics
from gptlab.training.settings import Available, resolve

MIB = 2**20


@dataclass(frozen=True)
class Description:
    """An experiment with everything resolved that its identity depends on."""

    experiment: Experiment
    hash: str
    identity: dict[str, Any]
    precision: Precision
    run: runs.Run | None = None

    def document(self) -> dict[str, Any]:
        """As `gptlab show --json` prints it."""
        spec = self.experiment
        return {
            "name": spec.name,
            "why": spec.why,
            "spec": spec.model_dump(mode="json", include=set(SECTIONS)),
            "parameters": spec.model.parameters,
            "forward_flops_per_token": spec.model.forward_flops_per_token(spec.train.sequence_length),
            "precision": self.precision,
            "identity": {"hash": self.hash, "content": self.identity},
            "run": self.run.id if self.run else None,
        }


def describe(name: str) -> Description:
    """The experiment of that name, as it would run here now; else the run of that id.

    Raises:
        BadInputError: There is neither.
    """
    experiments = catalog.experiments()
    if name not in experiments:
        try:
            run = runs.find(name)
        except AmbiguousRunError:
            raise
        except BadInputError:
            catalog.find(name)  # its message names the nearest experiment
            raise
        record = run.record
        return Description(record.spec, run.id.split("-")[-2], record.identity, record.precision, run)
    experiment = experiments[name]
    precision = resolve("auto", experiment.train.precision, Available.here()).precision
    text = texts.locate(experiment.data.text)
    identity = identify(
        experiment, precision=precision, text_sha256=text.sha256, tokenizer_sha256=tokenizer.TOKENIZER_SHA256
    )
    return Description(experiment, identity.hash, identity.content, precision)


def render(description: Description) -> None:
    """Print the page."""
    console = Console(highlight=False, markup=False, emoji=False)
    experiment = description.experiment
    name = description.run.id if description.run else experiment.name
    console.print(Text.assemble((name, "bold"), f" · {printable(experiment.why)}"), soft_wrap=True)
    console.print(f"identity {description.hash} · precision {description.precision}\n", soft_wrap=True)
    console.print(_spec_table(experiment))
    console.print(_layer_table(experiment))
    model, length = experiment.model, experiment.train.sequence_length
    console.print(f"total parameters         {model.parameters:,} (all trainable)")
    console.print(f"parameters' size         {4 * model.parameters / MIB:,.2f} MiB in float32")
    console.print(f"forward FLOPs per token  {model.forward_flops_per_token(length):,} at sequence length {length}")
    if description.run:
        _render_course(console, description.run)


def _render_course(console: Console, run: runs.Run) -> None:
    """How far the run got, and its losses as a chart."""
    rows = read_metrics(run.directory)
    validated = [row for row in rows if "val/loss" in row]
    trained = [row for row in rows if "train/loss" in row]
    loss = f" · val loss {validated[-1]['val/loss']:.4f}" if validated else ""
    console.print(f"\n{run.status()} · step {run.step()} of {run.target()}{loss}", soft_wrap=True)
    curves = [
        Curve("·", [row["step"] for row in trained], [row["train/loss"] for row in trained]),
        Curve("●", [row["step"] for row in validated], [row["val/loss"] for row in validated]),
    ]
    if lines := chart(curves, min(console.width, 100)):
        console.print(
            "\n".join(["loss in nats per token over steps: · training, ● validation", *lines]), soft_wrap=True
        )


def _spec_table(experiment: Experiment) -> Table:
    table = Table("field", "value", "", title="Spec", title_justify="left", box=None)
    for name in SECTIONS:
        section = getattr(experiment, name)
        for field, info in type(section).model_fields.items():
            value = getattr(section, field)
            marks = [mark for mark in (NOT_IDENTITY, RESOLVED) if mark in info.metadata]
            marks += [f"default {info.default}"] if value != info.default else []
            table.add_row(f"{name}.{field}", printable(str(value)), ", ".join(marks))
    return table


def _layer_table(experiment: Experiment) -> Table:
    title = f"Architecture, for a batch of {experiment.train.sequence_length} tokens"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("layer (type:depth-idx)")
    table.add_column("output shape")
    table.add_column("parameters", justify="right")
    for layer in layers(experiment.model, experiment.train.sequence_length):
        table.add_row(layer.label, str(list(layer.output_shape)), f"{layer.parameters:,}")
    return table
