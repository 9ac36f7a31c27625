"""Open a file in the user's browser, where there is a desktop."""

import os
import sys
import webbrowser
from pathlib import Path

from gptlab.failures import print_line

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
"""Variables of which one is set on a Linux desktop. Without one, a browser in the terminal would take its place."""


def open_in_browser(path: Path) -> bool:
    """Open a file and return whether there was a desktop to open it on."""
    if sys.platform != "darwin" and not any(os.environ.get(name) for name in DISPLAYS):
        return False
    try:
        return webbrowser.open(path.absolute().as_uri())
    except (webbrowser.Error, OSError):
        return False


def open_or_explain(path: Path) -> None:
    """Open a page, or say that there is no desktop to open it on."""
    if not open_in_browser(path):
        print_line("note: there is no desktop to open the page on; copy it to one, or forward it to a browser")
