"""The table of docs/models.md: every family of decoders is served as it says."""

from pathlib import Path

import pytest

from tests import decoders

pytestmark = pytest.mark.usefixtures("mixed_lengths")


@pytest.fixture(scope="session")
def rows(repository: Path) -> dict[str, list[str]]:
    return decoders.documented(repository / "docs" / "models.md")


# In `make test`: every kind of attention and of recurrence; the others follow in `make test-all`.
EVERYDAY = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "gemma2", "gemma3_text",
    "gemma3n_text", "phi3", "gpt2", "gpt_neox", "gpt_oss", "olmo2", "falcon_h1", "mamba2", "deepseek_v3",
    "lfm2", "opt", "llava", "paligemma", "qwen2_5_vl",
)  # fmt: skip
# Their last column is left to `make trust`.
RARE = (
    "afmoe", "aria_text", "axk1", "axk2", "bailing_hybrid", "biogpt", "bitnet", "bloom", "codegen",
    "cohere2_moe", "cwm", "deepseek_v32", "deepseek_v4", "diffllama", "doge", "dots1",
    "dots3_note_text", "exaone_moe", "falcon_mamba", "flex_olmo", "flint", "gemma4_unified_text",
    "glm4_moe_lite", "glm_moe_dsa", "gpt_bigcode", "gpt_neo", "gptj", "granite_swa", "granitemoe_swa",
    "hrm_text", "hy_v3", "hy_v4", "hyperclovax", "inkling2_text", "inkling_text", "internlm3",
    "jais2", "jamba", "jetmoe", "kimi_linear", "kolibri1", "laguna", "lfm3", "longcat_flash",
    "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m3_vl_text", "mpt", "nanochat",
    "olmo_hybrid", "persimmon", "phi4_multimodal", "phimoe", "qwen4_exp_text", "recurrent_gemma",
    "solar_open", "starcoder2", "vaultgemma", "xglm", "youtu", "zamba", "zamba2", "zaya",
)  # fmt: skip


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in EVERYDAY else pytest.mark.trust)
        for family in [*decoders.FAMILIES, *decoders.VISION]
    ],
)
def test_a_family_is_served_as_documented(family, rows, tmp_path):
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
    if family in (*RARE, *decoders.VISION) and not full_size:
        pytest.skip("a rare family: run with --full")
    assert decoders.cell_of_every_hook_point(family, tmp_path, rows[family]) == rows[family][-1]


def test_the_page_is_complete(rows, repository):
    assert list(rows) == [*decoders.FAMILIES, *decoders.VISION]
    assert (repository / "docs" / "models.md").read_text("utf-8").startswith(decoders.ABOUT)
    assert sum("not served" not in row for row in rows.values()) >= 80
