"""`gptlab verify`: a replay gives the verdict that the numbers deserve, and the result is stored and displayed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mutants
import pytest
import torch
import xxhash
from edits import Edit
from support import change_manifest, run_attempt, typed

from gptlab.checkpoints.manifest import list_checkpoints
from gptlab.digests import with_digest
from gptlab.spec import Experiment
from gptlab.terminal.console import Console
from gptlab.tracking.metrics import DETERMINISTIC, METRICS
from gptlab.tracking.run import Run, load_run
from gptlab.verification import conditions, verify
from gptlab.verification.replay import Replayed
from gptlab.verification.result import Verification
from gptlab.verification.rows import compare_rows
from gptlab.verification.stretch import choose_stretch
from gptlab.verification.verify import verify_run


def verified(run: Run, first: int | None = None, last: int | None = None) -> Verification:
    return verify_run(load_run(run.directory), first=first, last=last, console=Console(stderr=True))


def forge_metrics(run: Run, content: bytes) -> None:
    """Replace the metrics, and every checksum of them, as somebody would who wants other numbers."""
    (run.directory / METRICS).write_bytes(content)
    attempts = run.directory / "attempts.jsonl"
    rows = [json.loads(line) for line in attempts.read_text().splitlines()]
    for row in rows:
        row.pop("digest")
        if row["event"] == "end":
            row |= {"metrics_bytes": len(content), "metrics_xxh3": xxhash.xxh3_128(content).hexdigest()}
    attempts.write_text("".join(json.dumps(with_digest(row)) + "\n" for row in rows))
    for checkpoint in list_checkpoints(run.directory):
        lines = [line for line in content.splitlines(keepends=True) if json.loads(line)["step"] <= checkpoint.step]
        counted = b"".join(lines)
        progress = {"metrics_bytes": len(counted), "metrics_xxh3": xxhash.xxh3_128(counted).hexdigest()}
        path = checkpoint.directory / "manifest.json"
        change_manifest(path, lambda manifest, progress=progress: manifest["progress"].update(progress))


def changed(content: bytes, step: int, column: str, change: Callable[[Any], Any]) -> bytes:
    rows = [json.loads(line) for line in content.splitlines()]
    for row in rows:
        if row["step"] == step:
            row[column] = change(row[column])
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def last_digit(value: Any) -> Any:
    """The same with another last digit."""
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    return (
        value + 1
        if isinstance(value, int)
        else float(torch.tensor(value, dtype=torch.float64).nextafter(torch.tensor(9e9, dtype=torch.float64)))
    )


def test_a_run_is_bitwise_and_the_result_is_stored_and_displayed(
    copied: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    gptlab = typed(monkeypatch, capfd)
    document = json.loads(gptlab("verify", copied.id, "--json"))
    assert (document["verdict"], document["first"], document["last"]) == ("bitwise", 0, 40)
    assert (document["rows"], document["checkpoints"], document["environment"]) == (9, [30, 40], {})
    assert "verified bitwise 0–40" in gptlab("show", copied.id)
    assert "bitwise 0–40" in gptlab("runs")
    (facts,) = json.loads(gptlab("runs", "--json"))
    assert {key: facts["verified"][key] for key in ("verdict", "first", "last")} == {
        "verdict": "bitwise", "first": 0, "last": 40,
    }  # fmt: skip
    gptlab("verify", copied.id, "--from", "30")
    assert "bitwise 0–40" in gptlab("runs"), "a shorter stretch says less"
    change_manifest(copied.directory / "checkpoints/step-00000040/manifest.json", _another_checksum)
    assert "bitwise" not in gptlab("runs"), "what was compared has changed since"
    error = gptlab("verify", copied.id, "--json", code=1)
    assert "damaged" in error
    assert "damaged" in gptlab("show", copied.id)


def _another_checksum(manifest: dict[str, Any]) -> None:
    manifest["files"]["model.safetensors"]["xxh3_128"] = "0" * 32


def test_a_forged_digit_is_found_in_every_reproducible_column(copied: Run, monkeypatch: pytest.MonkeyPatch):
    replays: list[Replayed] = []
    replay = verify.replay

    def kept_replay(*arguments: Any, **options: Any) -> Replayed:
        replayed = replay(*arguments, **options)
        content = (replayed.directory / METRICS).read_bytes()
        kept = copied.directory.parent / f"kept-{len(replays)}"
        kept.mkdir()
        (kept / METRICS).write_bytes(content)
        replays.append(replace(replayed, directory=kept))
        return replayed

    monkeypatch.setattr(verify, "replay", kept_replay)
    intact = (copied.directory / METRICS).read_bytes()
    forge_metrics(copied, changed(intact, 20, "train/loss", last_digit))
    found = verified(copied)
    assert (found.verdict, found.damage, len(replays)) == ("differs", (), 1), "the same code, threads and build"
    assert found.first_value
    assert (found.first_value.step, found.first_value.column) == (20, "train/loss")
    stretch = choose_stretch(copied, copied.history(), None, None)
    for column in DETERMINISTIC:
        (copied.directory / METRICS).write_bytes(changed(intact, 20, column, last_digit))
        rows = compare_rows(stretch, copied.directory, replays[0].directory)
        assert rows.first
        assert column == "step" or (rows.first.step, rows.first.column) == (20, column)


def test_a_second_row_of_a_step_is_found(copied: Run, long_run: Run):
    """A reader of the metrics may take either of them."""
    stretch = choose_stretch(copied, copied.history(), None, None)
    *lines, last = (long_run.directory / METRICS).read_text().splitlines()
    forged = json.dumps(json.loads(lines[2]) | {"train/loss": 0.5})
    end = json.dumps({"step": 40, "val/loss": json.loads(last)["val/loss"]})  # as a resumed run ends
    cases = [(forged, "step"), (lines[2], "step"), ('{"step": 10}', "step")]
    for extra, column in [*cases, (end, None), ('{"step": 40, "val/loss": 0.5}', "val/loss")]:
        at = 2 if '"step": 10' in extra else len(lines)
        (copied.directory / METRICS).write_text("\n".join([*lines[:at], extra, *lines[at:], last, ""]))
        found = compare_rows(stretch, copied.directory, long_run.directory).first
        assert (found and found.column) == column


def test_a_forged_checkpoint_is_found(copied: Run):
    path = copied.directory / "checkpoints/step-00000030/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    checksum = xxhash.xxh3_128(bytes(content)).hexdigest()
    change_manifest(
        path.with_name("manifest.json"), lambda m: m["files"]["model.safetensors"].update(xxh3_128=checksum)
    )
    found = verified(copied)
    assert (found.verdict, found.first_value) == ("differs", None)
    assert found.first_tensor
    assert (found.first_tensor.step, found.first_tensor.file) == (30, "model.safetensors")


EDITS = {
    "learning rate": Edit("training/schedule.py", 'group["initial_lr"], rate,', 'group["initial_lr"], rate * 1.001,'),
    "sign": Edit("model/gpt.py", "x = x + self.dropout(self.feed_forward(", "x = x - self.dropout(self.feed_forward("),
    "beta": Edit("training/optimizer.py", "betas=spec.betas, eps", "betas=(0.901, spec.betas[1]), eps"),
    "seed": Edit("randomness.py", "key=np.array([seed, purpose]", "key=np.array([seed + 1, purpose]"),
}


@pytest.mark.parametrize("name", EDITS)
def test_code_that_computes_something_else_differs(copied: Run, name: str):
    edit = EDITS[name]

    def verify_anew() -> dict[str, Any]:
        from gptlab.terminal.console import Console
        from gptlab.tracking.run import load_run
        from gptlab.verification.verify import verify_run

        return verify_run(load_run(copied.directory), last=10, console=Console(stderr=True)).document()

    found = mutants.with_edited_code(edit.apply(), verify_anew)
    assert found["verdict"] == "differs"
    assert edit.file in found["code"][0]
    assert found["first_value"]["difference"] > found["first_value"]["bound"] > 0 or name == "seed"


def test_another_number_of_threads_is_within_rounding(micro: Experiment, monkeypatch: pytest.MonkeyPatch):
    wide = micro.with_changes(
        {
            "model.n_embd": 128,
            "train.batch_size": 8,
            "train.steps": 2,
            "data.val_windows": 1,
            "data.tokenizer": "bytes",
            "model.vocab_size": 256,
        }
    )
    run = run_attempt(wide).run
    monkeypatch.setattr(conditions, "max_threads", lambda: 0)  # as on a machine that has not as many
    torch.set_num_threads(2)
    try:
        found = verified(run)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found.verdict == "within rounding"
    assert found.environment["threads"] == (1, 2)
    assert found.largest_tensor
    assert 0 < found.largest_tensor.difference < found.largest_tensor.bound
    monkeypatch.undo()
