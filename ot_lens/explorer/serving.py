"""The server of the page: waitress, with bounds on what a connection may send and how long it may take."""

import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server

from ot_lens.explorer.guard import MOST_BYTES

# A request that is not complete by then is dropped, however steadily it trickles in.
REQUEST_SECONDS = 30
CLEANUP_SECONDS = 5
# A browser opens up to six connections for each page.
MOST_CONNECTIONS = 256
THREADS = 8

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Server:
    """Serves an application on a bound socket, which it closes in the end, until it is stopped."""

    def __init__(self, app: Application, listener: socket.socket) -> None:
        # It warns of every request that waits for a thread.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self.app = app
        server: Any = create_server(
            app,
            sockets=[listener],
            threads=THREADS,
            ident="ot_lens",
            channel_timeout=REQUEST_SECONDS,
            cleanup_interval=min(CLEANUP_SECONDS, REQUEST_SECONDS),
            connection_limit=MOST_CONNECTIONS,
            max_request_body_size=4 * MOST_BYTES,  # Flask refuses from MOST_BYTES on, with an answer
        )
        server.channel_class = _Channel
        self._server, self.port = server, int(server.effective_port)

    def serve(self) -> None:
        """Serve until Ctrl-C, or until another thread calls `stop`."""
        self._server.run()

    def stop(self) -> None:
        """End `serve`, which runs in another thread."""
        self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._server._map))

    def close(self) -> None:
        """Close the socket and end the threads."""
        self._server.close()
        self._server.task_dispatcher.shutdown()


class _Channel(HTTPChannel):
    """A connection on which only complete requests count as activity, so that the timeout is a deadline."""

    def handle_read(self) -> None:
        before = self.last_activity
        super().handle_read()
        self.last_activity = before if self.request is not None else time.time()

    def close(self) -> None:
        """Close the temporary file of an answer that was not sent in full, too."""
        self.handle_close()
