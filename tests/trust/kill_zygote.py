"""A process that has imported everything and forks `ot-lens` commands, which are then disturbed.

`python -m tests.trust.kill_zygote` reads one JSON request per line from stdin and answers likewise; see
`tests.trust.kill_harness`. A fork costs milliseconds where a new process would import for seconds, and runs
the same code: `ot_lens.cli.main` with the arguments of the command line.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ot_lens import cli
from ot_lens.execution import runner
from ot_lens.execution.ray_address import LOCAL_SETTINGS
from ot_lens.localization import measure
from ot_lens.plots import gallery
from ot_lens.report import figures as report_figures
from ot_lens.study import diagnostics
from ot_lens.study import run as study_run
from tests.processes import alive_after, descendants
from tests.trust import kill_counting
from tests.trust.kill_counting import note

LATER = (
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "ot_lens.models",
    "ot_lens.report",
    "pyarrow.parquet",
    "transformer_lens",
)
# Stages in order, and the functions that begin them.
STAGES = {
    "load": "open_executor",
    "filter": "filter_prompts",
    "capture": "capture_split",
    "fit": "plan_into",
    "sweep": "sweep_into",
    "geometry": "geometry_tables",
    "draw": "_draw",
}
# Figures of a disturbed run: all of them would take three times as long as everything else.
DRAWN = ("w2_per_layer", "method_intervals")
PATIENCE = 180.0
# Audit events of changes to a folder.
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run a command in a fork, disturb it, wait for its end.

    Args:
        request: argv, or code to execute instead; log and stderr, files; watch, a folder. How the run is
            disturbed: `signal` (a number) with `stage` and either `access` (the n-th change of files under
            `watch` in that stage) or `delay` (seconds after its beginning); `group` (also to its children),
            `again` (seconds to a second signal).
            `limit` (bytes of the largest file), `powerless` (give up root's right to write everywhere).
    """
    if "ray" in request["argv"]:
        os.environ.update(LOCAL_SETTINGS)  # which Ray reads when it is imported
        importlib.import_module("ray")
    child = os.fork()
    if child == 0:
        _child(request)
    ended, left = _wait(child), time.monotonic()
    lines = Path(request["log"]).read_text().splitlines() if Path(request["log"]).exists() else []
    last = {line.split()[0]: line.split()[1:] for line in lines}
    return {
        "status": ended,
        "stage": last.get("stage", ["start"])[0],
        "took": left - float(last["signal"][0]) if "signal" in last else None,
        "orphans": alive_after(set(map(int, last.get("below", []))), 60.0),
        "stderr": Path(request["stderr"]).read_text(),
    }


def _wait(child: int) -> int:
    """The status of a child, as in `subprocess`; one that hangs is killed."""
    ended = os.pidfd_open(child)
    if not select.select([ended], [], [], PATIENCE)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(request: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in ((0, os.devnull), (1, os.devnull), (2, request["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        _restrict(request)
        _instrument(request)
        sys.argv = ["ot-lens", *request["argv"]]
        code = _exit_code(partial(exec, request["code"], {}) if "code" in request else cli.main)
    finally:
        os._exit(code)


def _exit_code(function: Callable[[], None]) -> int:
    """What the interpreter would exit with."""
    try:
        function()
    except SystemExit as ended:
        return int(ended.code or 0)
    except KeyboardInterrupt:
        return -signal.SIGINT
    except Exception:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def _instrument(request: dict[str, Any]) -> None:
    """Note stages and computations, leave out most figures, watch the folder."""
    log = request["log"]
    seen = {"stage": "start", "changes": 0}

    def begin(stage: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        seen.update(stage=stage)
        note(log, f"stage {stage} {time.monotonic()}")
        if stage == request.get("stage") and "delay" in request:
            threading.Timer(request["delay"], _send, [request]).start()
        return function(*arguments, **options)

    for stage, name in STAGES.items():
        module = study_run if hasattr(study_run, name) else study_run.sweeping
        setattr(module, name, partial(begin, stage, getattr(module, name)))
    for module, name, noted in (
        (sys.modules["ot_lens.activations.capture"], "captured", kill_counting.captured),
        (measure, "measure_batches", kill_counting.batches),
        (runner, "run_named", kill_counting.tasks),
    ):
        setattr(module, name, partial(noted, log))
    for module, name in ((measure, "measure_baseline"), (diagnostics, "capture")):
        setattr(module, name, partial(kill_counting.called, log, name, getattr(module, name)))
    for module in (gallery, report_figures):
        module.GALLERY = tuple(
            entry if entry.name in DRAWN else replace(entry, tables=("left out",)) for entry in module.GALLERY
        )
    if "access" in request or not {"signal", "limit"} & request.keys():
        sys.addaudithook(partial(_look, request, seen))


def _look(request: dict[str, Any], seen: dict[str, Any], event: str, given: tuple[Any, ...]) -> None:
    """Count the changes of the folder; the signal comes just before the requested one."""
    if event not in CHANGES or request["watch"] not in str(given[:1]):
        return
    if "access" not in request:
        note(request["log"], f"change {seen['stage']}")
    elif seen["stage"] == request["stage"]:
        seen["changes"] += 1
        if seen["changes"] == request["access"]:
            _send(request)


def _send(request: dict[str, Any]) -> None:
    """Send the signal to this process, or to its group; again a while later, where asked."""
    note(request["log"], " ".join(["below", *map(str, descendants(os.getpid()))]))
    note(request["log"], f"signal {time.monotonic()}")
    send = os.killpg if request.get("group") else os.kill
    if "again" in request:
        threading.Timer(request["again"], send, [os.getpid(), request["signal"]]).start()
    send(os.getpid(), request["signal"])


def _restrict(request: dict[str, Any]) -> None:
    import resource

    if "limit" in request:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
    if "powerless" in request:  # capset(2): version 3 of the header, no capability in any of the three sets
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def main() -> None:
    """Serve requests until stdin ends; answers go to the real stdout, and nothing else does."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in LATER:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
