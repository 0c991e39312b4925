"""Signals that end a program, as exceptions that let it save what it has.

Ctrl-C is a KeyboardInterrupt in Python already. SIGTERM (a batch system's time limit, `kill`, a container that is stopped) and
SIGHUP (a terminal that is closed) would end the process on the spot.

Read next: `cli.py`.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def terminable() -> Iterator[None]:
    """A block in which SIGTERM and SIGHUP raise `Terminated`; a signal that is ignored (nohup) stays so.

    Elsewhere than in the main thread, where Python runs its handlers, nothing is done.
    """
    if current_thread() is not main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
