"""Models of the HookedTransformer path, for `make test-tl3`: an environment with transformer-lens 3.9."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

try:
    from tests.tl3 import build
except ImportError as error:  # transformer-lens 4 has no HookedTransformer
    raise pytest.UsageError(f"tests/tl3 needs transformer-lens 3.9: run `make test-tl3` ({error})") from error


@pytest.fixture
def hooked(llama_folder: Path) -> "HookedTransformer":
    """The HookedTransformer of `llama_folder`, new for each test, so that no hook reaches another test."""
    return build.hooked_transformer(llama_folder)
