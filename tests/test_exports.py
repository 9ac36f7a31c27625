"""What `import gptlab` offers to notebooks."""

import subprocess
import sys

import pytest

import gptlab


def test_every_exported_name_can_be_imported():
    assert set(gptlab.__all__) >= {"Experiment", "ModelSpec", "load", "metrics", "runs", "samples"}
    for name in gptlab.__all__:
        assert callable(getattr(gptlab, name))


def test_import_is_light_and_an_unknown_name_is_an_error():
    script = "import sys, gptlab; sys.exit(bool({'torch', 'pandas', 'pydantic', 'analysis'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'rnus'"):
        gptlab.rnus  # noqa: B018


def test_a_folder_named_gptlab_such_as_the_clone_does_not_hide_the_package(tmp_path):
    (tmp_path / "gptlab" / "gptlab").mkdir(parents=True)
    script = "import gptlab; print(gptlab.load.__module__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("gptlab\n", "")


def test_runs_and_metrics_are_tables(long_run, monkeypatch):
    monkeypatch.setenv("GPTLAB_RUNS", str(long_run.directory.parent))
    runs = gptlab.runs(name="micro")
    assert runs["run"].tolist() == [long_run.id]
    assert gptlab.metrics(runs)["step"].tolist() == list(range(0, 41, 5))


def test_a_missing_extra_is_a_one_line_error():
    script = "import sys; sys.modules['pyarrow'] = None; import gptlab; gptlab.runs"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ImportError: gptlab.runs needs pyarrow: pip install 'gptlab[analysis]'"
