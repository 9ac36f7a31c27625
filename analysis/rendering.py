"""Jinja's environment for self-contained HTML pages, rendered from `templates/` and `assets/`.

What is inserted may be untrusted. The templates escape it and replace its control characters. Data for scripts is JSON
without `<`, `>` and `&`, and the Content-Security-Policy of `base.html.j2` forbids the network.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gptlab.terminal.text import printable


def render(template: str, *, styles: Sequence[str] = (), **context: Any) -> str:
    """Return a page with the report's style sheet, and with more of them."""
    css = "".join(map(asset, ("report.css", *styles)))
    return _TEMPLATES.get_template(template).render(css=css, **context)


def asset(name: str) -> str:
    """Return a file of `assets/`."""
    return files("analysis").joinpath("assets", name).read_text(encoding="utf-8")


def _printable(value: Any) -> Any:
    """Replace control characters, except in markup from a template."""
    return value if hasattr(value, "__html__") else printable(str(value))


_TEMPLATES = Environment(
    loader=PackageLoader("analysis"),
    autoescape=True,
    finalize=_printable,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
