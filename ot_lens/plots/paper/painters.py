"""Figures drawn by several processes at a time.

Each is a fresh interpreter that reads descriptions and answers with the bytes of files: `multiprocessing`
would run the caller's script again, and a fork would copy its threads. They write nothing, and end with
their caller.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from queue import SimpleQueue
from typing import Any

from matplotlib.figure import Figure

from ot_lens.plots.description import Description
from ot_lens.plots.paper.canvas import styled
from ot_lens.plots.paper.render import draw

# Starting a process costs as much as drawing a few figures.
FIGURES = 4
# No time stamps: the same figure gives the same bytes.
STAMPS: Mapping[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
START = "from ot_lens.plots.paper.painters import serve; serve()"
Job = tuple[Description, Sequence[str], str]  # what to draw, formats, style
Pictures = Mapping[str, bytes]  # by format


def laid_out(description: Description, style: str) -> Figure:
    """A figure whose layout, half of the time of drawing, is computed once for all formats."""
    figure = draw(description, style=style)
    figure.draw_without_rendering()
    with styled(style):  # "none" would leave an engine that has every figure drawn twice
        figure.set_layout_engine(None)
    return figure


def painted(jobs: Sequence[Job], processes: int) -> Iterator[Pictures | None]:
    """The pictures of each job in order; None where the caller has to draw by itself."""
    count = min(processes, len(jobs) // FIGURES)
    if count < 2:
        yield from [None] * len(jobs)
        return
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    painters = [_start() for _ in range(count)]
    for painter in painters:
        idle.put(painter)

    def paint(job: Job) -> Pictures | None:
        painter = idle.get()
        try:
            return _ask(painter, job)
        finally:
            idle.put(painter)

    try:
        with ThreadPoolExecutor(count) as pool:
            yield from pool.map(paint, jobs)
    finally:
        for painter in painters:
            painter.kill()
            painter.communicate()


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-P", "-c", START]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603


def _ask(painter: "subprocess.Popen[bytes]", job: Job) -> Pictures | None:
    """None if the process could not draw it, or is gone."""
    assert painter.stdin is not None
    assert painter.stdout is not None
    try:
        content = pickle.dumps(job)
        painter.stdin.write(content)
        painter.stdin.flush()
        pictures: Pictures | None = pickle.load(painter.stdout)  # noqa: S301  of a process of our own
    except (OSError, EOFError, pickle.PickleError, AttributeError, TypeError):
        return None
    return pictures


def serve() -> None:
    """Answer jobs from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at a terminal, Ctrl-C is for the caller
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    with suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(_pictures(*pickle.load(sys.stdin.buffer)), answers)  # noqa: S301  of our own caller
            answers.flush()


def _pictures(description: Description, formats: Sequence[str], style: str) -> Pictures | None:
    """None if it fails: the caller draws it again and reports the error."""
    pictures = {}
    try:
        figure = laid_out(description, style)
        with styled(style):
            for suffix in formats:
                file = BytesIO()
                figure.savefig(file, format=suffix, metadata=STAMPS[suffix])
                pictures[suffix] = file.getvalue()
    except Exception:  # noqa: BLE001
        return None
    return pictures
