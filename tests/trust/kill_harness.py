"""A study that is disturbed and resumed, and what is compared with one that was not."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import ot_lens as otl
from ot_lens.io.files import LOCK, temporaries

# Folders of what is kept until something is made of all of it.
JOINED = ("parts", "edited", "filtered")
ROOT = Path(__file__).resolve().parents[2]
# One thread: a fork has no other threads, and last digits depend on their number.
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
ALONE |= {"RAY_ADDRESS": "", "RAY_AUTH_MODE": "token"}


class Zygote:
    """See `tests.trust.kill_zygote`."""

    def __init__(self) -> None:
        environment = {name: value for name, value in {**os.environ, **ALONE}.items() if value}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "tests.trust.kill_zygote"]
        self._process = subprocess.Popen(command, **pipes, cwd=ROOT, env=environment)

    def fork(self, **request: Any) -> dict[str, Any]:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


def write_study(folder: Path, n: int = 8, **changes: Any) -> Path:
    """A small study that goes through every stage; returns its configuration."""
    full = otl.load_prompts("organism")
    splits = {
        name: {
            label: [{"text": p.text, "answer": p.answer, "answers": p.answers} for p in group[:n]]
            for label, group in getattr(full, name)
        }
        for name in ("train", "val", "test")
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "few.json").write_text(json.dumps({"splits": splits}))
    settings = {
        "prompts": str(folder / "few.json"),
        "layers": [5, 7],
        "methods": ["directional_ablation", {"name": "pca_ot", "k": 2}],
        "sets": ["single", "all"],
        "fitting": ["independent", "sequential"],
        "controls": [],
        "sufficiency": False,
        "search_size": 2,
        "filter": "refusal_score",
        "max_new_tokens": 4,
        "batch_size": 4,
        "keep_completions": True,
        "permutations": 39,
        "bootstrap": 39,
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def left_over(run: Path) -> list[str]:
    """Temporary files, locks and parts, of which a finished run has none."""
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    found = [path for folder in folders for path in temporaries(folder)]
    found += [path for folder in folders for path in folder.iterdir() if path.name in (LOCK, *JOINED)]
    return sorted(str(path.relative_to(run)) for path in found)


@dataclass
class Study:
    """One run folder, disturbed as often as asked; what is noted of it is beside it, or at `log`."""

    zygote: Zygote
    config: Path
    run: Path
    executor: tuple[str, ...] = ()
    log: Path | None = None
    started: int = 0

    def __post_init__(self) -> None:
        beside = self.log or self.run.parent / self.run.name
        self.computed, self.said = (beside.with_name(f"{beside.name}.{x}") for x in ("computed", "stderr"))

    def go(self, **disturbance: Any) -> dict[str, Any]:
        """Start or resume it."""
        resume = ("--resume",) if self.started else ()
        self.started += 1
        return self.zygote.fork(
            argv=["run", str(self.config), "--out", str(self.run), *self.executor, *resume],
            log=str(self.computed),
            stderr=str(self.said),
            watch=f"{self.run}/",
            **disturbance,
        )

    def finish(self, **restriction: Any) -> None:
        """Run it to its end."""
        ended = self.go(**restriction)
        assert ended["status"] == 0, ended["stderr"]

    @staticmethod
    def complaint(ended: dict[str, Any], status: int) -> str:
        """The one line of an error that a command ended with."""
        assert ended["status"] == status, ended
        assert "Traceback" not in ended["stderr"]
        (line,) = [line for line in ended["stderr"].splitlines() if line.startswith("ot-lens: ")]
        return line

    @property
    def noted(self) -> list[list[str]]:
        """Lines of the log, in words."""
        return [line.split() for line in self.computed.read_text().splitlines()]

    def times(self) -> Counter[str]:
        """How often each shard, candidate and other computation was begun."""
        return Counter(
            " ".join(words) for words in self.noted if words[0] not in ("stage", "signal", "change", "below")
        )

    def remove(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.computed.unlink(missing_ok=True)
        self.started = 0
