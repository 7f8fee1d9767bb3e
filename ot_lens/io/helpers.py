"""Processes of our own that help this one: each is a fresh interpreter that answers questions.

`multiprocessing` would run the caller's script again, and a fork would copy its threads. Questions and
answers are pickled, through pipes that nobody else can open. A helper writes no file, and ends with its
caller.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from select import select
from typing import Any, BinaryIO

START = "from ot_lens.io.helpers import serve; serve()"


class Helper:
    """A process in which `make(*arguments)` was called, and whose result answers questions."""

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg"}
        command = [sys.executable, "-P", "-c", START]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)  # noqa: S603
        self._send((make, arguments))
        self._made = False

    def ready(self, seconds: float) -> bool:
        """Whether the process can answer; it is waited for so long.

        Raises:
            OSError, EOFError: If the process has ended.
        """
        assert self._process.stdout is not None
        if not self._made and select([self._process.stdout], [], [], seconds)[0]:
            self._made = bool(pickle.load(self._process.stdout))  # noqa: S301  of a process of our own
        return self._made

    def ask(self, *question: Any) -> Any:
        """The answer; None if there was an error, so that the caller does it and reports the error.

        The process is waited for until it can answer.

        Raises:
            OSError, EOFError: If the process has ended.
        """
        assert self._process.stdout is not None
        self._send(question)
        while not self.ready(60.0):
            pass
        return pickle.load(self._process.stdout)  # noqa: S301  of a process of our own

    def end(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(message))  # whole, or not at all
        self._process.stdin.flush()


@contextmanager
def helpers(
    count: int, make: Callable[..., Callable[..., Any]], *arguments: Any
) -> Iterator[Sequence[Helper]]:
    """Some helpers of one kind, for the length of a `with` block."""
    started = [Helper(make, *arguments) for _ in range(count)]
    try:
        yield started
    finally:
        for helper in started:
            helper.end()


def serve() -> None:
    """Answer questions from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at a terminal, Ctrl-C is for the caller
    read = partial(pickle.load, sys.stdin.buffer)  # of our own caller
    # Buffered also where Python is told not to be: a pause in the middle of a raw write drops the rest of it.
    with suppress(EOFError, BrokenPipeError), open(sys.stdout.fileno(), "wb", closefd=False) as answers:
        sys.stdout = sys.stderr
        make, arguments = read()
        answer = make(*arguments)
        _give(True, answers)
        while True:
            _give(_answered(answer, read()), answers)


def _give(answer: Any, answers: BinaryIO) -> None:
    pickle.dump(answer, answers)
    answers.flush()


def _answered(answer: Callable[..., Any], question: tuple[Any, ...]) -> Any:
    try:
        return answer(*question)
    except Exception:  # noqa: BLE001  the caller meets the error again, and reports it
        return None
