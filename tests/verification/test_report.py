"""The report says which runs were verified."""

import pytest

from analysis import load, report
from gptlab import project
from gptlab.commands.verify import store
from gptlab.tracking.run import Run
from gptlab.verification.result import Verification


def test_the_tables_and_the_report_show_what_was_verified(copied: Run, capsys: pytest.CaptureFixture[str]):
    assert load.runs()["verified"].isna().all()
    assert report.main([]) == 0
    assert "bitwise" not in (project.runs_directory() / "report.md").read_text()
    store(copied, Verification(copied.id, "bitwise", 0, 40))
    assert load.runs()["verified"].tolist() == ["bitwise 0–40"]
    assert report.main([]) == 0
    for name in ("report.md", "report.html"):
        assert "bitwise 0–40" in (project.runs_directory() / name).read_text()
