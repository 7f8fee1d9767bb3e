"""A store whose capture was killed and resumed ends with the bytes of an undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.activations import crash

ROOT = Path(__file__).resolve().parents[2]


def crashes(llama_folder: Path, work: Path, mode: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", crash.__name__, str(llama_folder), str(work), mode],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a fork has no other threads
        timeout=300,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.trust)])
def test_captures_killed_at_accesses_to_the_store_end_with_the_same_bytes(llama_folder, tmp_path, step):
    outcome = crashes(llama_folder, tmp_path, str(step))
    assert outcome["kills"] > 30 / step
    for run in outcome["runs"]:
        assert run["ended"]
        assert run["equal"]
        assert run["readable"], "a reader is told that the capture is unfinished"
        assert run["twice"] <= 1
