"""Starting the explorer: open the runs, bind the port, serve until it is stopped."""

import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ot_lens.errors import OtLensError

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer


class ExplorerError(OtLensError):
    """The explorer cannot be served as asked."""


def explore(
    run: str | Path,
    compare: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    browser: bool = True,
    model: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the explorer of a run until it is stopped (Ctrl-C).

    Args:
        run: A run folder.
        compare: A second one, shown beside it.
        host: Address to listen on; everyone who reaches it can read the runs and use the live model.
        port: Port; 0 takes any free one.
        browser: Open the page in the default browser.
        model: Model of the live panel, what `load_model` takes. Default: the embedded model if the run is of
            it, else none.
        say: Called with each line for the user.

    Raises:
        RunFolderError: A folder holds no run.
        ExplorerError: The port is taken, or the address is none of this machine.
        ModelError: The model cannot be loaded, or is not the run's.
    """
    from ot_lens.explorer.guard import is_loopback

    server = make_server(run, compare, host=host, port=port, model=model)
    address = url_of(server, host)
    if not is_loopback(host):
        say(f"listening on {host}: everyone who reaches this machine can read the runs and use the model.")
    say(f"explorer of {run}: {address}  (stop with Ctrl-C)")
    if browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()


def make_server(
    run: str | Path,
    compare: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    model: str | None = None,
) -> "BaseWSGIServer":
    """A bound server, a thread a connection, ready for `serve_forever`; see `explore`."""
    from werkzeug.serving import make_server as bind

    from ot_lens.explorer.app import build_app
    from ot_lens.explorer.live import live_model
    from ot_lens.explorer.runs import OpenRun
    from ot_lens.explorer.serving import Quiet
    from ot_lens.explorer.views import warm

    paths = [Path(run)] + ([] if compare is None else [Path(compare)])
    names = _names(paths)
    bound = _bound(host, port)
    try:
        runs = [OpenRun(path, name) for path, name in zip(paths, names, strict=True)]
        live = live_model(runs[0], model)
        if live is not None and model is not None:
            live.model  # noqa: B018  loaded now, so that a mistake in --model ends the command
        app = build_app(runs, live, host=host)
        warm(runs)
    except BaseException:
        bound.close()
        raise
    with bound:
        return bind(host, port, app.server, threaded=True, request_handler=Quiet, fd=bound.fileno())


def url_of(server: "BaseWSGIServer", host: str) -> str:
    """The address to open."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104  compared, not bound
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{server.port}/"


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ExplorerError(
            f"cannot listen on {host}:{port} ({reason}): choose another --port, or 0 for any free one."
        ) from error
    return listener


def _names(paths: list[Path]) -> list[str]:
    """Names of the runs: their folders', or their paths where those are the same."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
