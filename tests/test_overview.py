"""A sweep as a person reads it."""

import pandas as pd
import pytest

import ot_lens
from ot_lens.errors import OtLensError
from tests.generators_tables import localization, with_everything_else

SWEEP = localization(layers=3, n=64)


def test_one_row_an_edit_and_one_column_a_measure():
    shown = ot_lens.overview(SWEEP)
    edits = SWEEP.drop_duplicates(["set", "layers", "method", "k"])
    assert len(shown) == len(edits)
    assert shown.index[0][:2] == ("unedited", "")
    assert "harmful: refusal_rate (%, n = 64)" in shown.columns
    assert "harmless: kl (nats, n = 64)" in shown.columns


def test_a_cell_is_its_row_with_the_interval():
    row = SWEEP[
        (SWEEP["layers"] == "2") & (SWEEP["method"] == "pca_ot") & (SWEEP["measure"] == "refusal_rate")
    ]
    row = row[row["prompts"] == "harmful"].iloc[0]
    shown = ot_lens.overview(SWEEP).reset_index()
    label = f"pca_ot (k = {row['k']})"
    cell = shown[(shown["layers"] == "2") & (shown["method"] == label)][
        "harmful: refusal_rate (%, n = 64)"
    ].item()
    assert cell == f"{100 * row['value']:.0f} ({100 * row['low']:.0f} to {100 * row['high']:.0f})"


def test_controls_and_the_way_back_are_left_out_and_what_was_varied_is_named():
    shown = ot_lens.overview(with_everything_else(SWEEP))
    assert {"set", "strength", "fitting", "tokens"} <= set(shown.index.names)
    values = shown["harmful: refusal_rate (%, n = 64)"]
    assert values.index.is_unique
    controls = SWEEP.assign(control="random_subspace")
    with pytest.raises(OtLensError, match="no edit to show"):
        ot_lens.overview(controls)


def test_edits_that_the_table_cannot_tell_apart_share_a_cell():
    twice = ot_lens.overview(pd.concat([SWEEP, SWEEP]))
    assert twice.iloc[1, 0].count(" | ") == 1
