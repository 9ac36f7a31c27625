"""Tables show every cell in full: folded on a terminal, at their full width in a pipe."""

import io

from rich.console import Console as RichConsole

from gptlab.terminal.console import Console
from gptlab.terminal.tables import borderless

LONG = "/a/very/long/path" * 20


def table():
    table = borderless("field", "value", right=("value",), title="Title")
    table.add_row("data.text", LONG)
    return table


def test_a_long_cell_is_on_one_line_in_a_pipe(capfd):
    Console().table(table())
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].rstrip() == "Title"
    assert lines[2].split() == ["data.text", LONG]


def test_a_long_cell_is_folded_on_a_terminal():
    output = io.StringIO()
    console = Console()
    console.rich = RichConsole(file=output, force_terminal=True, width=80, highlight=False, color_system=None)
    console.table(table())
    lines = output.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "".join(line.removeprefix("data.text").strip() for line in lines[2:]) == LONG
