"""The processes of a run besides the first one. They do what it says, and print nothing but their own failures."""

import logging
import signal
import time

from gptlab.distributed.board import END, board, read_end
from gptlab.distributed.workers import LostProcessError
from gptlab.errors import EXIT_FAILED, DivergedError
from gptlab.failures import report
from gptlab.training.follower import Work, follow
from gptlab.training.signals import StopSignals

GRACE_S = 5
"""How long the first process may take to say why it ends, after the connection to it is lost."""


def main() -> int:
    """Follow the first process to its end, and return its exit code, or that of an own failure."""
    logging.getLogger("gptlab").handlers = [logging.NullHandler()]  # the first process has the same warnings
    with StopSignals(insistent=()) as signals:
        notice = board().read(give_up=signals.stop_requested)
        if notice is None:
            return 128 + (signals.received or signal.SIGTERM)
        if END in notice:
            return int(notice[END])
        try:
            follow(Work.from_notice(notice), board(), signals.stop_requested)
        except (DivergedError, LostProcessError) as error:
            deadline = time.monotonic() + GRACE_S
            code = read_end(give_up=lambda: time.monotonic() > deadline)
            return report(error) if code is None else code
        except Exception as error:
            return report(error)
        code = read_end()
        return EXIT_FAILED if code is None else code
