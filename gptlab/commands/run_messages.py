"""What `gptlab run` and `gptlab resume` print."""

import math
import shlex
from pathlib import Path
from typing import Any

from gptlab import compiler, project
from gptlab.checkpoints.manifest import Checkpoint, list_checkpoints
from gptlab.distributed.place import place
from gptlab.errors import GptlabError
from gptlab.identity import Fingerprint, Identity, identity_fields
from gptlab.spec import Experiment, TrainSpec, flatten
from gptlab.terminal.console import Console
from gptlab.terminal.text import abbreviate_hash, format_duration, plural, printable, shell_command
from gptlab.tracking import provenance
from gptlab.tracking.history import History
from gptlab.tracking.metrics import Row
from gptlab.tracking.records import Branch, InitialWeights, Outcome, Start
from gptlab.tracking.run import Run, all_runs
from gptlab.training.capacity import describe_threads
from gptlab.training.fingerprint_cache import fingerprint
from gptlab.training.run_code import differing_files
from gptlab.training.run_tokenizer import run_tokenizer
from gptlab.training.settings import Settings
from gptlab.training.training_data import TrainingData

COMPARED = {
    "device": "device",
    "torch": "torch",
    "threads": "threads",
    "compile": "compilation",
    "capture": "CUDA graph",
    "workers": "number of processes",
    "shard": "sharding",
    "git_commit": "commit",
    "diff_sha256": "uncommitted changes",
}
"""Fields of an attempt's start that can change the numbers, and what to call them."""
CODE_FACTS = ("git_commit", "diff_sha256")
RESOLVED_EACH_TIME = {"train.steps", "train.precision", "data.text", "data.tokenizer"}
"""Fields that a run does not keep: `steps` may extend it, the others are compared as part of the identity."""


def new_identity(experiment: Experiment, identity: Identity, code: Fingerprint, console: Console) -> None:
    """Print how a new run differs from the run of the same name that is most like it, if there is one."""
    others = [run for run in all_runs() if run.record.spec.name == experiment.name]
    others = [run for run in others if run.record.identity != identity.content]
    if not others:
        return
    new = _facts(experiment, identity.content)
    newest_first = sorted(others, key=lambda run: run.record.created, reverse=True)
    closest = min(newest_first, key=lambda run: (len(_differing_facts(run, new)), _differing_code_files(run, code)))
    differences = [
        f"{key} {abbreviate_hash(old)} → {abbreviate_hash(new)}"
        for key, (old, new) in _differing_facts(closest, new).items()
    ]
    differences += _differing_arithmetic(closest)
    differences = differences or ["different arithmetic"]  # only the fingerprint differs
    console.print(f"new run; differs from {closest.id}: {', '.join(differences)}")


def _differing_facts(run: Run, new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    old = _facts(run.record.spec, run.record.identity)
    keys = [key for key in old | new if key != "fingerprint"]  # it depends on the other facts as well
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _differing_code_files(run: Run, code: Fingerprint) -> float:
    return len(run.record.fingerprint.differing_files(code)) if run.record.fingerprint else math.inf


def _differing_arithmetic(run: Run) -> list[str]:
    """Say that the code computes something else than it did in a run, for the run's own spec."""
    recorded = run.record.fingerprint
    try:
        code = fingerprint(run.record.spec, run_tokenizer(run), run.record.precision)
    except GptlabError:  # a part of the older run or its tokenizer is gone, which does not concern the new one
        return []
    same = recorded is not None and recorded.hash == code.hash
    return [] if same else [f"different arithmetic{differing_files(recorded, code)}"]


def kept_fields(run: Run, experiment: Experiment, console: Console) -> None:
    """Print which fields an existing run keeps although the experiment has changed.

    These fields, such as when to log and save, are not part of the identity and are fixed when a run begins.
    """
    stored, today = (dict(flatten(spec.model_dump(exclude={"name", "why"}))) for spec in (run.record.spec, experiment))
    kept = [f"{key}={stored[key]!r}" for key in stored if stored[key] != today[key] and key not in RESOLVED_EACH_TIME]
    if kept:
        console.notice(
            f"{run.id} keeps {', '.join(kept)} from its start; `gptlab run` with --fresh applies the new values"
        )


def _facts(experiment: Experiment, content: dict[str, Any]) -> dict[str, Any]:
    """Everything that the identity is computed from, including defaults, by dotted key."""
    own = {key: value for key, value in content.items() if not isinstance(value, dict)}
    if branch := content.get("branch"):
        own["branch"] = f"{branch['run']}@{branch['step']} ({branch['model_sha256'][:8]})"
    return own | dict(flatten(identity_fields(experiment)))


def last_arithmetic(run: Run, history: History) -> str | None:
    """Return the hash of the code's fingerprint in the last attempt; None if it is unknown."""
    recorded = [start["fingerprint"] for start in history.starts if "fingerprint" in start]
    if recorded:
        return recorded[-1]
    return run.record.fingerprint.hash if run.record.fingerprint else None


def already_complete(
    run: Run, history: History, steps: int, code: Fingerprint, console: Console, *, with_next: bool = True
) -> None:
    """Print that a complete run already has all requested steps, its results and, `with_next`, the next commands."""
    done = history.step
    more = f", more than the {steps} requested" if steps < done else ""
    console.print(f"{run.id} is complete: {plural(done, 'step')}{more}; nothing changed", style="bold")
    now = provenance.working_tree()
    if now.unknown:
        console.notice(f"whether the code has changed since then is unknown: {now.unknown}")
    elif _differing_code(run, history.starts, now):
        console.notice(f"the code has changed since then; {_effect_of_changed_code(run, history, code)}")
    if history.damage:
        again = shell_command("eval", run.reference)
        console.notice(f"{history.damage}; its losses are not shown; measure the final one again with: {again}")
    _print_results(run, history, console)
    if with_next:
        next_commands(run, history, console)


def _effect_of_changed_code(run: Run, history: History, code: Fingerprint) -> str:
    if last_arithmetic(run, history) == code.hash:
        return "its arithmetic is the same"
    if run.record.fingerprint and run.record.fingerprint.hash == code.hash:
        return (
            "it is that of the first attempt, but not of the last one; `gptlab run` with --fresh starts the run again"
        )
    return "`gptlab run` starts another run with it"


def steps_to_horizon(run: Run, steps: int, console: Console) -> int:
    """Return the steps that can be trained: at most the schedule's horizon, which is printed if it cuts them."""
    train = run.record.spec.train
    if train.horizon is None or steps <= train.horizon:
        return steps
    console.notice(f"train.schedule {train.schedule} ends at train.horizon {train.horizon}, before step {steps}")
    return train.horizon


def fewer_steps(run: Run, history: History, steps: int, done: int, console: Console) -> None:
    """Print that an interrupted run already has more steps than requested."""
    console.print(f"{run.id} already has {plural(done, 'step')}, more than the {steps} requested; nothing changed")
    console.fact("resume", shell_command("resume", run.reference, "--steps", str(history.target)))


def opening(
    run: Run, start: int, steps: int, data: TrainingData, settings: Settings, wandb: str, console: Console
) -> None:
    """Print what is about to be trained, on which text and device, and where."""
    spec, text = run.record.spec, run.record.text
    model, train, windows = spec.model, spec.train, data.windows
    begins = f"branches off at step {start}" if run.record.branch else "starts"
    verb = begins if start == run.record.start_step else f"resumes from step {start}"
    console.print(f"{run.id} {verb}", style="bold")
    console.fact("question", spec.why)
    if parent := run.record.parent:
        console.fact("parent", describe_parent(parent))
    elif imported := run.record.imported_weights:
        console.fact("weights", f"{printable(imported.path)} · sha256 {imported.sha256:.8}, as step 0")
    console.fact(
        "model",
        f"{run.record.model_size.parameters:,} parameters · {plural(model.n_layer, 'layer')} · "
        f"{plural(model.n_head, 'head')} · "
        f"width {model.n_embd} · "
        f"context {model.context_length}",
    )
    console.fact(
        "text",
        f"{text.source} · {text.bytes:,} bytes · {len(windows.tokens):,} training and "
        f"{len(data.val.tokens):,} validation tokens",
    )
    tokenizer = data.val.tokenizer
    console.fact(
        "tokenizer",
        f"{tokenizer.name} · {tokenizer.vocab_size:,} tokens · {data.val.size / len(data.val.tokens):.2f} bytes per "
        "token of the validation text",
    )
    chosen = " (chosen by auto; part of the id)" if train.precision == "auto" else ""
    threads = f" · {describe_threads()}" if settings.device == "cpu" else ""
    kernels = "".join(
        f" · {what}"
        for what, used in {"compiled": settings.compile, "captured as a CUDA graph": settings.capture}.items()
        if used
    )
    console.fact("device", f"{settings.device_name()}{threads} · {settings.precision}{chosen}{kernels}")
    if (at := place()).size > 1:
        console.fact("processes", f"{at.size} · each has {train.batch_size // at.size} of the rows of a batch")
    epochs = windows.epochs(steps)
    console.fact(
        "training",
        f"{plural(steps, 'step')} of {train.batch_size} × {train.sequence_length} tokens · {epochs:.2f} epochs · "
        f"{_optimizer(train)}",
    )
    console.fact("W&B", wandb)
    console.fact("directory", project.display_path(run.directory))


def missing_compiler(settings: Settings, requested: bool | None, console: Console) -> None:
    """Print what the machine lacks if the model could be compiled with it."""
    if settings.device == "cuda" and requested is None and (lacking := compiler.missing("cuda")):
        console.notice(f"the model is not compiled, which would make training faster; it needs {lacking}")


def describe_parent(parent: InitialWeights | Branch) -> str:
    """Return in a few words which checkpoint a run starts from, and what it takes of it."""
    taken = "weights and optimizer state" if isinstance(parent, Branch) else "weights only, as step 0"
    return f"{printable(parent.run)} at step {parent.step} · {taken}"


def _optimizer(train: TrainSpec) -> str:
    name = "AdamW" if train.optimizer == "adamw" else train.optimizer
    schedule = "" if train.schedule == "constant" and not train.warmup_steps else f", {train.schedule}"
    ends = f" to step {train.horizon:,}" if train.horizon else ""
    return f"{name} at {train.learning_rate:g}{schedule}{ends}"


def changed_environment(
    run: Run,
    history: History,
    facts: dict[str, Any],
    source: provenance.Source,
    code: Fingerprint,
    console: Console,
) -> None:
    """Print what has changed since the last attempt and can change the numbers, and whether the code is unknown."""
    if source.unknown:
        console.notice(f"the code of this attempt is not recorded: {source.unknown}")
    starts = history.starts
    if not starts or facts["from_step"] == run.record.start_step:
        return
    same_code = not _differing_code(run, starts[-1:], source)
    changed = [
        name
        for key, name in COMPARED.items()
        if starts[-1].get(key) != facts[key] and not (key in CODE_FACTS and same_code)
    ]
    effect = ""
    if last_arithmetic(run, history) != code.hash:
        effect = f"; different arithmetic{differing_files(run.record.fingerprint, code)}"
    elif not same_code:
        effect = "; the same arithmetic"
    if changed or effect:
        what = ", ".join(changed or ["the code"])
        console.notice(f"changed since the last attempt: {what}{effect}; bitwise equal results are not guaranteed")


def _differing_code(run: Run, starts: list[Start], now: provenance.Source) -> bool:
    """Return whether the code differs from that of any of these attempts; another commit of the same code does not."""
    facts = now.facts()
    others = {tuple(start.get(key) for key in CODE_FACTS): start for start in starts}
    for values, start in others.items():
        if values != tuple(facts[key] for key in CODE_FACTS):
            changes = provenance.compare_sources(provenance.recorded_source(run.directory, [start]), now)
            if changes is None or changes.files:
                return True
    return False


def closing(run: Run, outcome: Outcome, url: str | None, console: Console, *, with_next: bool = True) -> None:
    """Print the result of the attempt and, `with_next`, the next commands."""
    history = run.history()
    step = history.step
    console.print()
    if outcome == "interrupted":
        where = f"at step {step} and saved" if step > run.record.start_step else "before its first step"
        console.print(f"{run.id} was interrupted {where}", style="bold yellow")
        console.fact("resume", shell_command("resume", run.reference))
        return
    elapsed_s = history.last("elapsed_s")
    took = f" in {format_duration(elapsed_s)} of training" if elapsed_s is not None and math.isfinite(elapsed_s) else ""
    console.print(f"{run.id} is complete: {plural(step, 'step')}{took}", style="bold green")
    _print_results(run, history, console)
    for line in run.samples()[-1:]:
        console.fact("sample", printable(line["prompt"] + line["text"]).replace("\n", "\n" + " " * 13))
    if url:
        console.fact("W&B", url)
    if with_next:
        next_commands(run, history, console)


def row_line(row: Row) -> str:
    """Return a row of metrics as one line."""
    parts = [f"  step {row['step']:>6}"]
    if "train/loss" in row:
        parts.append(f"train loss {row['train/loss']:.4f}")
    if "val/loss" in row:
        parts.append(f"val loss {row['val/loss']:.4f} · {row['val/bpb']:.3f} bits/byte")
    if "perf/tokens_per_s" in row:
        parts.append(f"{row['perf/tokens_per_s']:,.0f} tokens/s")
    return " · ".join(parts)


def _print_results(run: Run, history: History, console: Console) -> None:
    train, val, bpb = (_format_loss(history.last(column)) for column in ("train/loss", "val/loss", "val/bpb"))
    se = history.last("val/loss_se")
    console.fact("train loss", f"{train} nats/token")
    console.fact("val loss", f"{val}{'' if se is None else f' ± {se:.4f}'} nats/token · {bpb} bits/byte")
    if se is not None:
        console.fact("", "± is how far it could differ on another part of the text; seeds vary in addition")
    newest = list_checkpoints(run.directory)[-1:]
    if best := _best(history, newest):
        console.fact("best", f"{best[0]:.4f} nats/token at step {best[1]}")
    console.fact("directory", project.display_path(run.directory))
    for checkpoint in newest:
        console.fact("checkpoint", f"checkpoints/{checkpoint.directory.name}")


def _best(history: History, newest: list[Checkpoint]) -> tuple[float, int] | None:
    """Return the lowest validation loss of the whole run and its step: on the grid, or at the end."""
    if history.damage:
        return None
    on_grid = [checkpoint.manifest.progress for checkpoint in newest]
    found = [(progress.best_val_loss, progress.best_step) for progress in on_grid]
    found.append((history.last("val/loss"), history.step))
    return min(((loss, step) for loss, step in found if loss is not None and step is not None), default=None)


def _format_loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def next_commands(run: Run, history: History, console: Console, extend: str | None = None) -> None:
    """Print what can be done next with a complete run; `extend` replaces the command that extends it."""
    console.print("next")
    train, step = run.record.spec.train, history.step
    if extend:
        console.fact("extend", extend)
    elif history.holds_weights_only:
        console.fact("extend", "not possible: `gptlab gc --optimizer` removed the run's optimizer state")
    elif train.horizon is None or step < train.horizon:
        further = min(2 * step, train.horizon or 2 * step)
        console.fact("extend", shell_command("resume", run.reference, "--steps", str(further)))
    else:
        console.fact(
            "extend",
            f"not possible: train.schedule {train.schedule} ends here; start a run with a larger train.horizon",
        )
    console.fact("sample", shell_command("sample", run.reference, "--prompt", run.record.spec.train.prompt))
    console.fact("dashboard", shell_command("dashboard", run.reference))
    root = project.find_root()
    if root and (root / "Makefile").is_file():
        make = ["make"] if root == Path.cwd() else ["make", "-C", str(root)]
        console.fact("report", shlex.join([*make, "report"]))
        console.fact("compare", shlex.join([*make, "notebook"]))
