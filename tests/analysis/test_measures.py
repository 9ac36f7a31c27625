"""Runs of different tokenizers are compared by bits per byte, and never by their loss per token."""

from collections.abc import Callable

import pytest

from analysis import caveats, compare, load, markdown, page_data, replicates, report
from analysis.findings import analyze, cost_table, experiment_table
from analysis.measures import BITS, LOSS, comparable, measure_of
from gptlab.project import runs_directory
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]

BYTES = {"data.tokenizer": "bytes", "model.vocab_size": 256}


def two_tokenizers(make_run: MakeRun, **options: object) -> None:
    """GPT-2's has the lower bits per byte, bytes the lower loss per token. (Made runs have half a bit per nat.)"""
    for seed in range(3):
        shift = seed / 100
        make_run("words", seed, val_losses=(11.0, 8.0 + shift, 6.0 + shift), yardstick="aaaaaaaa")
        make_run(
            "letters",
            seed,
            changes=BYTES,
            val_losses=(5.0, 3.0 + shift, 2.0 + shift),
            bits_per_nat=2.0,
            yardstick="bbbbbbbb",
            tokenizer_sha256="ef" * 32,
            **options,
        )


def written() -> list[str]:
    return [(runs_directory() / f"report.{kind}").read_text() for kind in ("md", "html")]


def test_the_measure_is_the_loss_unless_tokenizers_differ(make_run: MakeRun) -> None:
    assert measure_of(load.runs()) is LOSS
    make_run("one")
    make_run("two", changes={"model.tied": True})
    assert measure_of(load.runs()) is LOSS
    make_run("three", changes=BYTES, tokenizer_sha256="ef" * 32)
    assert measure_of(load.runs()) is BITS
    assert measure_of(load.runs(name="t*")) is BITS
    assert measure_of(load.runs(name="three")) is LOSS


def test_the_headline_ranks_different_tokenizers_by_bits_per_byte(make_run: MakeRun) -> None:
    two_tokenizers(make_run)
    assert report.main([]) == 0
    for text in written():
        assert "Lowest bits per byte: words, 3.0050 bits per byte after 20 steps (mean of 3 seeds" in text
        assert "Lowest validation loss" not in text
        assert "These runs have 2 different tokenizers: gpt2 (3), bytes (3)." in text
        assert "Losses per token do not compare across tokenizers" in text
        assert "`gptlab eval` measures" in text or "gptlab eval" in text
    markdown_, html = written()
    assert "bits/byte at 20 steps" in markdown_
    assert "val loss at 20 steps" not in markdown_
    assert '"measure": "validation loss, bits per byte"' in html or "validation loss, bits per byte" in html


def test_tables_differences_and_curves_are_of_bits_per_byte(make_run: MakeRun) -> None:
    two_tokenizers(make_run)
    runs = load.runs()
    findings = analyze(runs, load.metrics(runs), load.samples(runs))
    assert findings.runs["name"].tolist() == ["words"] * 3 + ["letters"] * 3, "best first"
    table = experiment_table(findings).set_index("experiment")
    assert table["bits/byte at 20 steps"].to_dict() == {"words": "3.0050", "letters": "4.0200"}
    reason = table.loc["letters" if findings.reference.startswith("words") else "words", "comparison"]
    assert "unpaired; different batches (tokenizer.sha256" in reason
    assert "different windows of the validation text, which p does not include" in reason
    costs = cost_table(findings)
    assert not any("loss" in column for column in costs)
    curves, _ = page_data.run_curves(findings)
    assert {curve["run"].partition("-")[0]: curve["val"][-1] for curve in curves[2::3]} == {
        "words": 3.01,
        "letters": 4.04,
    }
    assert markdown.loss_table(findings, findings.measure.column)["step 20"].tolist()[0] == "3.0000"
    assert {"data.tokenizer", "tokenizer.sha256"} <= set(compare.differing_columns(runs))


def test_losses_per_token_of_different_tokenizers_are_not_compared_on_request(make_run: MakeRun) -> None:
    two_tokenizers(make_run)
    runs = load.runs()
    values = replicates.at_equal(runs, load.metrics(runs), column="val/loss")
    (row,) = replicates.differences(runs, values, values["experiment"].iloc[0]).to_dict("records")
    assert row["how"] == "not compared"
    with pytest.raises(ValueError, match="same windows"):
        replicates.window_difference(load.windows(runs), *runs["run"].tolist()[:2])


def test_bits_per_byte_of_different_texts_are_not_compared(make_run: MakeRun) -> None:
    two_tokenizers(make_run, sha256="12" * 32, source="other")
    report.main([])
    for text in written():
        assert "No lowest bits per byte: the experiments were validated on different texts." in text


def test_a_tokenizer_is_a_caveat_only_where_another_is_there(make_run: MakeRun) -> None:
    make_run("letters", changes=BYTES, tokenizer_sha256="ef" * 32)
    assert not any("tokenizer" in caveat for caveat in caveats.find_caveats(load.runs()))


def test_different_windows_of_one_tokenizer_are_not_compared_because_another_tokenizer_is_there(
    make_run: MakeRun,
) -> None:
    two_tokenizers(make_run)
    make_run("words", 3, val_losses=(11.0, 8.0, 6.0), yardstick="cccccccc")
    runs = load.runs()
    assert set(comparable(runs["val/yardstick"], runs, "val/bpb")) == {"aaaaaaaa", "bbbbbbbb", "cccccccc"}
