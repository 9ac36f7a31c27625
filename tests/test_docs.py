"""What the documents name exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import scale
import typer

from gptlab import cli

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("document", "least"), [("reliability.md", 40), ("wandb.md", 12)])
def test_every_test_that_a_table_names_exists(document, least):
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    text = (ROOT / "docs" / document).read_text()
    named = 0
    for line in text.splitlines():
        file = ""
        for reference in re.findall(r"`(test_\w+\.py(?:::\w+)?|::\w+)`", line):
            name, _, test = reference.partition("::")
            file = name or file
            assert file in files, line
            if test:
                assert f"def {test}(" in files[file], reference
                named += 1
    assert named > least


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/bundles.md",
        "docs/decisions.md",
        "docs/identity.md",
        "docs/parts.md",
        "docs/performance.md",
        "docs/reliability.md",
        "docs/scale.md",
        "docs/style.md",
        "docs/sweeps.md",
        "docs/verify.md",
        "docs/wandb.md",
        "experiments/README.md",
    ],
)
def test_every_relative_link_leads_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_the_readme_lists_every_command():
    commands = typer.main.get_command(cli.app).commands
    listed = re.findall(r"^\| `gptlab (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == set(commands)


def test_the_tables_of_the_scale_document_are_current():
    text = scale.DOCUMENT.read_text()
    assert scale.render(text) == text, "write them again: python tests/scale.py"
    assert f"one per {1 / scale.FAILURES_PER_GPU_HOUR:,.0f} GPU hours" in text
    large = scale.Case(scale.MODELS[0], 1, shard=False).needs(32)
    assert f"the prediction is {large.total / 2**30:.1f} GiB" in text


def test_the_names_in_the_reading_path_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    path = text[text.index("To follow a spec") : text.index("`TrainingStep` is one")]
    sources = {file: (ROOT / "gptlab" / file).read_text() for file in re.findall(r"`(\w+/\w+\.py)`", path)}
    names = re.findall(r"`(?:\w+\.)?(\w+)`", path)
    assert len(sources) > 6
    assert len(names) > 6
    for name in names:
        assert any(f"def {name}(" in source for source in [*sources.values(), (ROOT / "gptlab/cli.py").read_text()])


@pytest.mark.slow
def test_the_example_in_the_contributing_guide_runs(monkeypatch, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\n3 " in done.stdout
