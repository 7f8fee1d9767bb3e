"""Start the explorer: open the runs, bind the port, serve until stopped."""

import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ot_lens.errors import ExplorerError

if TYPE_CHECKING:
    from ot_lens.explorer.serving import Server


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
        compare: A second run, shown next to the first.
        host: Address to listen on; everyone who reaches it can read the runs and use the live model.
        port: Port; 0 takes any free one.
        browser: Open the page in the default browser.
        model: Model of the live panel, in the form `load_model` takes. Default: the embedded model if the
            run used it, else none.
        say: Called with each line for the user.

    Raises:
        RunFolderError: If a folder holds no run.
        ExplorerError: If the page's packages are missing, the port is taken, or the address does not belong
            to this machine.
        ModelError: If the model cannot be loaded, or does not match the run.
    """
    server = make_server(run, compare, host=host, port=port, model=model)
    from ot_lens.explorer.guard import is_loopback

    name = "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104  compared, not bound
    address = f"http://{f'[{name}]' if ':' in name else name}:{server.port}/"
    if not is_loopback(host):
        say(f"Listening on {host}: everyone who reaches this machine can read the runs and use the model.")
    say(f"Explorer of {run}: {address}  (stop with Ctrl-C)")
    if browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    try:
        server.serve()
    finally:
        server.close()
    say("Stopped.")


def make_server(
    run: str | Path,
    compare: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    model: str | None = None,
) -> "Server":
    """A server that listens already; see `explore`."""
    try:
        from ot_lens.explorer.app import build_app
        from ot_lens.explorer.serving import Server
    except ModuleNotFoundError as error:
        raise ExplorerError(f"The explorer needs {error.name}: pip install 'ot-lens[page]'.") from error
    from ot_lens.explorer.live import live_model
    from ot_lens.explorer.runs import OpenRun
    from ot_lens.explorer.views import warm

    paths = [Path(path) for path in (run, compare) if path is not None]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    listener = _bind(host, port)
    try:
        runs = [*map(OpenRun, paths, names)]
        live = live_model(runs[0], model)
        if live is not None and model is not None:
            live.model  # noqa: B018  loaded now, so that a mistake in --model ends the command
        app = build_app(runs, live, host=host)
        warm(runs)
        return Server(app.server, listener)
    except BaseException:
        listener.close()
        raise


def _bind(host: str, port: int) -> socket.socket:
    ipv6 = ":" in host
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=ipv6)
    except (OSError, OverflowError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExplorerError(
            f"Cannot listen on {host}:{port} ({reason}): choose another --port, or 0 for any free one."
        ) from error
