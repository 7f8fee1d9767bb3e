"""Figures: descriptions hold what the tables hold, and both renderers draw them."""

import re
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

import ot_lens as otl
from ot_lens import plots
from ot_lens.errors import NothingToDrawError, OtLensError, TableError
from ot_lens.plots import gallery, measures, paper, rows, screen, style
from ot_lens.plots.description import (
    Band,
    Cells,
    ColorScale,
    Curve,
    Ellipse,
    Line,
    Path,
    Points,
    Reference,
)  # fmt: skip
from ot_lens.plots.figures import (
    ground_truth,
    localization_controls,
    method_comparison,
    principal_plane,
    restored_refusals,
    selectivity,
)
from ot_lens.plots.screen.elements import band_outline
from ot_lens.plots.screen.text import position
from ot_lens.tables import most_effective_layer
from tests import generators_tables as tables_of

TABLES = tables_of.tables()
SWEEP = TABLES["localization"]
ENTRIES = {entry.name: entry for entry in plots.GALLERY}
ENDS = ["low", "high"]


def describe(name, tables=TABLES, **options):
    needed, own = gallery.inputs(ENTRIES[name], tables)
    return ENTRIES[name].describe(*needed, **own, **options)


@cache
def described(name):
    """Made once: no test changes a description."""
    return describe(name)


@cache
def on_paper(name):
    """Drawn once: no test changes the figure."""
    return paper.draw(described(name))


def draw(name, tables=TABLES, **options):
    return paper.draw(describe(name, tables), **options)


def element(name, kind, gid):
    """The one element of that kind and name."""
    [found] = [e for panel in described(name).panels for e in panel.of(kind) if e.name == gid]
    return found


def artist(figure, gid):
    """The one artist of that gid."""
    [found] = figure.findobj(lambda a: a.get_gid() == gid)
    return found


def curve_of(table, x="layer", value="value", ends=("low", "high")):
    """Columns of the rows, ordered by x."""
    return table.sort_values(x)[[x, value, *ends]].to_numpy(float)


def columns(curve):
    return np.stack([curve.x, curve.value, curve.low, curve.high], axis=1)


# ------------------------------------------------------------------ descriptions hold the tables

WITHOUT_ROGUE = "quantity == 'w2_squared' and robust == 'exclude'"
CKA_OF_HARMFUL = "quantity == 'linear_cka' and `class` == 'harmful'"
AT_THE_END = "quantity == 'mahalanobis' and layer == 7"


@pytest.mark.parametrize(
    ("name", "line", "table", "query"),
    [
        ("w2_per_layer", "w2_bures", "geometry", "quantity == 'w2_bures'"),
        ("effective_rank", "effective_rank_harmful", "geometry", "quantity == 'effective_rank_harmful'"),
        ("diagnostics", "gap", "geometry", "quantity == 'gap'"),
        ("massive_activations", "w2_squared/exclude", "massive", WITHOUT_ROGUE),
        ("class_angles", "class_angle_1", "class_angles", "component == 1"),
        ("map_quality", "w2_after/mean_shift", "map_quality", "quantity == 'w2_after'"),
        ("visibility_to_monitor", "mahalanobis/mean_shift", "visibility", AT_THE_END),
        ("model_similarity", "CKA/Mean shift/harmful", "model_similarity", CKA_OF_HARMFUL),
    ],
)  # fmt: skip
def test_lines_and_nulls_are_those_of_the_table(name, line, table, query):
    rows_of, x = TABLES[table].query(query), "edited_layer" if table == "visibility" else "layer"
    rows_of = rows_of[rows_of["method"] == "mean_shift"] if "method" in rows_of else rows_of
    value = "angle" if table == "class_angles" else "value"
    np.testing.assert_array_equal(columns(element(name, Line, line).curve), curve_of(rows_of, x, value))
    null = curve_of(rows_of, x, "null_mean", ("null_low", "null_high"))
    np.testing.assert_array_equal(columns(element(name, Band, line).curve), null)


@pytest.mark.parametrize("measure", ["refusal_rate/harmful", "kl/harmless"])
def test_localization_curves_are_those_of_the_table(measure):
    sweep = measures.measured(measures.sweep_rows(SWEEP), *measure.split("/"))
    for method, k, _ in tables_of.METHODS:
        label = style.method_mark(method, k).label
        single = sweep[(sweep["method"] == method) & sweep["layer"].notna()]
        single = single[single["k"].isna() if k is None else single["k"] == k]
        line = element("localization_curves", Line, f"{measure}/{label}")
        np.testing.assert_array_equal(columns(line.curve), curve_of(single))
        together = element("localization_curves", Points, f"all:{measure}/{label}")
        assert (together.curve.x > 7).all()


def test_half_of_the_cosines_are_enough_and_those_outside_the_null_are_bold():
    table = TABLES["cosines"]
    [cells] = described("direction_cosines").panels[0].of(Cells)
    half = ENTRIES["direction_cosines"].describe(table.query("layer_a <= layer_b"))
    np.testing.assert_array_equal(half.panels[0].cells.matrix, cells.matrix)
    ax = on_paper("direction_cosines").axes[0]
    bold = {tuple(map(round, text.get_position())) for text in ax.texts if text.get_fontweight() == "bold"}
    outside = table.query("layer_a != layer_b and (cosine > null_high or cosine < null_low)")
    outside = outside[["layer_b", "layer_a"]]
    assert bold == set(outside.itertuples(index=False, name=None)) != set()


RATES = "measure == 'refusal_rate' and prompts == 'harmful' and `set` == 'single'"
OF_PCA_OT = f"{RATES} and strength == 1 and method == 'pca_ot'"


@pytest.mark.parametrize(
    ("name", "table", "query", "pivot"),
    [
        ("rank_by_layer", "localization", OF_PCA_OT, "k layer value"),
        ("strength_by_layer", "localization", f"{RATES} and method == 'ace'", "strength layer value"),
        ("layer_angles", "layer_angles", "`class` == 'harmful' and component == 1", "layer_a layer_b angle"),
        ("direction_cosines", "cosines", "n > 0", "layer_a layer_b cosine"),
        ("layer_similarity", "layer_similarity", CKA_OF_HARMFUL, "layer_a layer_b value"),
    ],
)  # fmt: skip
def test_cells_are_those_of_the_table(name, table, query, pivot):
    panel = next(p for p in described(name).panels if name != "strength_by_layer" or p.title == "ACE")
    index, column, value = pivot.split()
    cells = TABLES[table].query(query).pivot(index=index, columns=column, values=value)
    np.testing.assert_array_equal(panel.cells.matrix, cells)


def test_languages_are_shown_at_the_best_layer_and_what_permuted_labels_do_is_marked():
    table = TABLES["languages"]
    panels = described("across_languages").panels
    assert [panel.title for panel in panels] == [
        "Mean shift, layer 7",
        "PCA-OT (k = 2), layer 7",
        "directions, layer 7",
    ]
    [cells] = panels[0].of(Cells)
    shares = table.query("quantity == 'share' and method == 'mean_shift' and layer == 7")
    wanted = shares.pivot(index="fitted_in", columns="measured_in", values="value")
    np.testing.assert_array_equal(cells.matrix, wanted.loc[list(cells.rows), list(cells.columns)])
    assert np.isnan(cells.matrix[:, 2]).all()  # nothing to transfer to
    assert cells.chance.tolist() == 3 * [[False, False, True]]
    [cosines] = panels[2].of(Cells)
    np.testing.assert_array_equal(cosines.matrix, cosines.matrix.T)
    assert cosines.chance[0].tolist() == [False, False, True]


def test_edits_and_the_base_model_have_a_column_each_with_the_edited_layer():
    panels = described("model_similarity").panels
    assert [panel.title for panel in panels] == 2 * ["Mean shift", "PCA-OT (k = 8)", "base model"]
    assert [[r.value for r in panel.of(Reference)] for panel in panels] == 2 * [[4.0], [4.0], []]
    edits = TABLES["model_similarity"].query("comparison == 'edit'")
    caption = ENTRIES["model_similarity"].caption
    assert "base" not in caption(edits)
    assert "layer 4" in caption(edits)
    assert "layer 4" not in caption(TABLES["model_similarity"].query("comparison == 'base'"))


def test_pairs_are_those_of_the_table_and_the_best_is_outlined():
    table = SWEEP.copy()
    wanted = (table["set"] == "pair") & (table["layers"] == "1,4") & (table["method"] == "ace")
    table.loc[wanted, "value"] = -40.0
    [cells] = [p.cells for p in describe("pair_matrix", {"localization": table}).panels if p.title == "ACE"]
    assert cells.matrix[4, 1] == -40.0
    assert np.isnan(cells.matrix[1, 4])
    assert cells.best == (4, 1)
    single = table.query(
        "method == 'ace' and `set` == 'single' and measure == 'refusal_score' and strength == 1"
    )
    np.testing.assert_array_equal(np.diag(cells.matrix), single["value"])


def test_points_and_displacements_of_the_plane_are_those_of_the_table():
    here, state = TABLES["plane"].query("layer == 4"), "pca_ot (k = 2)"
    description = principal_plane.principal_plane(TABLES["plane"], TABLES["plane_ellipses"], states=[state])
    [panel] = [p for p in description.panels if p.frame == 4]
    for points in panel.of(Points):
        label, _, at = points.name.removeprefix("points:").partition("/")
        table = here[(here["class"] == label) & (here["state"] == at)]
        np.testing.assert_array_equal(columns(points.curve)[:, :2], table[["pc1", "pc2"]])
        assert points.ids == tuple(table["prompt"])
    arrows = principal_plane.displacements(here, state, most=1000)
    before, after = (
        here.query("`class` == 'harmful' and state == @at")[["pc1", "pc2"]].to_numpy()
        for at in ("before", state)
    )
    np.testing.assert_array_equal(arrows[:, :2], before)
    np.testing.assert_allclose(arrows[:, :2] + arrows[:, 2:], after)
    assert len(principal_plane.displacements(here, state)) == principal_plane.MOST_ARROWS


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 9), st.floats(0.1, 9), st.floats(-0.95, 0.95))
def test_an_ellipse_is_at_the_chi_square_quantile(mean1, mean2, var1, var2, correlation):
    cov = correlation * np.sqrt(var1 * var2)
    matrix = ((var1, cov), (cov, var2))
    centred = Ellipse("", "", (mean1, mean2), matrix).outline() - [mean1, mean2]
    radii = np.einsum("pi,ij,pj->p", centred, np.linalg.inv(matrix), centred)
    np.testing.assert_allclose(radii, stats.chi2(2).ppf(0.95), rtol=1e-7)


def test_the_ellipse_of_a_projected_cloud_is_a_segment():
    outline = Ellipse("", "", (1.0, 2.0), ((0.0, 0.0), (0.0, 4.0))).outline()
    np.testing.assert_allclose(outline[:, 0], 1.0)
    np.testing.assert_allclose(np.ptp(outline[:, 1]), 4 * np.sqrt(stats.chi2(2).ppf(0.95)), rtol=1e-3)


@pytest.mark.parametrize("kind", ["best", "all"])
def test_methods_are_compared_at_their_best_layer_and_at_all_with_intervals(kind):
    for method in plots.contenders(measures.sweep_rows(SWEEP)):
        values = method.best if kind == "best" else method.together
        panel, name = described("method_comparison").panels[2], f"{kind}:{method.mark.label}"
        [curve] = [points.curve for points in panel.of(Points) if points.name == name]
        ends = [curve.x, curve.x_low, curve.x_high, curve.value, curve.low, curve.high]
        of_table = values["attack_success_rate/harmful"] + values["exact_answer_rate/harmful"]
        np.testing.assert_array_equal(np.ravel(ends), of_table)
        name = f"{kind}:refusal_rate/harmful/{method.mark.label}"
        curve = element("method_intervals", Points, name).curve
        ends = np.ravel([curve.x, curve.x_low, curve.x_high])
        np.testing.assert_array_equal(ends, values["refusal_rate/harmful"])


@pytest.mark.parametrize("left", ["refusal_rate", "refusal_score", "kl"])
def test_of_one_layer_the_most_effective_is_that_one_if_an_effect_was_measured(left):
    sweep = measures.sweep_rows(SWEEP)
    kept = sweep[sweep["measure"].isin([left, "perplexity"])]
    for layer in sorted(set(sweep["layer"].dropna())):
        here = kept[(kept["layer"] == layer) | kept["layer"].isna()]
        for (_, rows_of), found in zip(rows.marked_methods(here), plots.contenders(here), strict=True):
            assert found.layer == most_effective_layer(rows_of) == (None if left == "kl" else layer)


def test_a_sweep_of_everything_else_gives_the_same_figures():
    plain = tables_of.localization()
    sweep = tables_of.with_everything_else(plain)
    one, other = (describe("localization_curves", {"localization": table}) for table in (plain, sweep))
    for mine, theirs in zip(one.panels, other.panels, strict=True):
        for a, b in zip(mine.of(Line), theirs.of(Line), strict=True):
            np.testing.assert_array_equal(columns(a.curve), columns(b.curve))
    assert plots.contenders(measures.sweep_rows(plain)) == plots.contenders(measures.sweep_rows(sweep))


def test_controls_are_behind_the_edit_of_their_method_and_named_in_the_caption():
    table, label = TABLES["controls"], "PCA-OT (k = 4)"
    own = table[(table["method"] == "pca_ot") & (table["k"] == 4)]
    shift = element("localization_controls", Line, f"shift/{label}")
    np.testing.assert_array_equal(columns(shift.curve), curve_of(own[own["control"] == ""]))
    for control in ("random_subspace", "permuted_labels"):
        band = element("localization_controls", Band, f"{control}/{label}")
        np.testing.assert_array_equal(columns(band.curve), curve_of(own[own["control"] == control]))
    text = localization_controls.caption(table[table["control"] != "random_subspace"])
    assert "permuted class labels" in text
    assert "random subspace" not in text
    assert "4 draws" in localization_controls.caption(table)
    without = table.query("control == ''")
    assert not any(p.of(Band) for p in describe("localization_controls", {"controls": without}).panels)
    assert "Hatched" not in localization_controls.caption(without)


def test_axes_widen_for_values_beyond_their_usual_limits():
    table = TABLES["map_quality"].copy()
    table.loc[table["quantity"] == "cost_over_bound", ["value", "high"]] = 3.0
    limits = {p.title: p.y.limits for p in describe("map_quality", {"map_quality": table}).panels}
    assert limits["cost over its bound"] == (1.0, 3.0)
    low = {"visibility": TABLES["visibility"].assign(low=0.2)}
    panels = describe("visibility_to_monitor", low).panels
    assert [panel.y.limits for panel in panels] == [None, (0.2, 1.0), (0.2, 1.0)]


def test_what_is_known_is_next_to_what_was_measured():
    behaviour, ranks, directions = described("ground_truth").panels
    known, measured = behaviour.of(Points)
    np.testing.assert_array_equal(known.curve.value, [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(
        measured.curve.value, TABLES["ground_truth"].query("part == 'behaviour'")["value"]
    )
    assert [name for _, name in ranks.x.ticks] == ["1", "2", "4"]
    assert [reference.value for reference in ranks.of(Reference)] == [2.0]  # four sentences: the third rank
    assert [reference.value for reference in directions.of(Reference)] == [4.0]
    assert "4 categories, 4 sentences, 4 first words" in ground_truth.caption(TABLES["ground_truth"])


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([[0, 0], [1, 1], [2, 0.5]], [[0, 0], [1, 1]]),
        ([[3, 1], [1, 1], [2, 2]], [[1, 1], [2, 2]]),
        ([[1, 0.2], [1, 0.9]], [[1, 0.9]]),
    ],
)
def test_the_front_holds_the_points_that_no_other_beats(points, front):
    np.testing.assert_array_equal(method_comparison.front(np.array(points, dtype=float)), front)


OF_A_VARIANT = [
    ("Mean shift", "plain", "mean_shift", None),
    ("Mean shift", "hard gate", "mean_shift_gated_threshold", None),
    ("PCA-OT (k = 2)", "null space", "pca_ot_null_space", 2),
]


def panel_of(name, title):
    [panel] = [panel for panel in described(name).panels if panel.title == title]
    return panel


def points_of(panel, name):
    [points] = [points for points in panel.of(Points) if points.name == name]
    return points


def edits_of(table, method, k):
    """Cost and score of every edit of a single layer, by layer and strength."""
    own = table[(table["method"] == method) & (table["set"] == "single")]
    own = own[own["k"].isna() if k is None else own["k"] == k]
    both = own[own["measure"].isin(["kl", "refusal_score"])]
    return both.pivot(index=["layer", "strength"], columns="measure", values="value")


@pytest.mark.parametrize(("title", "label", "method", "k"), OF_A_VARIANT)
def test_variants_are_shown_at_every_layer_and_strength_with_their_front(title, label, method, k):
    panel, edits = panel_of("selectivity", title), edits_of(SWEEP, method, k)
    faint = points_of(panel, f"others:{label}")
    np.testing.assert_array_equal(columns(faint.curve)[:, :2], edits)
    assert faint.notes[:2] == ("layer 0, strength 0.25", "layer 0, strength 0.5")
    [front] = [path for path in panel.of(Path) if path.name == f"front:{label}"]
    at = edits.to_numpy()
    unbeaten = [a for a in at if not any((b <= a).all() and (b < a).any() for b in at)]
    np.testing.assert_array_equal(np.stack([front.x, front.y], axis=1), sorted(map(tuple, unbeaten)))
    assert front.steps
    assert len(unbeaten) < len(at)
    sweep = measures.sweep_rows(SWEEP)
    [best] = [c for c in plots.contenders(sweep) if c.mark == style.method_mark(method, k)]
    large = points_of(panel, f"best:{label}")
    ends = [large.curve.x, large.curve.x_low, large.curve.x_high]
    ends += [large.curve.value, large.curve.low, large.curve.high]
    np.testing.assert_array_equal(np.ravel(ends), best.best[KL] + best.best[SCORE])
    assert large.notes == (f"layer {best.layer}, its best",)


KL, SCORE = "kl/harmless", "refusal_score/harmful"


def test_variants_look_the_same_in_every_panel_and_the_unedited_model_is_in_each():
    looks = [{e.mark.label: e.mark for e in panel.of(Points)} for panel in described("selectivity").panels]
    assert [panel.title for panel in described("selectivity").panels] == ["Mean shift", "PCA-OT (k = 2)"]
    assert [list(look) for look in looks] == [
        ["plain", "null space", "hard gate"],
        ["plain", "null space", "gated"],
    ]
    assert looks[0]["null space"] == looks[1]["null space"]
    everything = {mark.label: mark for look in looks for mark in look.values()}
    spare = style.variant_mark(("null_space", "gated"))
    assert spare.label == "null space, gated"
    looks = [(mark.color, mark.marker) for mark in (*everything.values(), spare)]
    assert len({color for color, _ in looks}) == len({marker for _, marker in looks}) == 5
    [score] = SWEEP.query("method == 'none' and measure == 'refusal_score'")["value"]
    for panel in described("selectivity").panels:
        assert [reference.value for reference in panel.of(Reference)] == [score]


def test_a_caption_names_the_edited_tokens_where_variants_differ_and_how_many_methods_are_left_out():
    table = SWEEP.copy()
    assert "tokens differ" not in selectivity.caption(table)
    table.loc[table["method"] == "mean_shift_null_space", "tokens"] = "last"
    text = selectivity.caption(table)
    assert "(Mean shift: plain on all, null space on last, hard gate on all)" in text
    many = {("pca_ot", k, name): (0.3, 0.9) for k in (1, 2, 4, 8) for name in ("null_space", "gated")}
    many |= {(name, None, "gated"): (0.3, 0.9) for name in ("directional_ablation", "ace", "mean_shift")}
    table = tables_of.with_variants(tables_of.localization(layers=2), many)
    assert len(describe("selectivity", {"localization": table}).panels) == selectivity.MOST_PANELS
    assert "the first 6 of 7" in selectivity.caption(table)


def test_variants_are_not_mixed_with_controls_and_other_settings():
    plain = tables_of.with_variants(tables_of.localization())
    one, other = (
        describe("selectivity", {"localization": table})
        for table in (plain, tables_of.with_everything_else(plain))
    )
    for mine, theirs in zip(one.panels, other.panels, strict=True):
        for points in mine.of(Points):
            shown = points_of(theirs, points.name)
            known = [not note.endswith("strength 0.5") for note in shown.notes]  # of the other strength
            np.testing.assert_array_equal(columns(points.curve), columns(shown.curve)[known])


def test_no_modified_form_takes_the_rows_of_a_rank():
    plain = tables_of.localization()
    one, other = (
        describe("rank_by_layer", {"localization": table})
        for table in (plain, tables_of.with_variants(plain))
    )
    for mine, theirs in zip(one.panels, other.panels, strict=True):
        np.testing.assert_array_equal(mine.cells.matrix, theirs.cells.matrix)


@pytest.mark.parametrize("edits", ["attack and defence", "defence"])
def test_restored_refusals_are_those_of_the_table(edits):
    table, panel = TABLES["defence"], panel_of("restored_refusals", restored_refusals.TITLES[edits])
    best = restored_refusals.best_layers(table)
    assert len(best) == 4
    own = table[table["edits"] == edits]
    for (method, k), edits_of_one in own.groupby(["method", "k"], dropna=False):
        label = style.method_mark(method, k).label
        wide = edits_of_one.pivot(index="layer", columns="prompts", values=["value", "low", "high"])
        large, faint = (points_of(panel, f"{kind}:{label}") for kind in ("best", "others"))
        for axis, prompts in (("x", "harmless"), ("y", "harmful")):
            at = wide.xs(prompts, axis=1, level="prompts")
            curve = (
                large.curve
                if axis == "y"
                else Curve(*(large.curve.x,) * 2, large.curve.x_low, large.curve.x_high)
            )
            np.testing.assert_array_equal(np.ravel(columns(curve)[:, 1:]), at.loc[best[label]])
            shown = faint.curve.value if axis == "y" else faint.curve.x
            np.testing.assert_array_equal(shown, at["value"].drop(best[label]))
        assert large.notes == (f"layer {best[label]}, its best",)
        assert faint.notes == tuple(f"layer {layer}" for layer in wide.index.drop(best[label]))
        if edits == "attack and defence":
            gain = wide["value"]["harmful"] - wide["value"]["harmless"]
            assert gain[best[label]] == gain.max()
    for label, kind in (("no intervention", "none"), ("attack alone", "attack")):
        curve = points_of(panel, f"reference:{label}").curve
        known = table[table["edits"] == kind].set_index("prompts")["value"]
        assert (curve.x, curve.value) == (known["harmless"], known["harmful"])


def test_the_caption_of_restored_refusals_names_the_attack_the_best_layers_and_the_ideal():
    text = restored_refusals.caption(TABLES["defence"])
    for part in ("Mean shift at layer 2", "top left", "n = 64 prompts", "Mean shift, hard gate: layer"):
        assert part in text


def test_defences_measured_under_the_attack_alone_or_on_one_class_alone():
    table = TABLES["defence"]
    attacked = table[table["edits"] != "defence"]
    assert [panel.title for panel in describe("restored_refusals", {"defence": attacked}).panels] == [
        "under the attack"
    ]
    for rest in (table[table["prompts"] == "harmful"], table[table["edits"].isin(["none", "attack"])]):
        with pytest.raises(NothingToDrawError):
            describe("restored_refusals", {"defence": rest})


def test_numbers_in_cells_have_no_negative_zero():
    scale = ColorScale("", -9.0, 9.0)
    assert [scale.text(value) for value in (-0.04, 0.04, -2.34)] == ["0.0", "0.0", "\u22122.3"]
    assert ColorScale("", 0.0, 1.0, percent=True).text(0.126) == "13"


# ------------------------------------------------------------------ both renderers draw descriptions


def band_ends(collection):
    """Low and high of a filled band, by x."""
    xy = collection.get_paths()[0].vertices
    return [(xy[xy[:, 0] == x, 1].min(), xy[xy[:, 0] == x, 1].max()) for x in np.unique(xy[:, 0])]


@pytest.mark.parametrize("name", list(ENTRIES))
def test_paper_draws_every_element(name):
    figure = on_paper(name)
    for ax, panel in zip(figure.axes, described(name).on_paper, strict=False):
        for line in panel.of(Line):
            np.testing.assert_array_equal(
                artist(ax, f"line:{line.name}").get_xydata(), columns(line.curve)[:, :2]
            )
            np.testing.assert_allclose(band_ends(artist(ax, f"band:{line.name}")), columns(line.curve)[:, 2:])
        for band in panel.of(Band):
            np.testing.assert_allclose(band_ends(artist(ax, f"null:{band.name}")), columns(band.curve)[:, 2:])
        for cells in panel.of(Cells):
            np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), cells.matrix)


@pytest.mark.parametrize("name", list(ENTRIES))
def test_a_screen_draws_every_element_in_the_same_colours(name):
    entry = ENTRIES[name]
    needed, options = gallery.inputs(entry, TABLES)
    description = entry.describe(*needed, **options, **entry.on_screen)
    figure = screen.draw(description)
    lines = [trace for trace in figure.data if trace.type == "scatter" and "markers" in trace.mode]
    drawn = {(trace.name, np.round(np.asarray(trace.y, float), 3).tobytes()): trace for trace in lines}
    maps = iter([trace for trace in figure.data if trace.type == "heatmap"])
    for panel in description.panels:
        for cells in panel.of(Cells):
            z = np.asarray(next(maps).z, float)
            low = cells.scale.low if cells.scale.log else -np.inf
            np.testing.assert_allclose(
                10**z if cells.scale.log else z, np.maximum(cells.matrix, low), rtol=1e-4
            )
        for e in (*panel.of(Points), *(line for line in panel.of(Line) if line.markers)):
            y = position(e.curve.value, panel.y.scale).astype(np.float32)
            trace = drawn[e.mark.label, np.round(y.astype(float), 3).tobytes()]
            assert trace.marker.color == e.mark.color
    domains = [axis["domain"] for key, axis in screen.stacked(figure).items() if re.match("yaxis", key)]
    assert all(below[1] < above[0] for above, below in pairwise(domains))  # stacked, with a gap


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (' "])', '"])'), (r"'\n'", r"'\n'"), ("{x}^2", "{x}^2"), ("“é…”", "“é…”"), ("<eos>", "‹eos›"),
        ("$x$", "U+0024xU+0024"), ("\n", "U+000A"), (" ", "U+0020"), ("a\u202e", "aU+202E"), ("日", "U+65E5"),
    ],
)  # fmt: skip
def test_a_token_is_shown_unless_fonts_lack_it_or_markup_reads_it(token, shown):
    description = ENTRIES["readout"].describe(TABLES["readout"].assign(token=token))
    names = {name.partition(": ")[2] for panel in description.panels for _, name in panel.y.ticks}
    assert names == {", ".join([shown] * 3)}


def test_panels_that_share_an_axis_show_its_numbers_in_front_of_each_row():
    figure = screen.draw(described("model_similarity"))
    shown = [figure.layout[f"yaxis{number or ''}"].showticklabels for number in (0, *range(2, 7))]
    assert shown == [True, False, False] * 2


def test_a_band_on_a_screen_is_broken_where_nothing_was_measured():
    low, high = np.array([0.0, 1, np.nan, 3, 4]), np.array([1.0, 2, np.nan, 4, 5])
    xs, ys = band_outline(Curve(np.arange(5.0), (low + high) / 2, low, high))
    np.testing.assert_array_equal(xs, [0, 1, 1, 0, np.nan, 3, 4, 4, 3])
    np.testing.assert_array_equal(ys, [1, 2, 1, 0, np.nan, 4, 5, 4, 3])


def test_hover_texts_say_value_interval_and_n():
    figure = screen.localization_curves(SWEEP)
    ace = next(t for t in figure.data if t.name == "ACE" and t.text is not None)
    assert re.fullmatch(
        r"<b>ACE</b><br>layer 3<br>refuses [\d.]+ % \[[\d.]+ %, [\d.]+ %\]<br>n = 64", ace.text[3]
    )


def test_a_slider_shows_one_layer_at_a_time():
    figure = screen.covariance_spectra(TABLES["spectra"], layer=3)
    [slider] = figure.layout.sliders
    assert slider.steps[slider.active].label == "3"
    assert {sum(step.args[0]["visible"]) for step in slider.steps} == {4}  # a line and a band for each class
    assert sum(trace.visible for trace in figure.data) == 4
    plane = screen.principal_plane(TABLES["plane"], TABLES["plane_ellipses"], layer=4)
    assert plane.layout.yaxis.scaleanchor in {"x", "x1"}


def test_dots_mark_the_cells_that_were_measured_and_that_the_null_does_not_explain():
    table = TABLES["interchange"]
    cells = [panel.cells for panel in described("interchange_map").panels]
    expected = [[(row, column) for row, column in np.argwhere(one.significant)] for one in cells]
    assert all(0 < len(places) < one.matrix.size for places, one in zip(expected, cells, strict=True))
    drawn = plots.interchange_map(table).findobj(lambda artist: artist.get_gid() == "significant")
    assert [list(zip(*dots.get_data()[::-1], strict=True)) for dots in drawn] == expected
    shown = list(screen.interchange_map(table).select_traces({"name": style.SIGNIFICANT}))
    places = [
        [(one.rows.index(str(y)), one.columns.index(str(x))) for x, y in zip(trace.x, trace.y, strict=True)]
        for trace, one in zip(shown, cells, strict=True)
    ]
    assert places == expected
    assert [trace.showlegend for trace in shown] == [True] + [False] * (len(shown) - 1)


def test_no_cell_is_significant_that_was_not_measured_or_has_no_null():
    matrix = np.array([[1.0, np.nan]])
    scale = ColorScale("", 0.0, 1.0)
    assert Cells(matrix, "ab", "c", scale, np.zeros((1, 2), dtype=bool)).significant.tolist() == [
        [True, False]
    ]
    assert not Cells(matrix, "ab", "c", scale).significant.any()


def test_cells_of_contributions_are_the_class_differences_of_the_table():
    table = TABLES["contributions"]
    [panel] = described("contributions").panels
    cells = panel.cells
    assert list(cells.columns) == ["0", "1", "2", "3", "attn", "MLP"]
    rows = table[table["prompts"] == "difference"]
    for layer in range(8):
        own = rows[rows["layer"] == layer]
        parts = [own[own["component"] == kind] for kind in ("head", "attention", "mlp")]
        expected = pd.concat(parts)
        np.testing.assert_array_equal(cells.matrix[layer], expected["value"])
        assert cells.chance[layer].tolist() == (expected["p_holm"] >= 0.05).tolist()
    assert "head 2 of layer 4" in ENTRIES["contributions"].caption(table)
    whole = table[~table["component"].isin(["head", "attention", "mlp"])]
    with pytest.raises(NothingToDrawError):
        describe("contributions", {"contributions": whole})


@pytest.mark.parametrize("layers", [1, 80])
def test_contributions_of_any_depth_and_width_are_drawn(layers):
    drawn = draw("contributions", {"contributions": tables_of.contributions(layers, heads=64)})
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()][-2:] == ["attn", "MLP"]


@pytest.mark.parametrize("layers", [8, 30])
def test_dots_have_a_legend_where_there_is_no_room_for_bold_numbers(layers):
    table = tables_of.cosines(layers)
    texts = [
        text.get_text() for legend in plots.direction_cosines(table).legends for text in legend.get_texts()
    ]
    names = [trace.name for trace in screen.direction_cosines(table).data[1:]]
    assert texts == names == [style.SIGNIFICANT] * (layers > style.MOST_NAMES)


# ------------------------------------------------------------------ one visual language


def luminance(color):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))


def lightness(color):
    """CIE L* of a colour printed in grey."""
    return 116 * luminance(color) ** (1 / 3) - 16


def contrast(a, b):
    light, dark = sorted([luminance(a), luminance(b)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


MARKS = [
    *style.CLASSES.values(),
    *style.PARTS.values(),
    *(style.method_mark(name) for name in style.METHODS),
    *(style.method_mark("pca_ot", k) for k in style.RANKS),
    style.method_mark("one of the user's own"),
    *(style.variant_mark((name,) if name else ()) for name in style.VARIANTS),
]


@pytest.mark.parametrize("page", ["#ffffff", "#14171c"])
def test_every_colour_is_seen_on_a_light_and_on_a_dark_page(page):
    assert {mark.label: contrast(mark.color, page) for mark in MARKS if contrast(mark.color, page) < 3} == {}


def test_no_two_methods_look_alike_even_without_colour():
    methods = [style.method_mark(name) for name in style.METHODS if name != "pca_ot"]
    methods += [style.method_mark("pca_ot", k) for k in style.RANKS]
    assert len({mark.color for mark in methods}) == len(methods)
    for a, b in combinations(methods, 2):
        if a.family == b.family:
            assert (a.marker, a.dash) != (b.marker, b.dash)


def test_a_grey_print_tells_the_classes_apart():
    harmful, harmless = style.CLASSES.values()
    assert lightness(harmful.color) - lightness(harmless.color) > 15
    assert harmful.marker != harmless.marker
    assert harmful.dash != harmless.dash
    faces = [artist(on_paper("principal_plane").axes[0], f"points:{label}/before") for label in style.CLASSES]
    assert [face.get_markerfacecolor() == "none" for face in faces] == [False, True]


def test_heat_maps_grow_evenly_lighter_in_grey():
    shades = mpl.colormaps[style.SEQUENTIAL[0]](np.linspace(0, 1, 32))
    assert (np.diff([lightness(shade[:3]) for shade in shades]) > 0).all()


def test_classes_stay_apart_for_a_deuteranope():
    simulate = np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    )  # Machado 2009
    harmful, harmless = (simulate @ to_rgb(mark.color) for mark in style.CLASSES.values())
    assert np.linalg.norm(harmful - harmless) > 0.4
    red, green = (simulate @ to_rgb(color) for color in ("#D0501A", "#6F8B1E"))
    assert np.linalg.norm(red - green) < 0.4  # the check can fail


# ------------------------------------------------------------------ layouts and settings of a user


@pytest.mark.parametrize("name", ["w2_per_layer", "principal_plane", "direction_cosines"])
def test_global_settings_are_unchanged_also_after_an_error(name):
    with mpl.rc_context({"font.size": 17.0, "axes.grid": False}):
        before = dict(mpl.rcParams)
        draw(name)
        empty = {table: frame.iloc[:0] for table, frame in TABLES.items()}
        with pytest.raises(NothingToDrawError):
            draw(name, empty)
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("localization_curves", (4, 3)),
        ("covariance_spectra", (2, 4)),
        ("method_intervals", (1, 5)),
        ("principal_plane", (2, 3)),
        ("direction_cosines", (1, 1)),
    ],
)
def test_a_figure_is_drawn_into_axes_of_the_user(name, shape):
    own = Figure(layout="constrained")
    axes = own.subfigures(1, 2)[1].subplots(*shape, squeeze=False)
    assert draw(name, axes=axes) is own
    assert all(ax.has_data() for ax in axes.flat[: 5 if name == "principal_plane" else None])
    with pytest.raises(OtLensError, match="2 axes given"):
        draw(name, axes=[own.add_subplot(), own.add_subplot()])


# ------------------------------------------------------------------ every kind of run
# Of eighty layers: test_plots_on_paper.py, and test_report.py on a screen.


def ruined(tables, share=0.3):
    """Tables with NaN rows: values that were not measured."""
    rng = np.random.default_rng(1)
    spoilt = {}
    for name, whole in tables.items():
        table = whole.copy()
        for column in table.select_dtypes("float").columns.drop(["strength"], errors="ignore"):
            table.loc[rng.random(len(table)) < share, column] = np.nan
        spoilt[name] = table
    return spoilt


SHAPES = {
    "one layer": lambda: tables_of.tables(layers=1, methods=tables_of.METHODS[::2]),
    "one method": lambda: tables_of.tables(methods=tables_of.METHODS[:1]),
    "a registered method": lambda: tables_of.tables(methods=(*tables_of.METHODS[:2], ("my_map", None, 5.0))),
    "NaN rows": lambda: ruined(tables_of.tables(layers=4, methods=tables_of.METHODS[::2])),
}


@cache
def shaped(shape):
    return SHAPES[shape]()


# What such a run cannot show.
BEYOND = {
    "one layer": {"pair_matrix"},
    "one method": {"rank_by_layer", "selectivity"},
    "a registered method": {"rank_by_layer", "selectivity"},
}
OF_THE_SWEEP = [entry.name for entry in plots.GALLERY if entry.tables == ("localization",)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for shape in SHAPES for name in (OF_THE_SWEEP if "method" in shape else ENTRIES)],
)
def test_every_kind_of_run_is_drawn(name, shape):
    tables = shaped(shape)
    if name in BEYOND.get(shape, ()):
        with pytest.raises(NothingToDrawError):
            describe(name, tables)
        return
    assert any(ax.has_data() for ax in draw(name, tables).axes)
    if shape != "NaN rows":
        assert len(screen.showing(ENTRIES[name])(*gallery.inputs(ENTRIES[name], tables)[0]).data) > 0


def test_a_point_between_missing_ones_has_a_bar():
    sweep = tables_of.localization()
    here = (sweep["measure"] == "refusal_rate") & (sweep["method"] == "ace") & (sweep["prompts"] == "harmful")
    sweep.loc[here & sweep["layer"].notna() & (sweep["layer"] != 3), ["value", "low", "high"]] = np.nan
    lone = rows.curve(sweep[here & sweep["layer"].notna()])
    assert lone.isolated.tolist() == [layer == 3 for layer in range(8)]
    figure = plots.localization_curve(sweep[(sweep["method"] == "ace")], "refusal_rate/harmful")
    bars = [bar.get_segments()[0][0, 0] for bar in figure.axes[0].collections if hasattr(bar, "get_segments")]
    assert 3.0 in bars


def test_one_prompt_per_class_is_drawn_without_ellipses():
    points, ellipses = TABLES["plane"].query("prompt == 0"), TABLES["plane_ellipses"].assign(n=1)
    ellipses[["cov11", "cov12", "cov22"]] = np.nan
    description = principal_plane.principal_plane(points, ellipses)
    assert not any(panel.of(Ellipse) for panel in description.panels)
    assert all(panel.of(Points) for panel in description.panels)
    paper.draw(description).draw_without_rendering()


def test_an_empty_table_and_one_of_missing_values_have_nothing_to_draw():
    for entry in plots.GALLERY:
        needed = [TABLES[name] for name in entry.tables]
        measured = {columns[0] for columns in rows.COLUMNS.values()}
        blank = [table.assign(**{c: np.nan for c in measured if c in table}) for table in needed]
        for tables in ([table.iloc[:0] for table in needed], blank):
            with pytest.raises(NothingToDrawError):
                entry.describe(*tables)


@pytest.mark.parametrize(
    ("kind", "named", "figure", "options"),
    [
        (TableError, "99", "principal_plane", {"layer": 99}),
        (TableError, "5", "w2_per_layer", {"position": 5}),
        (OtLensError, "icml, neurips, wide", "w2_per_layer", {"style": "nature"}),
        (OtLensError, "kl/harmless", "localization_curves", {"measures": ["asr"]}),
    ],
)
def test_errors_name_what_is_missing_and_what_is_known(kind, named, figure, options):
    with pytest.raises(kind, match=named):
        getattr(plots, figure)(*(TABLES[name] for name in ENTRIES[figure].tables), **options)


def test_tables_that_lack_what_a_figure_shows_are_told(tmp_path):
    with pytest.raises(TableError, match="edited_layer"):
        plots.visibility_to_monitor(TABLES["visibility"].drop(columns="edited_layer"))
    for figure, lacking in (
        (plots.pair_matrix, "sets: "),
        (plots.strength_by_layer, "two strengths"),
        (plots.selectivity, "a constraint or a gate"),
    ):
        with pytest.raises(NothingToDrawError, match=lacking):
            figure(tables_of.localization())
    with pytest.raises(OtLensError, match="png, pdf, svg"):
        plots.draw_all(TABLES, tmp_path, formats=("gif",))
    with pytest.raises(AttributeError, match="no_figure"):
        plots.no_figure  # noqa: B018


# ------------------------------------------------------------------ registered figures


@pytest.mark.parametrize("name", ["w2_per_layer", "a/b"])
def test_a_figure_of_a_taken_or_impossible_name_is_refused(name, registries):
    """Registered figures are drawn in tests/test_extensions.py."""
    with pytest.raises(OtLensError, match=name):
        otl.register_figure(name, lambda geometry: None, tables=("geometry",), title="Mine")


# ------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    drawn = map(on_paper, ENTRIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.plots.paper.painters.draw", lambda *_, **__: next(drawn))
        return folder, plots.draw_all(TABLES, folder, formats=("pdf",))


def test_every_figure_is_written_with_its_caption(written):
    folder, result = written
    expected = {folder / f"{name}.{suffix}" for name in ENTRIES for suffix in ("pdf", "txt")}
    assert set(result) == expected == set(folder.iterdir())
    assert dict(result.skipped) == {}
    for name in ENTRIES:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        assert "n = " in text, name
        assert "95 %" in text or "ntervals" in text, name
    assert "strength 1; seed 0." in (folder / "localization_curves.txt").read_text(encoding="utf-8")
    assert "128" in (folder / "w2_per_layer.txt").read_text(encoding="utf-8")


def test_bitmaps_have_300_dots_per_inch_and_the_width_of_the_venue(tmp_path):
    plots.draw_all({name: TABLES[name] for name in ("class_angles", "cosines")}, tmp_path, formats=("png",))
    for name, inches in (("class_angles", 6.75), ("direction_cosines", 3.25)):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == round(inches * 300)


def test_fonts_are_embedded_as_truetype(written, tmp_path):
    for path in written[0].glob("*.pdf"):
        content = path.read_bytes()
        assert b"/Type3" not in content
        assert b"/FontFile2" in content
    draw("class_angles").savefig(tmp_path / "plain.pdf")  # matplotlib's default
    assert b"/Type3" in (tmp_path / "plain.pdf").read_bytes()


def test_the_same_tables_give_the_same_bytes(written, tmp_path):
    plots.draw_all({"class_angles": TABLES["class_angles"]}, tmp_path, formats=("pdf",))
    assert (tmp_path / "class_angles.pdf").read_bytes() == (written[0] / "class_angles.pdf").read_bytes()


def test_other_processes_draw_the_same_bytes_and_leave_the_rest_to_this_one(
    written, tmp_path, registries, monkeypatch
):
    class Unknown(str):
        """A class that no other process knows, so that this process draws it."""

    def mine(class_angles):
        found = ENTRIES["class_angles"].describe(class_angles)
        return replace(found, panels=tuple(replace(p, title=Unknown(p.title)) for p in found.panels))

    monkeypatch.setattr("ot_lens.plots.paper.painters.FIGURES", 1)
    otl.register_figure("mine", mine, tables=("class_angles",), title="Mine")
    some = {name: TABLES[name] for name in ("class_angles", "cosines", "run_cosines")}
    result = plots.draw_all(some, tmp_path, formats=("pdf",), processes=2)
    drawn = [path.stem for path in result if path.suffix == ".pdf"]
    assert drawn == ["direction_cosines", "run_cosines", "class_angles", "mine"]
    for name, source in zip(drawn, [*drawn[:3], "class_angles"], strict=True):
        assert (tmp_path / f"{name}.pdf").read_bytes() == (written[0] / f"{source}.pdf").read_bytes()


def test_figures_that_cannot_be_drawn_are_skipped_with_the_reason(tmp_path):
    broken = TABLES["geometry"].drop(columns="value")
    some = {"cosines": TABLES["cosines"], "geometry": broken, "spectra": TABLES["spectra"].iloc[:0]}
    result = plots.draw_all(some, tmp_path, formats=("png",), about="Model m, seed 7.")
    assert (tmp_path / "direction_cosines.txt").read_text().endswith("both classes. Model m, seed 7.\n")
    assert [path.name for path in result] == ["direction_cosines.png", "direction_cosines.txt"]
    reasons = {"w2_per_layer": "value", "covariance_spectra": "empty", "map_quality": "missing"}
    assert all(reason in result.skipped[name] for name, reason in reasons.items())
    assert set(result.skipped) == set(ENTRIES) - {"direction_cosines"}
