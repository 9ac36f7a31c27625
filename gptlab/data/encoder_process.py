"""Encode texts in child processes: two of them are faster than two threads, which share the GIL and malloc's locks.

The children are plain subprocesses. A fork of a process with threads, such as torch's, may deadlock; `multiprocessing`
would import the main program once more, leave a process of its own behind and outlive a killed parent. Here the end of
a pipe ends a child.
"""

import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from gptlab.data import encoder_child
from gptlab.data.encoder_child import HEADER_BYTES
from gptlab.errors import GptlabError


class EncoderProcess:
    """A child process that encodes texts, for use by one thread."""

    def __init__(self) -> None:
        """Start the process, without waiting for it.

        Raises:
            OSError: It cannot be started.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", encoder_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on a terminal is for this process, which ends its children
        )
        self._texts, self._tokens = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)

    def load(self, vocabulary: bytes) -> bool:
        """Send the vocabulary, and return whether the process has loaded it."""
        with suppress(OSError, ValueError):  # it has ended, or `end` has closed the pipes
            self._send(vocabulary)
            return self._tokens.read(HEADER_BYTES) == bytes(HEADER_BYTES)
        return False

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the tokens of a text.

        Raises:
            GptlabError: The process was killed, or it failed.
        """
        with suppress(BrokenPipeError):
            self._send(text.encode())
            header = self._tokens.read(HEADER_BYTES)
            size = int.from_bytes(header, "little")
            content = self._tokens.read(size)
            if len(header) == HEADER_BYTES and len(content) == size:
                return np.frombuffer(content, np.uint32)
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        raise GptlabError(f"a process that tokenizes {how}; run the command again")

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._texts, self._tokens):
            with suppress(BrokenPipeError):  # what was not sent cannot be flushed
                pipe.close()

    def _send(self, content: bytes) -> None:
        self._texts.write(len(content).to_bytes(HEADER_BYTES, "little"))
        self._texts.write(content)
        self._texts.flush()
