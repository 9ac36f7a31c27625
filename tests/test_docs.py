"""What the documents name exists."""

import re
from pathlib import Path

import pytest

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
    "document", ["README.md", "docs/performance.md", "docs/reliability.md", "docs/wandb.md", "experiments/README.md"]
)
def test_every_relative_link_leads_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target
