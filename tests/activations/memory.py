"""Peak memory of a capture of few and of many prompts, in one process; prints bytes as JSON.

`python -m tests.activations.memory WORK_FOLDER`
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ot_lens as otl
from ot_lens.prompts import Contrast
from tests import checkpoints

# Only the input of the first block is read, where the pass ends: wide activations of a model that does no
# work.
WIDTH = 2048
POSITIONS = [-1, -2, -3, -4]
FEW, MANY = 1000, 4000
BYTES = 4 * WIDTH * len(POSITIONS)


def wide_model() -> Any:
    config = LlamaConfig(
        vocab_size=len(checkpoints.SPECIAL) + len(checkpoints.WORDS),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=16,
        max_position_embeddings=64,
    )
    return otl.load_model(LlamaForCausalLM(config).eval(), tokenizer=checkpoints.tokenizer("llama"))


def peak(work: Callable[[], object]) -> int:
    """Bytes by which the resident size grows at most while something runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measure(work: Path) -> dict[str, dict[str, int]]:
    model = wide_model()
    captures: dict[str, Callable[[Contrast, str], object]] = {
        "store": lambda p, name: otl.capture(model, p, positions=POSITIONS, store=work / name),
        "resumed": lambda p, name: otl.capture(model, p, positions=POSITIONS, store=work / name),
        "opened": lambda p, name: repr(otl.load_activations(work / name)),
        "moments": lambda p, name: otl.capture_moments(model, p, positions=[-1], limit=128),
        "in memory": lambda p, name: otl.capture(model, p, positions=POSITIONS),
    }
    groups = {name: checkpoints.contrast(n // 2) for name, n in (("few", FEW), ("many", MANY))}
    captures["store"](checkpoints.contrast(40), "first")  # what is allocated once
    return {
        how: {name: peak(lambda: run(group, name)) for name, group in groups.items()}  # noqa: B023
        for how, run in captures.items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(Path(sys.argv[1]))))
