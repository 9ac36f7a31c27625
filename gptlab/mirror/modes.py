"""The modes of the mirror, and what `WANDB_MODE` selects."""

import os
from typing import Literal

from gptlab.errors import BadInputError
from gptlab.validation import suggest

Mode = Literal["online", "offline", "off"]

WANDB_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}
"""The values of `WANDB_MODE` and the mode that each selects."""

AUTO, SYNC = "auto", "sync"
"""Further requests: `AUTO` chooses a mode from `WANDB_MODE`, API key and server; `SYNC` means online or an error."""


def check_wandb_mode() -> None:
    """Check that `WANDB_MODE`, if set, names a mode.

    Raises:
        BadInputError: It names none.
    """
    value = os.environ.get("WANDB_MODE")
    if value and value not in WANDB_MODES:
        raise BadInputError(f"there is no WANDB_MODE '{value}'{suggest(value, WANDB_MODES)}")
