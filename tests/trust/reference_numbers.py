"""Write tests/data/numbers.json: what each embedded model says in float64, for every environment to compare.

Run from the repository root in the environment of transformer-lens 4: python -m tests.trust.reference_numbers
"""

import json
from pathlib import Path
from typing import Any

import ot_lens as otl
from tests.trust.model_numbers import few, numbers_of

FILE = Path(__file__).parent.parent / "data" / "numbers.json"
VARIANTS = ("multi", "single")
PROMPTS = 12


def reference(variant: str) -> dict[str, Any]:
    """Numbers and conclusions of an embedded model in float64, 16 prompts a batch."""
    model = otl.load_model(f"organism:{variant}", dtype="float64")
    found = numbers_of(model, few(n=PROMPTS), batch_size=16)
    return {"numbers": found.summary(), "conclusions": found.conclusions}


if __name__ == "__main__":
    FILE.write_text(json.dumps({variant: reference(variant) for variant in VARIANTS}) + "\n")
