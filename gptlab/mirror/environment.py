"""What W&B's programs see of the user's environment and settings files.

W&B reads about 200 variables named `WANDB_…` and as many entries of its settings files. Some of them choose the server
and the account. Others change the run that receives the rows (`wandb agent` sets `WANDB_RUN_ID` and `WANDB_SWEEP_ID`),
where files are written, or what is uploaded. So only those listed here are used, and new ones of later versions are
not. docs/wandb.md lists all.
"""

import os

USED_SETTINGS = frozenset({
    "api_key",
    "app_url_override",
    "base_url",
    "email",
    "entity",
    "host",
    "http_proxy",
    "https_proxy",
    "insecure_disable_ssl",
    "project",
    "username",
    "x_extra_http_headers",
})  # fmt: skip
"""Fields of `wandb.Settings` that keep the user's values. All others have W&B's defaults, or values of gptlab."""

USED_VARIABLES = frozenset({
    "WANDB_API_KEY",
    "WANDB_APP_URL",
    "WANDB_BASE_URL",
    "WANDB_CONFIG_DIR",
    "WANDB_ENTITY",
    "WANDB_HOST",
    "WANDB_HTTP_PROXY",
    "WANDB_HTTPS_PROXY",
    "WANDB_INSECURE_DISABLE_SSL",
    "WANDB_MODE",
    "WANDB_PROJECT",
    "WANDB_USERNAME",
    "WANDB_USER_EMAIL",
    "WANDB_X_EXTRA_HTTP_HEADERS",
})  # fmt: skip
"""Variables that W&B's programs inherit."""

OWN_VARIABLES = {
    "PYTHONSAFEPATH": "1",  # a `random.py` in the working directory is not the module `random`
    "WANDB_ERROR_REPORTING": "false",  # sends nothing about errors to W&B
}


def wandb_environment() -> dict[str, str]:
    """Return the environment for a program of W&B: this process's, without the variables that are not used."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in USED_VARIABLES or not name.startswith(("WANDB_", "_WANDB_"))
    }
    return inherited | OWN_VARIABLES
