"""How connections are served: a thread each, bounded, not logged, since paths hold what users do.

Werkzeug's threaded server comes with Dash. A page on this machine, for one user or a handful, needs no more;
its warning is about debug mode and the open network, and neither is on here unless asked for.
"""

import io
import socket
import threading
import time
from typing import Any

from werkzeug.serving import WSGIRequestHandler

# A request that has not come whole by then is given up, however steadily it trickles in.
REQUEST_SECONDS = 30.0
# Twenty pages of a browser, which opens up to six connections each, and as many again.
MOST_CONNECTIONS = 256


class Quiet(WSGIRequestHandler):
    """A connection that may not idle, and of which nothing is written down."""

    timeout = REQUEST_SECONDS
    seats = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def setup(self) -> None:
        """Read by a deadline."""
        super().setup()
        self.rfile: Any = io.BufferedReader(_Deadline(self.connection, REQUEST_SECONDS))

    def handle(self) -> None:
        """Serve the connection, or close it where there are too many."""
        if not self.seats.acquire(blocking=False):
            return
        try:
            super().handle()
        finally:
            self.seats.release()

    def log(self, *_: Any) -> None:
        """Keep no record of who asked for what."""

    def version_string(self) -> str:
        """Tell no version."""
        return "ot_lens"


class _Deadline(io.RawIOBase):
    """What a connection sends, up to a moment."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        before = self._connection.gettimeout()
        self._connection.settimeout(max(self._end - time.monotonic(), 0.001))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(before)
