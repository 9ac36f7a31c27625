"""What an attempt says when it opens, when it closes, and when there is nothing to do."""

import math
from typing import Any

import torch

from gptlab import project
from gptlab.console import Console, command, duration, printable, shortened
from gptlab.spec import Experiment, Identity, flatten, identity_fields
from gptlab.tracking import provenance
from gptlab.tracking import run as runs
from gptlab.tracking.checkpoints import list_checkpoints
from gptlab.tracking.metrics import last_value, read_metrics
from gptlab.tracking.records import Outcome
from gptlab.tracking.run import Run
from gptlab.training.loop import Material
from gptlab.training.settings import Settings, device_name

RESOLVED_ANEW = {"train.steps", "train.precision", "data.text"}


def why_new(experiment: Experiment, identity: Identity, console: Console) -> None:
    """Where runs of the same name exist, say what makes this one another run."""
    others = [run for run in runs.all_runs() if run.record.spec.name == experiment.name]
    others = [run for run in others if run.record.identity != identity.content]
    if not others:
        return
    newest = max(others, key=lambda run: run.record.created)
    old = _facts(newest.record.spec, newest.record.identity)
    new = _facts(experiment, identity.content)
    differences = [
        f"{key} {shortened(old.get(key))} → {shortened(new.get(key))}"
        for key in old | new
        if old.get(key) != new.get(key)
    ]
    console.say(f"a new run, not {newest.id}: {', '.join(differences)}")


def kept_fields(run: Run, experiment: Experiment, console: Console) -> None:
    """Say which fields an existing run keeps although the experiment has others today.

    They are not part of the identity: when to log, to evaluate and to save is settled when a run begins.
    """
    stored, today = (dict(flatten(spec.model_dump(exclude={"name", "why"}))) for spec in (run.record.spec, experiment))
    kept = [f"{key}={stored[key]}" for key in stored if stored[key] != today[key] and key not in RESOLVED_ANEW]
    if kept:
        console.notice(f"{run.id} keeps {', '.join(kept)} from when it began; --fresh starts it again")


def _facts(experiment: Experiment, content: dict[str, Any]) -> dict[str, Any]:
    """All that an identity is made from, defaults included, by dotted key."""
    own = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return own | dict(flatten(identity_fields(experiment)))


def complete(run: Run, steps: int, done: int, console: Console) -> None:
    """The run has all the steps that were asked for."""
    more = f", more than the {steps} asked for" if steps < done else ""
    console.say(f"{run.id} is complete: {done} steps{more}; nothing changed", style="bold")
    last = run.starts()[-1:]
    now = provenance.working_tree().facts()
    if any(start.get(key) != now[key] for start in last for key in ("git_commit", "diff_sha256")):
        console.notice("the code has changed since; --fresh moves the run to the trash and starts it again")
    _results(run, console)
    _next_commands(run, console)


def opening(
    run: Run, begin: int, steps: int, material: Material, settings: Settings, wandb: str, console: Console
) -> None:
    """What is about to be trained, on what, and where it goes."""
    spec, text = run.record.spec, run.record.text
    model, train, windows = spec.model, spec.train, material.windows
    verb = "starts" if begin == 0 else f"goes on from step {begin}"
    console.say(f"{run.id} {verb}", style="bold")
    console.fact("question", spec.why)
    console.fact(
        "model",
        f"{model.parameters:,} parameters · {model.n_layer} layers · {model.n_head} heads · width {model.n_embd} · "
        f"context {model.context_length}",
    )
    console.fact(
        "text",
        f"{text.source} · {text.bytes:,} bytes · {len(windows.tokens):,} training and "
        f"{len(material.val.tokens):,} validation tokens",
    )
    chosen = " (chosen by auto: part of the id)" if train.precision == "auto" else ""
    threads = f" · {torch.get_num_threads()} threads" if settings.device == "cpu" else ""
    console.fact("device", f"{device_name(settings.device)}{threads} · {settings.precision}{chosen}")
    epochs = steps * train.batch_size / windows.per_epoch
    console.fact(
        "training",
        f"{steps:,} steps of {train.batch_size} × {train.sequence_length} tokens · {epochs:.2f} epochs · "
        f"AdamW at {train.learning_rate:g}",
    )
    console.fact("W&B", wandb)
    console.fact("directory", project.shown(run.directory))


def changed_surroundings(run: Run, facts: dict[str, Any], console: Console) -> None:
    """Say what differs from the attempt before, where that may change the numbers."""
    starts = run.starts()
    if not starts or not facts["from_step"]:
        return
    keys = ("device", "torch", "threads", "git_commit", "diff_sha256")
    changed = [key for key in keys if starts[-1].get(key) != facts[key]]
    if changed:
        console.notice(f"changed since the last attempt: {', '.join(changed)}; exactness is not promised across it")


def closing(run: Run, outcome: Outcome, url: str | None, console: Console) -> None:
    """Where the run stands, and what to do next."""
    step = run.step()
    console.say()
    if outcome == "interrupted":
        where = f"at step {step} and saved" if step else "before its first step"
        console.say(f"{run.id} was interrupted {where}", style="bold yellow")
        console.fact("go on", command("resume", run.id))
        return
    elapsed_s = last_value(read_metrics(run.directory), "elapsed_s")
    took = f" in {duration(elapsed_s)} of training" if elapsed_s is not None and math.isfinite(elapsed_s) else ""
    console.say(f"{run.id} is complete: {step} steps{took}", style="bold green")
    _results(run, console)
    for line in run.samples()[-1:]:
        console.fact("sample", printable(line["prompt"] + line["text"]).replace("\n", "\n" + " " * 13))
    if url:
        console.fact("W&B", url)
    _next_commands(run, console)


def _results(run: Run, console: Console) -> None:
    rows = read_metrics(run.directory)
    train, val, bpb = (_number(last_value(rows, column)) for column in ("train/loss", "val/loss", "val/bpb"))
    se = last_value(rows, "val/loss_se")
    console.fact("train loss", f"{train} nats/token")
    console.fact("val loss", f"{val}{'' if se is None else f' ± {se:.4f}'} nats/token · {bpb} bits/byte")
    console.fact("directory", project.shown(run.directory))
    for checkpoint in list_checkpoints(run.directory)[-1:]:
        console.fact("checkpoint", f"checkpoints/{checkpoint.directory.name} in it")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _next_commands(run: Run, console: Console) -> None:
    console.say("next")
    console.fact("extend", command("resume", run.id, "--steps", str(2 * run.step())))
    console.fact("sample", command("sample", run.id, "--prompt", "The"))
    console.fact("dashboard", command("dashboard", run.id))
    console.fact("report", "make report")
    console.fact("compare", "make notebook")
