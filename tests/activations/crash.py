"""Captures into a store that are killed at every n-th access to it, each of them a fork.

`python -m tests.activations.crash MODEL_FOLDER WORK_FOLDER N`; prints the outcome as JSON.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import ot_lens as otl
from ot_lens.activations import shards
from ot_lens.errors import RunFolderError
from tests import checkpoints

computed = shards.capture_shard


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")}


class Crashes:
    """One capture, repeated."""

    def __init__(self, model: Any, work: Path, n: int) -> None:
        self.model, self.prompts = model, checkpoints.contrast(n)
        self.store, self.log = work / "store", work / "computed"
        self.capture(work / "whole")
        self.whole = contents(work / "whole")
        self.shards = len([name for name in self.whole if name.endswith(".safetensors")])

    def capture(self, store: Path) -> None:
        otl.capture(self.model, self.prompts, positions=[-1, -2], batch_size=2, store=store)

    def start(self, kill_at: int | None = None) -> int:
        """Capture in a fork, which kills itself at an access to the store; returns how it ended."""
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1]
        shards.capture_shard = self._noted
        if kill_at is not None:
            sys.addaudithook(self._killer(kill_at))
        self.capture(self.store)
        os._exit(0)

    def _noted(self, model: Any, prompts: Any, plan: Any, shard: Any) -> Any:
        with self.log.open("a") as log:
            log.write(f"{shard.name}\n")
        return computed(model, prompts, plan, shard)

    def _killer(self, kill_at: int) -> Any:
        seen = [0]

        def look(event: str, args: tuple[Any, ...]) -> None:
            if event.partition(".")[0] in ("open", "os") and str(args[:1]).find(str(self.store)) >= 0:
                seen[0] += 1
                if seen[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return look

    def finish(self) -> dict[str, Any]:
        """Complete the capture, and compare."""
        status = self.start()
        times = self.log.read_text().split()
        found = {
            "ended": status == 0,
            "equal": contents(self.store) == self.whole,
            "twice": len(times) - self.shards,
        }
        shutil.rmtree(self.store)
        self.log.unlink()
        return found

    def readable(self) -> bool:
        """Whether a reader of the unfinished store gets an error, or the correct values."""
        try:
            otl.load_activations(self.store).stacked("harmful", -1)
        except RunFolderError:
            return True
        return contents(self.store).items() >= self.whole.items()


def at_accesses(crashes: Crashes, step: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    kill_at = 1
    while crashes.start(kill_at) == signal.SIGKILL:
        readable = crashes.readable()
        found.append({**crashes.finish(), "kills": 1, "readable": readable})
        kill_at += step
    return {"kills": len(found), "runs": found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, work, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    model = otl.load_model(folder)
    print(json.dumps(at_accesses(Crashes(model, work, n=3), int(step))))
