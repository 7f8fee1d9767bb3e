"""The figures of shared panels: what is drawn, on paper and on the screen, is what the tables hold."""

import io

import numpy as np
import pytest
from PIL import Image

from ot_lens import plots
from ot_lens.errors import NothingToDrawError, TableError
from ot_lens.plots import angles, controls, embedded, grids, measures, panels, quality, visibility
from ot_lens.plots.heat_panels import cell_edges
from ot_lens.plots.screen import SCREEN
from tests import generators_tables as tables_of

TABLES = tables_of.tables(layers=6)


def drawn(figure, gid):
    """The one artist of that gid."""
    found = figure.findobj(lambda artist: artist.get_gid() == gid)
    assert len(found) == 1, (gid, len(found))
    return found[0]


def band_of(figure, gid):
    """Ends of a filled band by x, low and high."""
    xy = drawn(figure, gid).get_paths()[0].vertices
    return np.array([[xy[xy[:, 0] == x, 1].min(), xy[xy[:, 0] == x, 1].max()] for x in np.unique(xy[:, 0])])


def assert_line(figure, name, rows, x="layer", value="value", *, null=True):
    """A line with its interval and, where asked for, its null band."""
    line = drawn(figure, f"line:{name}")
    np.testing.assert_array_equal(line.get_xdata(), rows[x].to_numpy(float))
    np.testing.assert_array_equal(line.get_ydata(), rows[value])
    np.testing.assert_allclose(band_of(figure, f"band:{name}"), rows[["low", "high"]])
    if null:
        np.testing.assert_allclose(band_of(figure, f"null:{name}"), rows[["null_low", "null_high"]])
        np.testing.assert_array_equal(drawn(figure, f"nullmean:{name}").get_ydata(), rows["null_mean"])


@pytest.mark.parametrize("name", ["effective_rank", "participation_ratio"])
@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_dimensions_are_the_tables(name, label):
    rows = TABLES["geometry"].query(f"quantity == '{name}_{label}'")
    assert_line(plots.effective_rank(TABLES["geometry"]), f"{name}_{label}", rows)


@pytest.mark.parametrize("component", [0, 1])
def test_angles_between_classes_are_the_tables(component):
    rows = TABLES["class_angles"].query("component == @component")
    figure = plots.class_angles(TABLES["class_angles"])
    assert_line(figure, f"class_angle_{component}", rows, value="angle")


@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_angles_between_layers_are_the_largest_of_the_table(label):
    rows = TABLES["layer_angles"].query("`class` == @label and component == 1")
    cells = drawn(plots.layer_angles(TABLES["layer_angles"]), f"cells:{label} activations").get_array()
    np.testing.assert_array_equal(cells, rows.pivot(index="layer_a", columns="layer_b", values="angle"))


@pytest.mark.parametrize("quantity", ["w2_after", "covariance_error", "outside_target"])
@pytest.mark.parametrize("method", tables_of.EDITS)
def test_quality_of_maps_is_the_tables(quantity, method):
    rows = TABLES["map_quality"].query("quantity == @quantity and method == @method")
    assert_line(plots.map_quality(TABLES["map_quality"]), f"{quantity}/{method}", rows)


def test_distance_left_stands_beside_the_distance_before():
    rows = TABLES["map_quality"].query("quantity == 'w2_before' and method == 'mean_shift'")
    figure = plots.map_quality(TABLES["map_quality"])
    np.testing.assert_array_equal(drawn(figure, "line:w2_before").get_ydata(), rows["value"])


def test_a_cost_above_its_bound_widens_the_axis():
    table = TABLES["map_quality"].copy()
    table.loc[table["quantity"] == "cost_over_bound", ["value", "high"]] = 3.0
    [panel] = [p for p in quality.quality_panels(table) if p.title == "cost over its bound"]
    assert panel.limits == (1.0, 3.0)


@pytest.mark.parametrize("quantity", ["mahalanobis", "mahalanobis_auc", "classifier_auc"])
def test_a_monitor_reads_the_last_layer_by_edited_layer(quantity):
    rows = TABLES["visibility"].query("layer == 5 and quantity == @quantity")
    figure = plots.visibility_to_monitor(TABLES["visibility"])
    for method in tables_of.EDITS:
        assert_line(figure, f"{quantity}/{method}", rows[rows["method"] == method], x="edited_layer")
    unedited = rows[rows["method"] == "none"]["value"].to_list()
    assert set(drawn(figure, f"line:{quantity}/none").get_ydata()) == set(unedited)


def test_an_auc_below_the_usual_axis_is_not_cut():
    table = TABLES["visibility"].assign(low=0.2)
    limits = [panel.limits for panel in visibility.visibility_panels(table)]
    assert limits == [None, (0.2, 1.0), (0.2, 1.0)]


def test_controls_stand_behind_the_edit_of_their_method():
    figure, table = plots.localization_controls(TABLES["controls"]), TABLES["controls"]
    own = table[(table["method"] == "pca_ot") & (table["k"] == 4)]
    label = "PCA-OT (k = 4)"
    assert_line(figure, f"shift/{label}", own[own["control"] == ""], null=False)
    for control in ("random_subspace", "permuted_labels"):
        ends = own[own["control"] == control][["low", "high"]]
        np.testing.assert_allclose(band_of(figure, f"null:{control}/{label}"), ends)
    assert "4 draws" in controls.caption(table)


def test_a_sweep_without_controls_shows_the_edits():
    table = TABLES["controls"].query("control == ''")
    panels_shown = controls.control_panels(table)
    assert all(panel.bands == () for panel in panels_shown)
    assert "draws" not in controls.caption(table)


def test_pairs_are_the_tables_and_the_best_is_outlined():
    table = TABLES["localization"].copy()
    wanted = (table["set"] == "pair") & (table["layers"] == "1,4") & (table["method"] == "ace")
    table.loc[wanted, "value"] = -40.0
    figure = plots.pair_matrix(table)
    cells = drawn(figure, "cells:ACE").get_array()
    assert cells[4, 1] == -40.0
    assert np.ma.is_masked(cells[1, 4])
    single = table.query("method == 'ace' and `set` == 'single' and measure == 'refusal_score'")
    np.testing.assert_array_equal(np.diag(cells), single["value"])
    corners = [mark.get_xy() for mark in figure.findobj(lambda artist: artist.get_gid() == "best")]
    assert (0.5, 3.5) in corners


def test_a_sweep_without_pairs_says_how_to_get_them():
    with pytest.raises(NothingToDrawError, match="sets: "):
        plots.pair_matrix(tables_of.localization())


def test_ranks_and_strengths_by_layer_are_the_tables():
    rows = measures.sweep_rows(TABLES["localization"])
    rate = rows.query("measure == 'refusal_rate' and prompts == 'harmful' and layer.notna()")
    ranks = rate[rate["k"].notna()].pivot(index="k", columns="layer", values="value")
    cells = drawn(plots.rank_by_layer(TABLES["localization"]), "cells:harmful: refuses").get_array()
    np.testing.assert_array_equal(cells, ranks)
    weaker = TABLES["localization"].query("method == 'ace' and measure == 'refusal_rate'")
    weaker = weaker[(weaker["prompts"] == "harmful") & (weaker["set"] == "single")]
    cells = drawn(plots.strength_by_layer(TABLES["localization"]), "cells:ACE").get_array()
    np.testing.assert_array_equal(cells, weaker.pivot(index="strength", columns="layer", values="value"))


def test_one_strength_is_no_heat_map():
    with pytest.raises(NothingToDrawError, match="fewer than two strengths"):
        plots.strength_by_layer(tables_of.localization())


def test_another_runs_layers_stand_along_the_other_axis():
    table = TABLES["run_cosines"].query("layer < 4").assign(other="theirs")
    table.loc[(table["layer"] == 1) & (table["layer_other"] == 5), "cosine"] = -0.75
    figure = plots.run_cosines(table)
    cells = drawn(figure, "cells:").get_array()
    assert cells.shape == (6, 4)
    assert cells[5, 1] == -0.75
    assert figure.axes[0].get_ylabel() == "layer of theirs"


def test_known_and_measured_stand_beside_each_other():
    table = TABLES["ground_truth"]
    behaviour, ranks, directions = embedded.truth_panels(table)
    known, measured = behaviour.series
    np.testing.assert_array_equal(known.curve.value, [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(measured.curve.value, table.query("part == 'behaviour'")["value"])
    assert [name for _, name in ranks.ticks] == ["1", "2", "4"]
    assert [reference.value for reference in ranks.references] == [2.0]  # four sentences: the third rank
    assert [reference.value for reference in directions.references] == [4.0]
    assert "4 categories, 4 sentences, 4 first words" in embedded.caption(table)


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([[0, 0], [1, 1], [2, 0.5]], [[0, 0], [1, 1]]),
        ([[3, 1], [1, 1], [2, 2]], [[1, 1], [2, 2]]),
        ([[1, 0.2], [1, 0.9]], [[1, 0.9]]),
    ],
)
def test_the_front_holds_what_nothing_beats(points, kept):
    np.testing.assert_array_equal(measures.front(np.array(points, dtype=float)), kept)


def test_cells_inside_are_surrounded_along_their_sides():
    inside = np.zeros((3, 3), dtype=bool)
    inside[1, 1] = True
    sides = {frozenset(edge) for edge in cell_edges(inside)}
    a, b, c, d = (0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)
    assert sides == {frozenset(pair) for pair in ((a, b), (b, c), (c, d), (d, a))}
    assert cell_edges(np.zeros((2, 2), dtype=bool)) == []


def test_numbers_in_cells_have_no_negative_zero():
    scale = panels.Scale("", -9.0, 9.0)
    assert [scale.text(value) for value in (-0.04, 0.04, -2.34)] == ["0.0", "0.0", "\u22122.3"]
    assert panels.Scale("", 0.0, 1.0, percent=True).text(0.126) == "13"


@pytest.mark.parametrize(
    ("name", "table", "describe"),
    [
        ("class_angles", "class_angles", angles.class_panels),
        ("map_quality", "map_quality", quality.quality_panels),
        ("visibility", "visibility", visibility.visibility_panels),
        ("localization_controls", "controls", controls.control_panels),
        ("ground_truth", "ground_truth", embedded.truth_panels),
    ],
)
def test_the_screen_shows_the_same_lines_in_the_same_colours(name, table, describe):
    figure = SCREEN[name](TABLES[table])
    shown = {(trace.name, trace.xaxis): trace for trace in figure.data if "markers" in (trace.mode or "")}
    for index, panel in enumerate(describe(TABLES[table])):
        for part in panel.series:
            trace = shown[part.mark.label, f"x{index + 1}" if index else "x"]
            np.testing.assert_array_equal(trace.y, part.curve.value)
            assert trace.marker.color == part.mark.color


@pytest.mark.parametrize("name", ["layer_angles", "pair_matrix", "rank_by_layer", "run_cosines"])
def test_the_screen_shows_the_same_cells(name):
    [entry] = [entry for entry in plots.GALLERY if entry.name == name]
    figure = SCREEN[name](TABLES[entry.tables[0]])
    describe = {
        "layer_angles": angles.layer_panels,
        "pair_matrix": grids.pair_panels,
        "rank_by_layer": grids.rank_panels,
        "run_cosines": plots.other_run.run_panels,
    }[name]
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    for trace, panel in zip(maps, describe(TABLES[entry.tables[0]]), strict=True):
        np.testing.assert_allclose(trace.z, panel.matrix, rtol=1e-6)


def test_an_empty_table_and_one_of_missing_values_are_answered_alike():
    for entry in plots.GALLERY:
        needed = [TABLES[name] for name in entry.tables]
        measured = ("value", "angle", "cosine", "pc1", "eigenvalue")
        blank = [table.assign(**{c: np.nan for c in measured if c in table}) for table in needed]
        for tables in ([table.iloc[:0] for table in needed], blank):
            with pytest.raises(NothingToDrawError):
                entry.draw(*tables)


def test_a_missing_column_is_named():
    with pytest.raises(TableError, match="no column edited_layer"):
        plots.visibility_to_monitor(TABLES["visibility"].drop(columns="edited_layer"))


def test_the_caption_names_the_controls_that_were_run():
    table = TABLES["controls"]
    text = plots.controls.caption(table[table["control"] != "random_subspace"])
    assert "permuted class labels; an edit shows" in text
    assert "random subspace" not in text
    assert "random subspace, and of the same fit on permuted" in plots.controls.caption(table)
    assert "Hatched" not in plots.controls.caption(table[table["control"] == ""])


def test_a_figure_shows_itself_in_a_notebook():
    from IPython.core.interactiveshell import InteractiveShell

    figure = plots.localization_controls(TABLES["controls"])
    shown, _ = InteractiveShell().display_formatter.format(figure)
    width, height = Image.open(io.BytesIO(shown["image/png"])).size
    assert (width, height) == tuple(int(150 * inches) for inches in figure.get_size_inches())
