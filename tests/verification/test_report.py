"""The report says which runs were verified."""

import pytest

from analysis import load, report
from gptlab import project
from gptlab.commands.verify import store
from gptlab.tracking.run import Run
from gptlab.tracking.verifications import current_verification, describe_verification
from gptlab.verification.result import Verdict, Verification


def test_the_tables_and_the_report_show_what_was_verified(copied: Run, capsys: pytest.CaptureFixture[str]):
    assert load.runs()["verified"].isna().all()
    assert report.main([]) == 0
    assert "bitwise" not in (project.runs_directory() / "report.md").read_text()
    store(copied, Verification(copied.id, "bitwise", 0, 40))
    assert load.runs()["verified"].tolist() == ["bitwise 0–40"]
    assert report.main([]) == 0
    for name in ("report.md", "report.html"):
        assert "bitwise 0–40" in (project.runs_directory() / name).read_text()


def test_a_failure_stands_until_its_steps_are_verified_again(copied: Run):
    def shown(verdict: Verdict, first: int, last: int) -> str:
        store(copied, Verification(copied.id, verdict, first, last))
        row = current_verification(copied.directory)
        assert row
        return describe_verification(row)

    assert shown("bitwise", 0, 20) == "bitwise 0–20"
    assert shown("within rounding", 0, 40) == "within rounding 0–40"
    assert shown("differs", 10, 20) == "differs 10–20"
    assert shown("bitwise", 0, 15) == "differs 10–20"
    assert shown("bitwise", 0, 20) == "within rounding 0–40"
    assert shown("damaged", 0, 40) == "damaged"
    assert shown("bitwise", 0, 5) == "within rounding 0–40", "no file is damaged any more"
