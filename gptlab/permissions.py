"""The permissions of new files and directories: those of the umask, and never writable for everybody."""

import os
import stat


def keep_others_from_writing() -> None:
    """Let nothing that this process and its children create be writable for everybody, whatever the umask."""
    os.umask(os.umask(0) | stat.S_IWOTH)
