"""Connecting to a Ray cluster: a running one, or one on this machine alone."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ot_lens.errors import ExecutorError

# Bytes of the object store of a cluster started here; Ray spills the rest to disk.
OBJECT_STORE = 2**29
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "error"}
# Seconds in which a cluster must answer.
ANSWER_TIMEOUT = 5.0
# Ray reads these when it is imported. Despite its name, the last one has an effect on every system: where
# clusters of several machines are off, Ray binds all of its ports to the loopback address.
LOCAL_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def connect(address: str | None) -> tuple[Any, bool]:
    """The connected ray package, and whether to disconnect in the end: not if it was connected before.

    `address` is "ray://HOST:PORT", "HOST:PORT" or "auto"; None for RAY_ADDRESS, else a cluster of our own. A
    loopback address means a cluster on this machine alone; on the head of a larger cluster, give the address
    that its other machines use.
    """
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        if address is not None:
            raise ExecutorError(
                f"This process is already connected to a Ray cluster: leave out the address {address!r} to "
                "use it, or call ray.shutdown() first."
            )
        return loaded, False
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        return start_here(), True
    _check_answers(address)
    ray = _import_ray()
    try:
        with _own_signals():
            ray.init(address, **QUIET)
    except (ImportError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _unreachable(address, error) from error
    return ray, True


def start_here(**options: Any) -> Any:
    """The ray package on a new cluster that no other machine can reach; `options` are those of `ray.init`."""
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    ray = _import_ray()
    with _own_signals():
        ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **QUIET, **options)
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore our handler of SIGTERM, which Ray replaces with one that ends the process silently."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _import_ray() -> Any:
    # Ray warns unless it is told whether to hide the GPUs from tasks that request none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ExecutorError("The executor 'ray' needs Ray: pip install 'ot-lens[ray]'.") from error
    return ray


def _check_answers(address: str) -> None:
    """Fail at once where nothing listens; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise ExecutorError(
            f"{address!r} is not the address of a Ray cluster: give ray://HOST:10001, HOST:6379 or auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error
    if host in ("127.0.0.1", "localhost"):
        # Ray would replace the loopback address with this machine's other one, where nothing may listen.
        os.environ.update(LOCAL_SETTINGS)


def _unreachable(address: str, error: Exception) -> ExecutorError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ExecutorError(
        f"No Ray cluster answers at {address!r} ({reason}): start one with 'ray start --head', set "
        "RAY_AUTH_MODE=token if it requires a token, or leave out the address to use this machine alone."
    )
