"""Figures: what is drawn is what the tables hold, and it can be read."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

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

from ot_lens import plots
from ot_lens.errors import NothingToDrawError, OtLensError, TableError
from ot_lens.plots import gallery, measures, plane, rows, style
from ot_lens.plots.lines import cost_ticks
from tests import generators_tables as tables_of

TABLES = tables_of.tables()
ENTRIES = {entry.name: entry for entry in plots.GALLERY}


def drawn(figure, gid):
    """The one artist of that gid."""
    found = figure.findobj(lambda artist: artist.get_gid() == gid)
    assert len(found) == 1, (gid, len(found))
    return found[0]


def contenders():
    return plots.contenders(measures.sweep_rows(TABLES["localization"]))


def every(figure, prefix):
    return figure.findobj(lambda artist: str(artist.get_gid() or "").startswith(prefix))


def band_ends(collection):
    """Low and high of a filled band, by x."""
    xy = collection.get_paths()[0].vertices
    return {x: (xy[xy[:, 0] == x, 1].min(), xy[xy[:, 0] == x, 1].max()) for x in np.unique(xy[:, 0])}


def draw(name, tables=TABLES, **options):
    needed, own = gallery.inputs(ENTRIES[name], tables)
    return ENTRIES[name].draw(*needed, **own, **options)


# ------------------------------------------------------------------ the drawn data are the table's


@pytest.mark.parametrize("quantity", ["w2_squared", "w2_location", "w2_bures"])
def test_distance_line_bands_and_null_are_the_tables(quantity):
    figure = plots.w2_per_layer(TABLES["geometry"])
    table = TABLES["geometry"].query("quantity == @quantity").sort_values("layer")
    x, y = drawn(figure, f"line:{quantity}").get_data()
    np.testing.assert_array_equal(x, table["layer"])
    np.testing.assert_array_equal(y, table["value"])
    for gid, low, high in (("band", "low", "high"), ("null", "null_low", "null_high")):
        ends = band_ends(drawn(figure, f"{gid}:{quantity}"))
        np.testing.assert_allclose(list(ends.values()), table[[low, high]])
    np.testing.assert_array_equal(drawn(figure, f"nullmean:{quantity}").get_ydata(), table["null_mean"])


def test_shares_of_the_distance_stand_on_each_other():
    figure = plots.w2_per_layer(TABLES["geometry"])
    location = TABLES["geometry"].query("quantity == 'w2_location'")["value"].to_numpy()
    bottom, top = (
        np.array(list(band_ends(drawn(figure, f"share:w2_{part}")).values()))
        for part in ("location", "bures")
    )
    np.testing.assert_allclose(bottom[:, 1], location)
    np.testing.assert_allclose(top[:, 0], location)


@pytest.mark.parametrize("measure", ["refusal_rate/harmful", "kl/harmless"])
def test_localization_curves_are_the_tables(measure):
    figure = plots.localization_curves(TABLES["localization"])
    sweep = measures.measured(measures.sweep_rows(TABLES["localization"]), *measure.split("/"))
    for method, k, _ in tables_of.METHODS:
        mark = style.method_mark(method, k)
        single = sweep[(sweep["method"] == method) & sweep["layer"].notna()]
        single = single[single["k"].isna() if k is None else single["k"] == k].sort_values("layer")
        x, y = drawn(figure, f"line:{measure}/{mark.label}").get_data()
        np.testing.assert_array_equal(x, single["layer"].to_numpy(float))
        np.testing.assert_array_equal(y, single["value"])
        ends = band_ends(drawn(figure, f"band:{measure}/{mark.label}"))
        np.testing.assert_allclose(list(ends.values()), single[["low", "high"]])


def test_values_of_all_layers_stand_right_of_the_last_layer_with_their_intervals():
    figure = plots.localization_curve(TABLES["localization"], "refusal_rate/harmful")
    [ax] = figure.axes
    together = TABLES["localization"].query(
        "set == 'all' and measure == 'refusal_rate' and prompts == 'harmful'"
    )
    bars = np.array([bar.get_segments()[0] for bar in ax.collections if hasattr(bar, "get_segments")])
    ends = together[["low", "high"]].to_numpy()
    np.testing.assert_allclose(sorted(map(tuple, bars[:, :, 1])), sorted(map(tuple, ends)), atol=1e-12)
    assert (bars[:, :, 0] > 7).all()
    assert "all" in [tick.get_text() for tick in ax.get_xticklabels()]


def test_baseline_is_drawn_across():
    figure = plots.localization_curve(TABLES["localization"], "refusal_rate/harmful")
    assert set(drawn(figure, "baseline:refusal_rate/harmful").get_ydata()) == {1.0}


def test_spectra_are_the_tables():
    figure = plots.covariance_spectra(TABLES["spectra"], layers=[3])
    for label in style.CLASSES:
        table = TABLES["spectra"][(TABLES["spectra"]["layer"] == 3) & (TABLES["spectra"]["class"] == label)]
        x, y = drawn(figure, f"line:{label}").get_data()
        np.testing.assert_array_equal(x, table["component"] + 1)
        np.testing.assert_array_equal(y, table["eigenvalue"])
        np.testing.assert_allclose(
            list(band_ends(drawn(figure, f"band:{label}")).values()), table[["low", "high"]]
        )


def test_cosines_are_the_tables_and_bold_is_what_permuted_labels_do_not_explain():
    figure = plots.direction_cosines(TABLES["cosines"])
    ax = figure.axes[0]
    table = TABLES["cosines"].pivot_table(index="layer_a", columns="layer_b", values="cosine")
    np.testing.assert_array_equal(ax.images[0].get_array(), table)
    bold = {tuple(map(round, text.get_position())) for text in ax.texts if text.get_fontweight() == "bold"}
    outside = TABLES["cosines"].query("cosine > null_high or cosine < null_low")
    assert bold == {(b, a) for a, b in outside[["layer_a", "layer_b"]].itertuples(index=False)} != set()


def test_a_half_given_cosine_matrix_is_completed_by_symmetry():
    half = TABLES["cosines"].query("layer_a <= layer_b")
    whole = plots.direction_cosines(TABLES["cosines"]).axes[0].images[0].get_array()
    np.testing.assert_array_equal(plots.direction_cosines(half).axes[0].images[0].get_array(), whole)


def test_plane_points_are_the_tables():
    figure = plots.principal_plane(
        TABLES["plane"], TABLES["plane_ellipses"], layer=4, states=["pca_ot (k = 2)"]
    )
    here = TABLES["plane"].query("layer == 4")
    for label, state in (("harmful", "before"), ("harmless", "before"), ("harmful", "pca_ot (k = 2)")):
        table = here[(here["class"] == label) & (here["state"] == state)]
        x, y = drawn(figure, f"points:{label}/{state}").get_data()
        np.testing.assert_array_equal(np.stack([x, y], axis=1), table[["pc1", "pc2"]])


def test_arrows_go_from_where_a_prompt_stood_to_where_it_is_moved():
    here = TABLES["plane"].query("layer == 4")
    arrows = plane.displacements(here, "pca_ot (k = 2)", most=1000)
    before, after = (
        here[(here["class"] == "harmful") & (here["state"] == state)][["pc1", "pc2"]].to_numpy()
        for state in ("before", "pca_ot (k = 2)")
    )
    np.testing.assert_array_equal(arrows[:, :2], before)
    np.testing.assert_allclose(arrows[:, :2] + arrows[:, 2:], after)
    assert len(plane.displacements(here, "pca_ot (k = 2)")) == plane.MOST_ARROWS


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 9), st.floats(0.1, 9), st.floats(-0.95, 0.95))
def test_ellipse_lies_at_the_chi_square_quantile(mean1, mean2, var1, var2, correlation):
    cov12 = correlation * np.sqrt(var1 * var2)
    row = {"mean1": mean1, "mean2": mean2, "cov11": var1, "cov12": cov12, "cov22": var2}
    centred = plane.ellipse_outline(row) - [mean1, mean2]
    inverse = np.linalg.inv([[var1, cov12], [cov12, var2]])
    radii = np.einsum("pi,ij,pj->p", centred, inverse, centred)
    np.testing.assert_allclose(radii, stats.chi2(2).ppf(0.95), rtol=1e-7)


def test_ellipse_of_a_projected_cloud_is_a_segment():
    row = {"mean1": 1.0, "mean2": 2.0, "cov11": 0.0, "cov12": 0.0, "cov22": 4.0}
    outline = plane.ellipse_outline(row)
    np.testing.assert_allclose(outline[:, 0], 1.0)
    np.testing.assert_allclose(np.ptp(outline[:, 1]), 4 * np.sqrt(stats.chi2(2).ppf(0.95)), rtol=1e-3)


def test_comparison_shows_each_best_layer_and_all_layers_with_their_intervals():
    figure = plots.method_comparison(TABLES["localization"])
    right = figure.axes[2]
    for method in contenders():
        for kind, found in (("best", method.best), ("all", method.together)):
            [container] = [
                c for c in right.containers if c.lines[0].get_gid() == f"{kind}:{method.mark.label}"
            ]
            point = container.lines[0].get_xydata()[0]
            np.testing.assert_array_equal(
                point, [found["attack_success_rate/harmful"][0], found["exact_answer_rate/harmful"][0]]
            )
            across, along = (bar.get_segments()[0] for bar in container.lines[2])
            np.testing.assert_allclose(across[:, 0], found["attack_success_rate/harmful"][1:])
            np.testing.assert_allclose(along[:, 1], found["exact_answer_rate/harmful"][1:])


def test_intervals_row_by_row_are_the_tables():
    figure = plots.method_intervals(TABLES["localization"])
    for row, method in enumerate(contenders()):
        [container] = [
            c
            for c in figure.axes[0].containers
            if c.lines[0].get_gid() == f"best:refusal_rate/harmful/{method.mark.label}"
        ]
        value, low, high = method.best["refusal_rate/harmful"]
        np.testing.assert_allclose(container.lines[0].get_xydata()[0], [value, row - 0.16])
        np.testing.assert_allclose(container.lines[2][0].get_segments()[0][:, 0], [low, high])


def test_a_curve_mixes_no_settings_no_controls_and_no_pairs():
    plain = tables_of.localization()
    chosen = measures.sweep_rows(tables_of.with_everything_else(plain))
    assert len(chosen) == len(plain)
    np.testing.assert_array_equal(np.sort(chosen["value"]), np.sort(plain["value"]))


def test_where_everything_else_was_swept_the_figures_stay_the_same():
    plain = tables_of.localization()
    sweep = tables_of.with_everything_else(plain)
    one, other = (plots.localization_curves(table) for table in (plain, sweep))
    for line in every(one, "line:"):
        np.testing.assert_array_equal(line.get_xydata(), drawn(other, line.get_gid()).get_xydata())
    assert plots.contenders(measures.sweep_rows(plain)) == plots.contenders(measures.sweep_rows(sweep))


# ------------------------------------------------------------------ one visual language


def luminance(color):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))


def contrast(a, b):
    light, dark = sorted([luminance(a), luminance(b)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


MARKS = [
    *style.CLASSES.values(),
    *style.PARTS.values(),
    *(style.method_mark(name) for name in style.METHODS),
    *(style.method_mark("pca_ot", k) for k in style.RANKS),
    style.method_mark("one of the user's own"),
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
    harmful, harmless = style.CLASSES.values()
    assert harmful.marker != harmless.marker
    assert harmful.dash != harmless.dash


def test_classes_stay_apart_for_a_deuteranope():
    simulate = np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    )  # Machado 2009
    harmful, harmless = (simulate @ to_rgb(mark.color) for mark in style.CLASSES.values())
    assert np.linalg.norm(harmful - harmless) > 0.4
    red, green = (simulate @ to_rgb(color) for color in ("#D0501A", "#6F8B1E"))
    assert np.linalg.norm(red - green) < 0.4  # the check can fail


@pytest.mark.parametrize(
    ("label", "k", "same"),
    [
        ("pca_ot (k = 2)", None, ("pca_ot", 2)),
        ("pca_ot", pd.NA, ("pca_ot", None)),
        ("ace", None, ("ace", None)),
    ],
)
def test_a_label_and_its_method_have_one_mark(label, k, same):
    assert style.method_mark(label, k) == style.method_mark(*same)


def test_an_unknown_method_keeps_its_look():
    assert style.method_mark("mine") == style.method_mark("mine")
    assert style.method_mark("mine").label == "mine"
    assert (
        style.method_mark("pca_ot (k = 2, mean_shift = subspace)").label
        == "PCA-OT (k = 2, mean_shift = subspace)"
    )


def test_cost_ticks_reach_the_largest_value_from_zero():
    assert cost_ticks(0.2) == [0.0, 0.01, 0.03, 0.1]
    assert cost_ticks(9.0) == [0.0, 0.01, 0.1, 1.0, 10.0]


# ------------------------------------------------------------------ one's own layout, one's own settings


@pytest.mark.parametrize("name", list(ENTRIES))
def test_global_settings_stay_as_they_were(name):
    with mpl.rc_context({"font.size": 17.0, "axes.grid": False}):
        before = dict(mpl.rcParams)
        draw(name)
        assert dict(mpl.rcParams) == before
        empty = {table: frame.iloc[:0] for table, frame in TABLES.items()}
        with pytest.raises(NothingToDrawError):
            draw(name, empty)
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("w2_per_layer", (1, 3)),
        ("localization_curves", (4, 3)),
        ("spectra", (2, 4)),
        ("method_comparison", (1, 3)),
        ("method_intervals", (1, 5)),
        ("principal_plane", (2, 3)),
    ],
)
def test_axes_of_the_callers_own_layout_are_drawn_into(name, shape):
    own = Figure(layout="constrained")
    axes = own.subfigures(1, 2)[1].subplots(*shape, squeeze=False)
    figure = draw(name, axes=axes)
    assert figure is own
    assert all(ax.has_data() for ax in axes.flat[: 5 if name == "principal_plane" else None])
    with pytest.raises(OtLensError, match="axes given"):
        draw(name, axes=axes.flat[:1] if axes.size > 1 else axes)


@pytest.mark.parametrize("draw_one", [plots.direction_cosines, plots.localization_curve])
def test_one_panel_draws_into_one_axes(draw_one):
    own = Figure()
    ax = own.subplots()
    table = TABLES["cosines"] if draw_one is plots.direction_cosines else TABLES["localization"]
    assert draw_one(table, ax=ax) is own
    assert ax.has_data()


def test_type_keeps_its_size_when_saved_outside_the_style(tmp_path):
    figure = plots.w2_per_layer(TABLES["geometry"])
    figure.savefig(tmp_path / "figure.png")
    labels = [label for ax in figure.axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert {label.get_fontsize() for label in labels} == {plots.STYLES["icml"].small}
    assert {label.get_fontfamily()[0] for label in labels} == {"STIXGeneral"}


def test_importing_the_package_draws_in_no_plotting_library():
    def loaded(statement):
        code = f"import sys; {statement}; print([m for m in ('matplotlib', 'plotly') if m in sys.modules])"
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert loaded("import ot_lens") == "[]"
    assert loaded("import ot_lens.plots") == "['matplotlib']"


# ------------------------------------------------------------------ every shape of run


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
    "one layer": tables_of.tables(layers=1),
    "one method": tables_of.tables(methods=tables_of.METHODS[:1]),
    "a method of one's own": tables_of.tables(methods=(*tables_of.METHODS[:2], ("my_map", None, 5.0))),
    "NaN rows": ruined(TABLES),
}


# What a run of this shape cannot show.
BEYOND = {
    "one layer": {"pair_matrix"},
    "one method": {"rank_by_layer"},
    "a method of one's own": {"rank_by_layer"},
}
OF_THE_SWEEP = [entry.name for entry in plots.GALLERY if entry.tables == ("localization",)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for shape in SHAPES for name in (OF_THE_SWEEP if "method" in shape else ENTRIES)],
)
def test_every_shape_of_run_is_drawn(name, shape):
    if name in BEYOND.get(shape, ()):
        with pytest.raises(NothingToDrawError):
            draw(name, SHAPES[shape])
        return
    assert any(ax.has_data() for ax in draw(name, SHAPES[shape]).axes)


def test_a_point_between_missing_ones_is_seen():
    sweep = tables_of.localization()
    here = (sweep["measure"] == "refusal_rate") & (sweep["method"] == "ace") & (sweep["prompts"] == "harmful")
    sweep.loc[here & sweep["layer"].notna() & (sweep["layer"] != 3), ["value", "low", "high"]] = np.nan
    lone = rows.curve(sweep[here & sweep["layer"].notna()])
    assert lone.isolated.tolist() == [layer == 3 for layer in range(8)]
    figure = plots.localization_curve(sweep[(sweep["method"] == "ace")], "refusal_rate/harmful")
    bars = [bar.get_segments()[0][0, 0] for bar in figure.axes[0].collections if hasattr(bar, "get_segments")]
    assert 3.0 in bars


def test_one_prompt_a_class_is_drawn_without_ellipses():
    points, ellipses = TABLES["plane"].query("prompt == 0"), TABLES["plane_ellipses"].copy()
    ellipses[["cov11", "cov12", "cov22"]] = np.nan
    figure = plots.principal_plane(points, ellipses.assign(n=1))
    plots.plane_by_depth(points, ellipses.assign(n=1)).draw_without_rendering()
    figure.draw_without_rendering()
    assert every(figure, "ellipse:") == []
    assert every(figure, "points:") != []


@pytest.mark.parametrize(
    ("table", "message"),
    [(TABLES["geometry"].iloc[:0], "is empty"), (TABLES["spectra"], "no column")],
)
def test_a_table_that_cannot_be_drawn_says_so(table, message):
    with pytest.raises(TableError, match=message):
        plots.w2_per_layer(table)


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(OtLensError, match="icml, neurips, wide"):
        plots.draw_all(TABLES, tmp_path, style="nature")
    with pytest.raises(OtLensError, match="png, pdf, svg"):
        plots.draw_all(TABLES, tmp_path, formats=("gif",))
    with pytest.raises(OtLensError, match="kl/harmless"):
        plots.localization_curve(TABLES["localization"], "asr")
    with pytest.raises(TableError, match="layer 99 is not in the plane table"):
        plots.principal_plane(TABLES["plane"], TABLES["plane_ellipses"], layer=99)
    with pytest.raises(TableError, match="position 5 is not in the table"):
        plots.w2_per_layer(TABLES["geometry"], position=5)


def test_a_contender_holds_the_values_of_each_of_its_layers():
    single = measures.single_layers(measures.sweep_rows(TABLES["localization"]))
    scores = single[(single["measure"] == "refusal_score") & (single["method"] == "ace")]
    [ace] = [method for method in contenders() if method.mark.label == style.METHODS["ace"].label]
    found = [(layer, *held["refusal_score/harmful"]) for layer, held in ace.layers.items()]
    np.testing.assert_array_equal(found, scores[["layer", "value", "low", "high"]].to_numpy(float))


# ------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def on_paper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return folder, plots.draw_all(TABLES, folder, formats=("pdf",))


def test_every_figure_is_written_with_a_caption_beside_it(on_paper):
    folder, result = on_paper
    expected = {folder / f"{name}.{suffix}" for name in ENTRIES for suffix in ("pdf", "txt")}
    assert set(result) == expected == set(folder.iterdir())
    assert dict(result.skipped) == {}


def test_bitmaps_have_three_hundred_dots_an_inch_and_the_venues_width(tmp_path):
    plots.draw_all({name: TABLES[name] for name in ("geometry", "cosines")}, tmp_path, formats=("png",))
    for name, inches in (("w2_per_layer", 6.75), ("direction_cosines", 3.25)):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == round(inches * 300)


def test_fonts_are_embedded_as_truetype(on_paper, tmp_path):
    folder, _ = on_paper
    for path in folder.glob("*.pdf"):
        content = path.read_bytes()
        assert b"/Type3" not in content
        assert b"/FontFile2" in content
    draw("w2_per_layer").savefig(tmp_path / "plain.pdf")  # what matplotlib does by itself
    assert b"/Type3" in (tmp_path / "plain.pdf").read_bytes()


def test_the_same_figure_gives_the_same_bytes(on_paper, tmp_path):
    folder, _ = on_paper
    plots.draw_all({"geometry": TABLES["geometry"]}, tmp_path, formats=("pdf",))
    again = tmp_path / "w2_per_layer.pdf"
    assert again.read_bytes() == (folder / "w2_per_layer.pdf").read_bytes()


def test_captions_say_how_many_prompts_and_what_the_bands_are(on_paper):
    folder, _ = on_paper
    for name in ENTRIES:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        assert "n = " in text, name
        assert "95 %" in text or "ntervals" in text, name
    assert "strength 1; seed 0." in (folder / "localization_curves.txt").read_text(encoding="utf-8")
    assert "128" in (folder / "w2_per_layer.txt").read_text(encoding="utf-8")


def test_what_cannot_be_drawn_is_skipped_and_named(tmp_path):
    some = {"cosines": TABLES["cosines"], "geometry": TABLES["geometry"].iloc[:0]}
    result = plots.draw_all(some, tmp_path, formats=("png",), about="Model m, seed 7.")
    assert (tmp_path / "direction_cosines.txt").read_text().endswith("both classes. Model m, seed 7.\n")
    assert {path.name for path in result} == {"direction_cosines.png", "direction_cosines.txt"}
    assert result.skipped["w2_per_layer"] == "the geometry table is empty"
    assert result.skipped["localization_curves"] == "the localization table is missing"
    assert set(result.skipped) == set(ENTRIES) - {"direction_cosines"}
    assert isinstance(result[0], Path)
    assert len(result) == 2


def test_a_broken_table_does_not_stop_the_other_figures(tmp_path):
    tables = {"cosines": TABLES["cosines"], "geometry": TABLES["geometry"].drop(columns="value")}
    result = plots.draw_all(tables, tmp_path, formats=("svg",))
    assert "has no column value" in result.skipped["w2_per_layer"]
    assert (tmp_path / "direction_cosines.svg").is_file()
