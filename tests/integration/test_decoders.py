"""The table of docs/models.md: every family of decoders is served as it says."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests import decoders

pytestmark = pytest.mark.usefixtures("mixed_lengths")


@pytest.fixture(scope="session")
def rows(repository: Path) -> dict[str, list[str]]:
    return decoders.documented(repository / "docs" / "models.md")


ALL = (*decoders.FAMILIES, *decoders.VISION)
# Every kind of attention and of recurrence. The others, and their last column, follow in `make trust`.
EVERYDAY = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "gemma2", "gemma3_text",
    "gemma3n_text", "phi3", "gpt2", "gpt_neox", "gpt_oss", "olmo2", "falcon_h1", "mamba2", "deepseek_v3",
    "lfm2", "opt", "llava", "paligemma", "qwen2_5_vl",
)  # fmt: skip
TEXT = [family for family in EVERYDAY if family not in decoders.VISION]
QUICK = ("llama", "gemma3_text", "qwen3_moe", "falcon_h1")


def campaign_of_all_but(families: Collection[str]) -> list[Any]:
    """The others, which run at full size only."""
    return [pytest.param(family, marks=pytest.mark.campaign) for family in ALL if family not in families]


@pytest.mark.parametrize("family", [*EVERYDAY, *campaign_of_all_but(EVERYDAY)])
def test_a_family_is_served_as_documented(family, rows, tmp_path):
    assert decoders.cells(family, tmp_path) == rows[family][:-1]


@pytest.mark.parametrize(
    "family",
    [
        *QUICK,
        *(pytest.param(family, marks=pytest.mark.trust) for family in TEXT if family not in QUICK),
        *campaign_of_all_but(TEXT),
    ],
)
def test_every_hook_point_is_served_as_documented(family, rows, tmp_path):
    assert decoders.cell_of_every_hook_point(family, tmp_path, rows[family]) == rows[family][-1]


def test_the_page_is_complete(rows, repository):
    assert list(rows) == list(ALL)
    assert (repository / "docs" / "models.md").read_text("utf-8").startswith(decoders.ABOUT)
    assert sum("not served" not in row for row in rows.values()) >= 80
