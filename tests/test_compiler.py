"""What a machine lacks to compile kernels is known before training, and kernels are kept in the cache."""

import os
import shutil
import sysconfig

import pytest

from gptlab import compiler


@pytest.fixture(autouse=True)
def anew():
    compiler.missing.cache_clear()
    yield
    compiler.missing.cache_clear()


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """A machine that has everything."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(compiler, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_complete_machine_lacks_nothing(complete, device):
    assert compiler.missing(device) is None


def test_triton_is_needed_on_cuda_only(complete, monkeypatch):
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    assert compiler.missing("cuda") == "the package triton (pip install triton)"
    assert compiler.missing("cpu") is None


@pytest.mark.parametrize(("device", "variable", "name"), [("cuda", "CC", "gcc"), ("cpu", "CXX", "g++")])
def test_a_missing_compiler_is_named_with_its_variable(complete, monkeypatch, device, variable, name):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compiler.missing(device) == f"a compiler (install {name}, or set {variable})"


def test_the_compiler_that_the_user_chose_is_the_one_that_counts(complete, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "gcc" else None)
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert "set CC" in compiler.missing("cuda")
    compiler.missing.cache_clear()
    monkeypatch.setenv("CC", "gcc -O2")
    assert compiler.missing("cuda") is None


def test_missing_headers_of_python_are_named(complete):
    (complete / "Python.h").unlink()
    assert compiler.missing("cuda") == "Python's header files (install python3-dev)"


def test_kernels_are_kept_in_the_cache_unless_the_user_chose_a_place(cache, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    compiler.keep_kernels()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "kernels" / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
