import io

import pytest
from rich.console import Console as RichConsole

from gptlab.commands.run_messages import row_line
from gptlab.terminal.console import Console
from gptlab.terminal.progress import StepProgress
from gptlab.terminal.text import format_duration, printable, shell_command

ROW = {"step": 10, "train/loss": 5.25, "val/loss": 5.5, "val/bpb": 2.5, "perf/tokens_per_s": 1234.5}


@pytest.fixture
def terminal() -> tuple[Console, io.StringIO]:
    """A console on a terminal of 100 columns, and its output."""
    shown = io.StringIO()
    console = Console()
    console.rich = RichConsole(file=shown, force_terminal=True, width=100, highlight=False, markup=False)
    return console, shown


def test_on_a_terminal_a_bar_shows_step_loss_speed_and_eta(terminal):
    console, shown = terminal
    with StepProgress(console, 0, 40, 512) as display:
        for step in range(1, 11):
            display.update(step, 6.5 - step / 10)
        display._bar.refresh()
    output = shown.getvalue()
    for part in ("step", "10/40", "loss 5.5000", "tokens/s", "ETA", "━"):
        assert part in output


def test_without_a_terminal_rows_are_plain_lines(capfd):
    with StepProgress(Console(), 0, 40, 512) as display:
        display.update(10, 5.5)
    assert capfd.readouterr() == ("", "")
    assert row_line(ROW) == "  step     10 · train loss 5.2500 · val loss 5.5000 · 2.500 bits/byte · 1,234 tokens/s"


def test_console_output_is_also_in_the_log(tmp_path, capfd):
    console = Console()
    console.log_to(tmp_path / "log.txt")
    console.print("[bold]not markup[/]", style="bold")
    console.fact("label", "value")
    assert capfd.readouterr().out == (tmp_path / "log.txt").read_text() == "[bold]not markup[/]\n  label       value\n"


def test_terminal_control_characters_are_replaced(tmp_path, capfd):
    console = Console()
    console.log_to(tmp_path / "log.txt")
    console.print("a\x1b[31mb\x07c\rd\x9be\u202ef\ng")
    for text in (capfd.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert text == "a�[31mb�c�d�e�f\ng\n"
    assert printable("größer 東京 🙂") == "größer 東京 🙂"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (372, "6 min 12 s"), (7325, "2 h 2 min"), (59, "59 s")],
)
def test_durations_are_formatted_with_units(seconds, words):
    assert format_duration(seconds) == words


def test_commands_are_displayed_so_that_they_can_be_copied(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gptlab")
    assert shell_command("resume", "x") == "gptlab resume x"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / ".venv/bin/gptlab")])
    assert shell_command("resume", "x") == ".venv/bin/gptlab resume x"
