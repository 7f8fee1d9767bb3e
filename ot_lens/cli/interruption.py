"""Ctrl-C, and SIGTERM from a batch system: the process ends within two seconds, whatever it is doing."""

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
# Seconds for closing files and releasing workers. A library in a long computation sees a signal only when it
# is done; ending the process before that damages no file.
GRACE = 1.0


@contextmanager
def interruptible(farewell: Callable[[], str]) -> Iterator[None]:
    """End the process at SIGINT or SIGTERM with one line, `farewell()`, and exit code 130 or 143.

    Further signals are ignored, and those that were ignored before, as under nohup, stay so. Only for the
    main thread.
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
        """Handle the signals inside the block, and restore their handlers."""
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

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  required by signal.signal
        if self.signal is None:
            self.signal = number
            # If the exception is raised inside a finalizer, Python would print a traceback and continue.
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt

    def _watch(self, reader: int, ended: threading.Event) -> None:
        """Notice a signal immediately, even if the main thread is in a long call of a library."""
        received: int | None = None
        while received not in SIGNALS:
            byte = os.read(reader, 1)
            if not byte:
                os.close(reader)
                return
            received = byte[0]
        if not ended.wait(GRACE):
            self.signal = received
            self.leave(_write)

    def leave(self, say: Callable[[str], None]) -> NoReturn:
        """Print the farewell and end, whatever other threads are doing."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending the process
        with suppress(OSError):
            say(self._farewell())
        # All files are complete; a regular exit of torch and its threads would take seconds.
        os._exit(128 + (self.signal or signal.SIGINT))


def _write(line: str) -> None:
    """Print without the locks that the main thread may hold, and show a cursor that a progress bar hid."""
    cursor = "\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"\n{cursor}ot-lens: {line}\n".encode())


def same_command() -> str:
    """The command that continues this one."""
    given = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["ot-lens", *given, "--resume"])
