"""Which of the user's variables and settings W&B sees: those that docs/wandb.md lists as used, and no others."""

import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import run_attempt
from wandb_server import KEY

import gptlab
from gptlab.errors import GptlabError
from gptlab.mirror import wandb_run
from gptlab.mirror.environment import OWN_VARIABLES, USED_SETTINGS, USED_VARIABLES, wandb_environment

ROOT = Path(gptlab.__file__).parent.parent


def table():
    """The rows of the table in docs/wandb.md: patterns of variables and settings, and the first word of the effect."""
    document = (ROOT / "docs" / "wandb.md").read_text()
    rows = re.findall(r"^\|(.*)\|(.*)\| (used|replaced|ignored): ", document, re.MULTILINE)
    return [(*(re.findall("`(.*?)`", cell) for cell in cells), effect) for *cells, effect in rows]


def effect_of(name, column):
    """The effect of a variable (column 0) or setting (column 1); the exact name comes before patterns."""
    exact = [row[2] for row in table() if name in row[column]]
    by_pattern = [row[2] for row in table() if any(fnmatchcase(name, pattern) for pattern in row[column])]
    return next(iter(exact + by_pattern), None)


@pytest.fixture(scope="module")
def known_settings():
    """The settings of the installed wandb."""
    import wandb

    return sorted(wandb.Settings.model_fields)


@pytest.fixture(scope="module")
def known_variables(known_settings):
    """The variables that the installed wandb reads: one or two for each setting, and those in its source code."""
    import wandb

    named = {f"WANDB_{name.upper()}" for name in known_settings}
    internal = {f"WANDB__{name[2:].upper()}" for name in known_settings if name.startswith("x_")}
    sources = "\n".join(path.read_text(errors="replace") for path in Path(wandb.__file__).parent.rglob("*.py"))
    return sorted(named | internal | set(re.findall(r"""["'](_?WANDB_[A-Z0-9_]+)["']""", sources)))


@pytest.mark.slow
def test_the_table_lists_every_variable_and_setting_of_the_installed_wandb(known_variables, known_settings):
    assert len(known_variables) > 200
    assert not [name for name in known_variables if effect_of(name, 0) is None]
    assert not [name for name in known_settings if effect_of(name, 1) is None]
    assert {name for name in known_variables if effect_of(name, 0) == "used"} == USED_VARIABLES
    assert {name for name in known_settings if effect_of(name, 1) == "used"} == USED_SETTINGS | {"mode"}
    assert not [pattern for row in table() if row[2] == "used" for pattern in row[0] + row[1] if "*" in pattern]


@pytest.mark.slow
def test_a_program_of_wandb_gets_the_used_variables_and_no_other(known_variables, monkeypatch):
    for name in [*known_variables, "WANDB_OF_A_LATER_VERSION", "_WANDB_LATER", "ANOTHER", "HTTPS_PROXY"]:
        monkeypatch.setenv(name, "set")
    given = wandb_environment()
    seen = {name for name in given if "WANDB" in name}
    assert seen == USED_VARIABLES | {"WANDB_ERROR_REPORTING"}
    assert {given[name] for name in USED_VARIABLES} == {"set"}
    assert {name: given[name] for name in OWN_VARIABLES} == OWN_VARIABLES
    assert given["ANOTHER"] == given["HTTPS_PROXY"] == "set"


SETTINGS_OF_A_USER = """
import json, sys
sys.path.append(sys.argv[1])
import wandb
from gptlab.mirror import wandb_run

VALUES = ("http://127.0.0.1:9", "7", "true", "false", '{"a": "b"}', "offline", "allow", "redirect", "x", "run?_step=1")
defaults = wandb.Settings()

def valid(name):
    settings = wandb.Settings()
    for value in VALUES:
        try:
            setattr(settings, name, value)
        except Exception:
            continue
        if getattr(settings, name) != getattr(defaults, name):
            return value

entries = {name: value for name in wandb.Settings.model_fields if (value := valid(name)) is not None}
entries.pop("mode")  # it has a test of its own
entries |= {"base_url": "http://wandb.invalid", "api_key": sys.argv[3]}
with open(sys.argv[2], "w") as file:
    entries["invalid"] = "surprise"  # for which W&B alone would ignore the whole file
    file.write("[default]\\n" + "".join(f"{name} = {value}\\n" for name, value in entries.items()))
settings = wandb_run.wandb_settings()
server = wandb_run.configured_server()
changed = [name for name in wandb.Settings.model_fields if getattr(settings, name) != getattr(defaults, name)]
print(json.dumps({"tried": list(entries), "changed": changed, "url": server.url, "key": server.key,
    "proxies": server.proxies, "headers": server.headers, "verify": server.verify_certificate,
    "values": {name: getattr(settings, name) for name in ("entity", "username", "email", "host", "app_url_override")}}))
"""


@pytest.mark.slow
def test_used_settings_have_the_users_value_and_all_others_do_not(tmp_path):
    """Every setting is in the settings file of the project, with a valid value other than the default."""
    (tmp_path / "wandb").mkdir()
    file = tmp_path / "wandb" / "settings"
    command = [sys.executable, "-c", SETTINGS_OF_A_USER, str(ROOT), str(file), KEY]
    environment = wandb_environment() | {"WANDB_MODE": "surprise", "TRAINING_JOB_NAME": "a", "SM_TRAINING_ENV": "{}"}
    environment |= {"WANDB_ENTITY": "team", "WANDB_USERNAME": "me", "WANDB_USER_EMAIL": "me@x", "WANDB_HOST": "machine"}
    environment |= {"WANDB_APP_URL": "http://app.invalid"}  # a variable comes before an entry
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["tried"]) > 120
    assert {"run_id", "sweep_id", "resume", "fork_from", "run_group", "x_skip_transaction_log"} <= set(found["tried"])
    assert set(found["changed"]) == USED_SETTINGS
    assert (found["url"], found["key"], found["verify"]) == ("http://wandb.invalid", KEY, False)
    assert found["proxies"] == {"http": "http://127.0.0.1:9", "https": "http://127.0.0.1:9"}
    assert found["headers"] == {"a": "b"}
    assert list(found["values"].values()) == ["team", "me", "me@x", "machine", "http://app.invalid"]


@pytest.mark.parametrize(("value", "mode"), [("disabled", "off"), ("offline", "offline"), ("dryrun", "offline")])
def test_the_mode_of_a_settings_file_is_respected(monkeypatch, value, mode):
    monkeypatch.setattr(wandb_run, "wandb_settings", lambda: SimpleNamespace(mode=value))
    assert wandb_run.choose_mode(None) == (mode, "set by W&B's settings file")


def test_another_run_than_the_records_is_refused(micro, monkeypatch):
    run = run_attempt(micro, steps=10).run
    opened = SimpleNamespace(id="another", starting_step=0)
    fake = SimpleNamespace(Settings=type("Settings", (), {"model_fields": {}}), init=lambda **given: opened)
    monkeypatch.setattr(wandb_run, "import_wandb", lambda: fake)
    monkeypatch.setattr(wandb_run, "wandb_settings", lambda: SimpleNamespace(project=None))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "restored after the test")
    with pytest.raises(GptlabError, match=f"opened the run another instead of {run.record.wandb_id}; nothing was sent"):
        wandb_run.WandbRun(run, run.directory, "offline", 1.0, None)
