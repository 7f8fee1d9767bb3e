"""The sweep's table: selections, effects, the most effective layer, control bands and the verdict."""

import numpy as np
import pandas as pd
import pytest

import ot_lens as otl
from ot_lens.errors import OtLensError
from ot_lens.study import summarize
from ot_lens.tables import (
    INDUCE,
    add_holm,
    at_one_setting,
    best_singles,
    by_depth,
    control_bands,
    effects,
    methods_of,
    most_effective_layer,
    one_direction,
    real_edits,
    select,
    verdict,
    with_baseline,
)
from tests.generators_tables import METHODS, localization, localizers, with_everything_else

SWEEP = localization(layers=3, n=64)
MIXED = with_everything_else(SWEEP)


# ------------------------------------------------------------------------------------------ selection
def test_select_takes_a_value_several_values_or_none():
    assert set(select(SWEEP, method=("ace", "rfa"))["method"]) == {"ace", "rfa"}
    assert set(select(SWEEP, set="single", k=4)["layer"]) == {0, 1, 2}
    assert select(SWEEP, layer=None)["layer"].isna().all()
    with pytest.raises(KeyError, match="no_such"):
        select(SWEEP, no_such=1)


def test_real_edits_are_no_controls_and_do_not_induce_refusal():
    real = real_edits(MIXED)
    assert set(real["control"]) == {""}
    assert set(real["transport"]) == {"", "harmful_to_harmless"}
    assert real_edits(MIXED[["method", "layer"]]).shape == MIXED[["method", "layer"]].shape


def test_rows_by_depth_mix_no_settings_no_controls_and_no_pairs():
    pd.testing.assert_frame_equal(by_depth(MIXED).reset_index(drop=True), SWEEP, check_dtype=False)


def test_a_setting_of_one_method_or_of_searched_sets_does_not_displace_the_others():
    weak = SWEEP.assign(strength=SWEEP["strength"].where(SWEEP["method"] != "ace", 0.5))
    searched = select(SWEEP, set="all").assign(set="search", strength=1.0)
    both = pd.concat([SWEEP.assign(strength=0.5), searched], ignore_index=True)
    for sweep in (weak, both):
        assert len(at_one_setting(sweep)) == len(sweep)


def test_the_baseline_stays_with_the_chosen_methods_and_layer():
    rows = with_baseline(SWEEP, [("pca_ot", 4), ("ace", None)], layer=1)
    assert set(rows["method"]) == {"none", "pca_ot", "ace"}
    assert set(rows["layer"].dropna()) == {1}
    assert set(rows["k"].dropna()) == {4}
    assert set(with_baseline(SWEEP, [])["method"]) == {"none"}


# ------------------------------------------------------------------------------------------ effects
def by_layer(**measures):
    """Rows of one method: each keyword is a measure with its values at layers 1, 2, ..."""
    rows = [
        (layer, name, "harmless" if name == "kl" else "harmful", value)
        for name, values in measures.items()
        for layer, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows, columns=["layer", "measure", "prompts", "value"])


@pytest.mark.parametrize(
    ("measures", "layer"),
    [
        # A destroyed model refuses nothing, so correct answers count first.
        ({"exact_answer_rate": [0.1, 0.8], "refusal_rate": [0.0, 0.2]}, 2),
        ({"refusal_rate": [0.0, 0.2], "refusal_score": [1.0, -1.0]}, 1),
        ({"refusal_score": [1.0, -1.0]}, 2),
        ({"exact_answer_rate": [0.9, 0.9, 0.9], "kl": [0.2, 0.1, 0.1]}, 2),
        ({"exact_answer_rate": [np.nan, np.nan], "refusal_rate": [0.3, 0.1]}, 2),
        ({"kl": [0.1, 0.2]}, None),
    ],
)
def test_the_most_effective_layer_follows_the_first_measure_there_is(measures, layer):
    assert most_effective_layer(by_layer(**measures)) == layer


def test_the_most_effective_layer_of_several_methods_is_that_of_their_mean():
    one, other = by_layer(exact_answer_rate=[0.6, 0.5]), by_layer(exact_answer_rate=[0.0, 0.5])
    assert most_effective_layer(pd.concat([one, other])) == 2


def test_effects_are_the_numbers_of_the_table():
    table = effects(MIXED)
    assert table["key"].is_unique
    row = table.query("`set` == 'single' and method == 'pca_ot' and k == 4 and layer == 2").iloc[0]
    numbers = select(SWEEP, key=row["key"]).set_index(["measure", "prompts"])
    refusal = numbers.loc[("refusal_rate", "harmful")]
    assert tuple(row[["refusal", "low", "high", "n"]]) == tuple(refusal[["value", "low", "high", "n"]])
    assert row["kl"] == numbers.loc[("kl", "harmless"), "value"]
    assert row["lowers"] == (row["high"] < table.query("`set` == 'none'")["low"].item())


def test_a_table_that_measures_an_edit_twice_is_refused():
    with pytest.raises(ValueError, match="none"):
        effects(pd.concat([SWEEP, SWEEP], ignore_index=True))


def test_each_method_has_one_best_single_layer():
    best = best_singles(MIXED)
    methods = [(method, k) for method, k, _ in METHODS]
    assert (
        [method for method, _ in methods_of(best)] == [method for method, _ in methods_of(SWEEP)] == methods
    )
    ace = effects(SWEEP).query("`set` == 'single' and method == 'ace'")
    assert select(best, method="ace")["correct"].item() == ace["correct"].max()


def test_findings_without_answers_and_without_controls_claim_nothing():
    assert "not measured" in summarize(SWEEP[SWEEP["measure"] != "refusal_rate"])[0]
    assert any("nothing is localized" in text for text in summarize(SWEEP.assign(p_holm=np.nan)))


def answered_at_one_named_layer():
    """Answers under a listed layer only, as with `answers: chosen`; the score falls at every layer."""
    scores = with_shifts()
    scores = scores[(scores["value"] == -5) & (scores["control"] == "")]
    named = SWEEP[(SWEEP["layer"] == 2) & (SWEEP["set"] == "single") & (SWEEP["strength"] == 1)]
    named = named.assign(set="listed", key="listed|" + named["key"])
    named.loc[named["measure"] == "refusal_rate", ["value", "low", "high"]] = 0.3, 0.2, 0.4
    return pd.concat([SWEEP[SWEEP["set"] == "none"], scores, named], ignore_index=True)


def test_findings_speak_of_measured_rows_only():
    text = " ".join(summarize(answered_at_one_named_layer()))
    assert "With answers at layer 2 only, a single-layer edit lowers the refusal rate at layer 2" in text
    assert "The refusal score of harmful prompts falls at layers 0-2" in text
    assert "at no layer" not in text
    assert "no single layer" not in text
    scores = answered_at_one_named_layer().query("measure == 'refusal_score_shift' or `set` == 'none'")
    text = " ".join(summarize(scores))
    assert "lowers the refusal rate" not in text
    assert "by 5.0 nats" in text
    flat = scores.assign(low=-1.0, high=1.0, value=0.0)
    assert "At the layers measured (0-2) the refusal score of harmful prompts does not fall" in " ".join(
        summarize(flat)
    )
    one = summarize(flat[flat["layer"].isin([1]) | (flat["set"] == "none")])
    assert "At layer 1, the only one measured, the refusal score" in " ".join(one)
    assert "nan" not in " ".join(summarize(SWEEP[SWEEP["prompts"] != "harmless"]))


def test_a_model_that_hardly_refuses_shows_nothing_of_one_direction():
    """Few refusals under the ablation are no merit of it where there were few before."""
    ablated = SWEEP[(SWEEP["measure"] == "refusal_rate") & (SWEEP["method"] == "rfa")].index
    meek = SWEEP.copy()
    meek.loc[ablated, ["value", "low", "high"]] = 0.0, 0.0, 0.05
    assert one_direction(meek).suffices
    unedited = (meek["measure"] == "refusal_rate") & (meek["set"] == "none")
    meek.loc[unedited, ["value", "low", "high"]] = 0.05, 0.01, 0.2
    assert one_direction(meek).suffices is None
    assert "undecided" in " ".join(summarize(meek))


def test_findings_tell_what_makes_refusal_from_where_it_can_be_changed():
    located = localizers(layers=8)
    text = " ".join(summarize(SWEEP, located))
    assert "block left out, 32 harmful and 32 harmless prompts): layers 1-2 stand out" in text
    assert "(95 % interval 1 to 2, p = 0.010)" in text
    assert "a mean shift of the last token changes it: layers 6-7 stand out" in text
    assert "edits work where refusal is read, not where it is made" in text
    assert "Which blocks" not in " ".join(summarize(SWEEP))
    spread = located.assign(verdict="spread", band_first=pd.NA, band_last=pd.NA)
    text = " ".join(summarize(SWEEP, spread))
    assert "spread over the layers; those that stand out most hold 80% of the effect (p = 0.010)" in text
    one = located.assign(band_first=4, band_last=4)
    text = " ".join(summarize(SWEEP, one))
    assert "layer 4 stands out" in text
    assert "The two bands meet" in text
    nothing = located.assign(verdict="nothing")
    assert "no layer has an effect (p = 0.00)" in " ".join(summarize(SWEEP, nothing))


@pytest.mark.parametrize(
    ("interval", "conclusion"),
    [
        ((0.9, 0.7, 0.97), "one direction suffices to take most refusals away"),
        ((0.0, 0.0, 0.1), "takes most refusals away, but coherent answers do not take their place"),
        ((0.5, 0.3, 0.7), "whether coherent answers take their place is undecided"),
        (None, "one direction suffices to take most refusals away"),
    ],
)
def test_one_direction_suffices_where_answers_take_the_place_of_refusals(interval, conclusion):
    sweep = SWEEP[SWEEP["measure"] == "refusal_rate"].copy()
    sweep.loc[sweep["method"] == "rfa", ["value", "low", "high"]] = 0.0, 0.0, 0.05
    if interval:
        answers = sweep.assign(measure="coherent_success_rate")
        answers[["value", "low", "high"]] = interval
        sweep = pd.concat([sweep, answers], ignore_index=True)
    [sentence] = [text for text in summarize(sweep) if text.startswith("With the best single direction")]
    assert sentence.endswith(f"{conclusion}.")


def test_findings_praise_no_destroyed_model():
    destroyed = SWEEP[SWEEP["measure"] == "refusal_rate"].copy()
    destroyed.loc[destroyed["set"] != "none", ["value", "low", "high"]] = 0.0, 0.0, 0.1
    rubbish = destroyed.assign(measure="coherent_success_rate", value=0.02, low=0.0, high=0.1)
    text = " ".join(summarize(pd.concat([destroyed, rubbish], ignore_index=True)))
    assert "2% answered coherently (the other 98% are no coherent answers)" in text
    assert "The intervals of their coherent answers overlap" in text


# ------------------------------------------------------------------------------------------ controls
def with_shifts():
    """A sweep whose shifts of the refusal score are -5, and whose controls are -1, -2 and -3."""
    score = localization(layers=3).query("measure == 'refusal_score' and `set` == 'single'")
    real = score.assign(measure="refusal_score_shift", value=-5.0, low=-6.0, high=-4.0, p_holm=0.01)
    drawn = [real.assign(control="random_subspace", draw=number, value=-1.0 - number) for number in range(3)]
    absurd = real.assign(value=99.0, high=99.0)
    others = [absurd.assign(transport=INDUCE), absurd.assign(fitting="sequential")]
    others += [absurd.assign(strength=0.5), absurd.assign(set="all"), absurd.assign(prompts="harmless")]
    return pd.concat([real, *drawn, *others], ignore_index=True)


def test_control_bands_are_the_range_of_the_draws_next_to_the_real_edit():
    table = control_bands(with_shifts())
    real, drawn = (table[table["control"] == name] for name in ("", "random_subspace"))
    assert len(real) == len(drawn) == 27
    assert set(map(tuple, real[["value", "low", "high"]].to_numpy())) == {(-5.0, -6.0, -4.0)}
    assert set(map(tuple, drawn[["value", "low", "high"]].to_numpy())) == {(-2.0, -3.0, -1.0)}
    assert set(drawn["draws"]) == {3}


def test_without_controls_there_is_no_band_and_nothing_is_localized():
    sweep = with_shifts().query("control == ''")
    assert set(control_bands(sweep)["control"]) == {""}
    assert verdict(sweep)["band"].isna().all()
    assert not verdict(sweep)["localized"].any()


def test_the_band_of_the_verdict_is_the_prediction_limit_by_hand():
    """Draws -1, -2, -3: mean 2, sd 1; t at level 0.05 / 3 with 2 degrees of freedom is 5.34."""
    limit = 2 + 5.339 * np.sqrt(1 + 1 / 3)
    found = verdict(with_shifts())
    assert found["band"].to_numpy() == pytest.approx(-limit, abs=1e-3)
    assert not found["localized"].any()  # the near end, -4, is inside
    far = with_shifts().replace({"high": {-4.0: -8.3}})
    assert verdict(far)["localized"].all()
    assert verdict(far)["margin"].to_numpy() == pytest.approx(8.3 - limit, abs=1e-3)


def test_holm_corrects_over_the_layers_of_one_edit():
    rows = select(SWEEP, set="single", measure="refusal_rate", prompts="harmful").assign(p_value=0.01)
    corrected = add_holm(pd.concat([rows, rows.assign(p_value=np.nan, measure="kl")], ignore_index=True))
    assert set(corrected.loc[corrected["p_value"].notna(), "p_holm"]) == {0.03}
    assert corrected.loc[corrected["p_value"].isna(), "p_holm"].isna().all()


# ------------------------------------------------------------------------------------------ overview
def test_the_overview_has_one_row_per_edit_and_one_column_per_measure():
    shown = otl.overview(SWEEP)
    assert len(shown) == SWEEP["key"].nunique()
    assert shown.index[0][:2] == ("unedited", "")
    assert {"harmful: refusal_rate (%, n = 64)", "harmless: kl (nats, n = 64)"} <= set(shown.columns)
    row = select(SWEEP, layers="2", method="pca_ot", k=4, measure="refusal_rate", prompts="harmful").iloc[0]
    cells = shown.xs(("pca_ot (k = 4)", "2"), level=("method", "layers"))
    expected = f"{100 * row['value']:.0f} ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    assert cells["harmful: refusal_rate (%, n = 64)"].item() == expected


def test_the_overview_names_what_was_varied_and_leaves_controls_out():
    shown = otl.overview(MIXED)
    assert {"set", "strength", "fitting", "tokens"} <= set(shown.index.names)
    assert shown.index.is_unique
    with pytest.raises(OtLensError, match="no edit"):
        otl.overview(SWEEP.assign(control="random_subspace"))
    # Edits that the columns cannot tell apart share a cell.
    assert otl.overview(pd.concat([SWEEP, SWEEP])).iloc[1, 0].count(" | ") == 1
