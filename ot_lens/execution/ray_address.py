"""Reaching a Ray cluster: one that runs already, or one of this machine alone."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ot_lens.errors import ExecutorError

# Bytes of the object store of a cluster started here; what does not fit Ray keeps on disk.
OBJECT_STORE = 2**29
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "error"}
# Seconds within which a cluster's address must answer.
ANSWERS_WITHIN = 5.0
# Ray reads these when it is imported. The last, despite its name, is read on every system: where clusters of
# several machines are off, all of Ray's ports are bound to the loopback address.
LOCAL_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def connect(address: str | None) -> tuple[Any, bool]:
    """Connect to a cluster, or start one of this machine alone that no other machine can reach.

    Args:
        address: "ray://HOST:PORT", "HOST:PORT" or "auto"; None for RAY_ADDRESS, else a cluster of our own.
            A loopback address stands for a cluster of this machine alone; on the head of a larger one give
            the address that its other machines use.

    Returns:
        The ray package, connected; and whether it is for the caller to disconnect: it is not where this
        process was connected before.

    Raises:
        ExecutorError: If Ray is not installed, no cluster answers at the address, or this process is
            connected to another.
    """
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        if address is not None:
            raise ExecutorError(
                f"this process is connected to a Ray cluster already: leave out address {address!r} to use "
                "it, or call ray.shutdown() first."
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
    """Start a cluster of this machine alone, which no other machine can reach; returns the ray package.

    Args:
        options: Of `ray.init`.

    Raises:
        ExecutorError: If Ray is not installed.
    """
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    ray = _import_ray()
    with _own_signals():
        ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **QUIET, **options)
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray would have SIGTERM end the process without a word, whatever the process does at it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _import_ray() -> Any:
    # Ray warns until it is told whether to hide the GPUs from tasks that ask for none: it shall not.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ExecutorError("the executor 'ray' needs Ray: pip install 'ot-lens[ray]'.") from error
    return ray


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    if address == "auto":
        return
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise ExecutorError(
            f"address {address!r} is none of a Ray cluster: give ray://HOST:10001, HOST:6379 or auto."
        )
    try:
        _knock(host.strip("[]"), int(port))
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error
    if host in ("127.0.0.1", "localhost"):
        # Ray would put this machine's other address in place of the loopback one, where nobody may be.
        os.environ.update(LOCAL_SETTINGS)


def _knock(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=ANSWERS_WITHIN).close()


def _unreachable(address: str, error: Exception) -> ExecutorError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ExecutorError(
        f"no Ray cluster answers at {address!r} ({reason}): start one with 'ray start --head', set "
        "RAY_AUTH_MODE=token if it asks for a token, or leave the address out for a cluster of this machine."
    )
