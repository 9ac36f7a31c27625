"""Everything that is installed is pinned, and `make audit` looks up every pin."""

import http.server
import importlib.metadata
import json
import shlex
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PINS = {
    canonicalize_name(name): version
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for name, _, version in [line.partition("==")]
}
WITH_PYTHON = {"gptlab", "pip", "setuptools", "wheel"}
CUDA = ("cuda-", "nvidia-")
"""Beginnings of the names of CUDA's libraries. torch's CUDA build needs exact versions of them."""


def test_every_installed_package_has_the_version_of_its_pin():
    installed = {
        canonicalize_name(package.name): Version(package.version).public
        for package in importlib.metadata.distributions(path=[p for p in sys.path if p.startswith(sys.prefix)])
        if not package.name.startswith(CUDA)
    }
    assert {name: PINS.get(name) for name in installed.keys() - WITH_PYTHON} == {
        name: version for name, version in installed.items() if name not in WITH_PYTHON
    }


@pytest.fixture
def vulnerabilities():
    """A server that speaks OSV's protocol and knows of one vulnerability; gives its URL and who was asked for."""
    asked = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, version = query["package"]["name"], query["version"]
            asked[canonicalize_name(name)] = version
            affected = {"package": {"name": name, "ecosystem": "PyPI"}, "versions": [version]}
            known = [{"id": "OSV-1", "summary": "It is old.", "affected": [affected]}] if name == "torch" else []
            body = json.dumps({"vulns": known}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_audit_asks_for_every_pin_and_ends_with_an_error_where_one_is_vulnerable(vulnerabilities):
    url, asked = vulnerabilities
    dry = ["make", "--no-print-directory", "-n", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}", "audit"]
    command = shlex.split(subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    service = ["--vulnerability-service", "osv", "--osv-url", url]
    done = subprocess.run([*command, *service], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].split()[:3] == ["torch", PINS["torch"], "OSV-1"]
    assert asked == PINS


def test_every_package_is_installed():
    """An installation from a wheel has only what the list names; an editable one has everything."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "gptlab").rglob("__init__.py")}
    assert set(listed) == {*found, "analysis"}
