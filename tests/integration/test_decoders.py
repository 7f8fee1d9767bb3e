"""The table of docs/models.md: every family of decoders is served as it says."""

from pathlib import Path

import pytest

from tests import decoders

pytestmark = pytest.mark.usefixtures("mixed_lengths")


@pytest.fixture(scope="session")
def rows(repository: Path) -> dict[str, list[str]]:
    return decoders.documented(repository / "docs" / "models.md")


# Every kind of attention and of recurrence. The others, and their last column, follow in `make trust`.
EVERYDAY = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "gemma2", "gemma3_text",
    "gemma3n_text", "phi3", "gpt2", "gpt_neox", "gpt_oss", "olmo2", "falcon_h1", "mamba2", "deepseek_v3",
    "lfm2", "opt", "llava", "paligemma", "qwen2_5_vl",
)  # fmt: skip


@pytest.mark.parametrize("family", [*decoders.FAMILIES, *decoders.VISION])
def test_a_family_is_served_as_documented(family, rows, tmp_path, full_size):
    if family not in EVERYDAY and not full_size:
        pytest.skip("kinds of attention and recurrence that others have: run with --full")
    assert decoders.cells(family, tmp_path) == rows[family][:-1]


QUICK = ("llama", "gemma3_text", "qwen3_moe", "falcon_h1")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in QUICK else pytest.mark.trust)
        for family in [*decoders.FAMILIES, *decoders.VISION]
    ],
)
def test_every_hook_point_is_served_as_documented(family, rows, tmp_path, full_size):
    if (family not in EVERYDAY or family in decoders.VISION) and not full_size:
        pytest.skip("kinds of attention and recurrence that others have: run with --full")
    assert decoders.cell_of_every_hook_point(family, tmp_path, rows[family]) == rows[family][-1]


def test_the_page_is_complete(rows, repository):
    assert list(rows) == [*decoders.FAMILIES, *decoders.VISION]
    assert (repository / "docs" / "models.md").read_text("utf-8").startswith(decoders.ABOUT)
    assert sum("not served" not in row for row in rows.values()) >= 80
