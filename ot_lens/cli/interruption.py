"""Ctrl-C and SIGTERM, as a batch system sends it: the process ends within two seconds, wherever it is."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ot_lens.cli.console import complain

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds for files to be closed and workers to be let go. A library deep in a computation hears of a signal
# only when it is done; every file survives that the process ends in the midst of it.
GRACE = 1.0


@contextmanager
def interruptible(farewell: Callable[[], str]) -> Iterator[None]:
    """End the process at SIGINT or SIGTERM in one line, with exit code 130 or 143; further ones are ignored.

    Signals that are ignored already, as under nohup, stay so. Only for the main thread.

    Args:
        farewell: What is printed then.
    """
    interruption = _Interruption(farewell)
    with interruption.watching():
        try:
            yield
        except BaseException as error:
            if interruption.signal is not None or isinstance(error, KeyboardInterrupt):
                interruption.leave(complain)
            raise


class _Interruption:
    def __init__(self, farewell: Callable[[], str]) -> None:
        self.signal: int | None = None
        self._farewell = farewell
        self._leaving = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take the signals over, and give them back."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        before = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(reader, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            os.close(writer)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  as signal.signal asks
        if self.signal is None:
            self.signal = number
            # Where the exception falls into a finalizer, Python would print a traceback and go on.
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt

    def _watch(self, reader: int, ended: threading.Event) -> None:
        """Hear of a signal at once, while the main thread may be in a long call of a library."""
        heard: int | None = None
        while heard not in SIGNALS:
            byte = os.read(reader, 1)
            if not byte:
                os.close(reader)
                return
            heard = byte[0]
        if not ended.wait(GRACE):
            self.signal = heard
            self.leave(_write)

    def leave(self, say: Callable[[str], None]) -> NoReturn:
        """Say what there is to say and end, whatever other threads are at."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # for the end, which another thread has begun
        with suppress(OSError):
            say(self._farewell())
        # All files are whole; the farewells of torch and its threads would take seconds.
        os._exit(128 + (self.signal or signal.SIGINT))


def _write(line: str) -> None:
    """Past all locks, which the main thread may hold; a cursor that a progress bar hid is shown again."""
    shown = "\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"\n{shown}ot-lens: {line}\n".encode())


def same_command() -> str:
    """The command that was given, to go on with."""
    given = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["ot-lens", *given, "--resume"])
