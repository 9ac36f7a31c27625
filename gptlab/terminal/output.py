"""Standard streams that are closed, cannot encode a character, or lose their reader or their disk."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TextIO

from gptlab.terminal.look_alikes import ERRORS


def prepare_standard_streams() -> None:
    """Open standard streams that were closed at start (`>&-`), and replace characters that they cannot encode by `?`.

    The next opened file would get the number of a closed descriptor, and a warning of a C library would end up in it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard(stream: TextIO) -> None:
    """Send whatever is still written to a stream to /dev/null, including what it has buffered."""
    with suppress(OSError, ValueError):  # it has no descriptor
        _open_null(stream.fileno())


def _open_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)


class Output:
    """A text stream that remembers its first error, such as a pipe without a reader, a closed terminal or a full disk.

    What is written afterwards is dropped. While `surviving` is true, nothing is raised; else the error is.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        """Wrap a standard stream of `sys`, whichever it is when something is written."""
        self._name = name
        self.surviving = False
        self.error: OSError | None = None

    @property
    def _stream(self) -> TextIO:
        current = getattr(sys, self._name)
        stream: TextIO = getattr(current, "rich_proxied_file", current)  # a progress bar's own would print here again
        return stream

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write text. Characters that cannot be encoded become similar ones, or `?`."""
        encodable = text.encode(self.encoding, ERRORS).decode(self.encoding)
        self._attempt(lambda: self._stream.write(encodable))
        return len(text)

    def flush(self) -> None:
        """Write whatever is buffered."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                error.filename = error.filename or getattr(self._stream, "name", None)
                self.error = error
                discard(self._stream)
        if self.error is not None and not self.surviving:
            raise self.error
