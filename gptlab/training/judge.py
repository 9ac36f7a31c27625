"""`gptlab eval`: a checkpoint against a whole held-out text."""

from typing import Any

import safetensors.numpy
from rich.progress import Progress

from gptlab import project
from gptlab.console import Console
from gptlab.data import text as texts
from gptlab.data import tokens
from gptlab.data.tokens import Split
from gptlab.data.windows import validation_starts
from gptlab.tracking.checkpoints import pick
from gptlab.tracking.run import Run
from gptlab.training.attempt import stored_text
from gptlab.training.evaluate import evaluate
from gptlab.training.restore import load_model
from gptlab.training.settings import Available, keep_freed_memory, memory_errors_explained, resolve


def judge(run: Run, *, step: int | None, text: str | None, device: str, console: Console) -> dict[str, Any]:
    """The loss over every window of the run's validation split, or of another text as a whole.

    The losses of the single windows are kept in the run's `evaluations/`, under step and yardstick.
    """
    spec = run.record.spec
    checkpoint = pick(run.directory, step)
    settings = resolve(device, run.record.precision, Available.here())
    held_out = _whole(text) if text else tokens.prepare(stored_text(run), spec.data.val_fraction).val
    starts = validation_starts(held_out, spec.train.sequence_length, None)
    keep_freed_memory()
    model = load_model(checkpoint, spec.model).to(settings.device)
    with memory_errors_explained(), Progress(console=console.rich, transient=True) as bar:
        task = bar.add_task("  windows", total=len(starts))
        evaluation = evaluate(
            model,
            held_out,
            starts,
            sequence_length=spec.train.sequence_length,
            settings=settings,
            advance=lambda windows: bar.update(task, advance=windows),
        )
    folder = run.directory / "evaluations"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{checkpoint.step:08d}-{evaluation.yardstick}.safetensors"
    safetensors.numpy.save_file({"start": starts, "loss": evaluation.window_losses}, path)
    console.say(f"{run.id} at step {checkpoint.step} on {text or 'its validation split'}", style="bold")
    console.fact("loss", f"{evaluation.loss:.4f} ± {evaluation.loss_se:.4f} nats/token")
    console.fact("bits/byte", f"{evaluation.bits_per_byte:.4f}")
    console.fact("perplexity", f"{evaluation.perplexity:.2f}")
    console.fact("over", f"{len(starts):,} windows · {evaluation.tokens:,} tokens · {evaluation.bytes:,} bytes")
    console.fact("windows", project.shown(path))
    return {
        "run": run.id,
        "step": checkpoint.step,
        "loss": evaluation.loss,
        "loss_se": evaluation.loss_se if len(starts) > 1 else None,
        "bpb": evaluation.bits_per_byte,
        "perplexity": evaluation.perplexity,
        "tokens": evaluation.tokens,
        "bytes": evaluation.bytes,
        "yardstick": evaluation.yardstick,
    }


def _whole(source: str) -> Split:
    return tokens.prepare(texts.locate(source), 1.0).val
