"""Views without a browser: figures, rows, the code that makes them, and incomplete runs."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ot_lens import plots
from ot_lens.errors import RunFolderError
from ot_lens.explorer.layout import facts
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from ot_lens.explorer.sweep_views import control_range
from ot_lens.explorer.views import content, views, views_of, warm
from ot_lens.plots.measures import MEASURES
from tests import generators_tables
from tests.explorer.conftest import LAYERS

OWN = ("depth", "plane", "localization", "methods", "distances", "spectra", "cosines")


def state_of(choices, **fields):
    return choices.read({"layers": "5", "ot": "pca_ot:2", "by": "directional_ablation", **fields})


def shown(choices, state, names=OWN):
    """Contents of some views; each is a figure that JSON can hold, or says why it is missing."""
    found = {name: content(views()[name], choices.run, state) for name in names}
    for name, view in found.items():
        assert (view.figure is None) == bool(view.missing), name
        assert json.dumps(view.figure, allow_nan=False)
    return found


def missing(choices, state, name):
    return content(views()[name], choices.run, state).missing


def test_every_view_of_a_complete_run_is_drawn(opened):
    found = shown(opened, state_of(opened), [view.name for view in views_of([opened.run])])
    assert set(OWN) <= set(found)
    assert [view.missing for view in found.values() if view.missing] == []


def makes_its_figure(name, choices, state, monkeypatch, folder):
    """Run the code of a view elsewhere; its files must equal those that the page offers."""
    drawing = views()[name].drawing(choices.run, state)
    monkeypatch.chdir(folder)
    exec(compile(drawing.program(choices.run, name), name, "exec"), {})
    assert (folder / f"{name}.png").read_bytes() == drawing.image("png")
    assert (folder / f"{name}.svg").stat().st_size > 1000


@pytest.mark.trust
@pytest.mark.parametrize("name", OWN)
def test_the_python_of_a_view_makes_its_figure(opened, name, tmp_path, monkeypatch):
    makes_its_figure(name, opened, state_of(opened, strength="0.5"), monkeypatch, tmp_path)


@pytest.mark.trust
def test_the_python_of_a_view_of_tables_alone_makes_its_figure(from_tables, tmp_path, monkeypatch):
    """The plane in full; for figures of the gallery, all but writing them."""
    choices = Choices(OpenRun(from_tables(generators_tables.tables(layers=6))))
    layer = str(choices.run.tables["plane"]["layer"].iloc[0])
    makes_its_figure("plane", choices, choices.read({"layers": layer}), monkeypatch, tmp_path)
    saved = []
    monkeypatch.setattr(plots, "save", lambda figure, *_, **__: saved.append(len(figure.axes)))
    others = sorted({view.name for view in views_of([choices.run])} - set(OWN))
    for name in others:
        exec(views()[name].drawing(choices.run, choices.first).program(choices.run, name), {})
    assert len(saved) == len(others) > 10
    assert min(saved) > 0


def test_rows_are_those_of_the_state(opened):
    def rows(name):
        return pd.read_csv(StringIO(views()[name].drawing(opened.run, state_of(opened)).csv()))

    edits = rows("localization").query("method != 'none'")
    pairs = set(zip(edits["method"], edits["k"].fillna(0), strict=True))
    assert pairs == {("pca_ot", 2), ("directional_ablation", 0)}
    here = rows("methods")
    assert set(here["layer"].dropna()) == {5}
    assert {"rfa", "pca_ot", "none"} <= set(here["method"])


def test_the_plane_from_activations_is_the_stored_one_and_half_strength_is_halfway(opened):
    def plane(**fields):
        table = views()["plane"].drawing(opened.run, state_of(opened, **fields)).tables["plane"]
        return table.pivot_table(index=["class", "prompt"], columns="state", values="pc1")

    stored = opened.run.tables["plane"]
    layer = int(stored["layer"].iloc[0])
    complete, half = plane(layers=str(layer)), plane(layers=str(layer), strength="0.5")
    known = stored[stored["layer"] == layer].pivot_table(
        index=["class", "prompt"], columns="state", values="pc1"
    )
    np.testing.assert_allclose(complete, known[complete.columns], atol=1e-8)
    edit = "pca_ot (k = 2)"
    np.testing.assert_allclose(half[edit], (complete["before"] + complete[edit]) / 2, atol=1e-8)
    assert not np.allclose(half[edit], complete[edit])


def test_controls_are_the_range_of_their_draws(opened):
    sweep = opened.run.tables["localization"]
    band, draws = control_range(sweep, MEASURES["refusal_score/harmful"], "pca_ot:2", "random_subspace")
    rows = sweep.query(
        "control == 'random_subspace' and method == 'pca_ot' and k == 2 and layer == 7"
        " and measure == 'refusal_score' and prompts == 'harmful'"
    )
    at = list(band.x).index(7)
    assert draws == len(rows) == 2
    assert (band.low[at], band.high[at]) == (rows["value"].min(), rows["value"].max())
    assert control_range(sweep, MEASURES["refusal_score/harmful"], "pca_ot:2", "permuted_labels") is None


@given(
    st.dictionaries(
        st.sampled_from(["layers", "ot", "by", "measure", "strength", "tokens", "other"]),
        st.one_of(
            st.none(), st.text(max_size=30), st.integers(), st.floats(), st.lists(st.integers(), max_size=3)
        ),
    ),
    st.booleans(),
)
def test_any_request_gives_a_state_that_a_view_answers(opened, asked, strict):
    state = opened.read(asked, strict=strict)
    assert 0 <= state.strength <= 1
    assert strict or set(state.layers) <= set(LAYERS)
    assert content(views()["spectra"], opened.run, state) is not None


@pytest.mark.parametrize("name", ["depth", "interchange", "contributions", "spectra"])
def test_only_the_words_change_where_the_page_marks_what_is_chosen(opened, name):
    here, there = (content(views()[name], opened.run, state_of(opened, layers=n)) for n in ("5", "7"))
    assert (here.figure is there.figure) == (name != "spectra")
    assert "ayer 5" in here.note
    assert "ayer 7" in there.note


def test_layers_and_methods_that_a_second_run_lacks_are_said_to_be_missing(opened, copied_run):
    state = opened.read({"layers": "99", "ot": "gaussian_ot:3"}, strict=True)
    assert (state.layers, state.ot) == ((99,), "gaussian_ot:3")
    assert "99" in missing(opened, state, "spectra")
    assert missing(opened, state, "plane")
    assert opened.read({"ot": "../../etc/passwd"}, strict=True).ot == opened.first.ot
    table = copied_run / "tables" / "localization.parquet"
    sweep = pd.read_parquet(table)
    sweep[sweep["method"] != "directional_ablation"].to_parquet(table)
    other = Choices(OpenRun(copied_run))
    warm([opened.run, other.run])
    asked = {"ot": "directional_ablation", "by": "directional_ablation", "measure": "kl/harmless"}
    state = other.read(asked, strict=True)
    assert "no value of" in missing(other, state, "depth")
    assert not missing(other, state, "spectra")


@pytest.mark.parametrize(
    ("table", "view"),
    [
        ("localization", "localization"),
        ("geometry", "distances"),
        ("spectra", "spectra"),
        ("cosines", "cosines"),
        ("plane", None),  # computed from the activations
    ],
)
def test_a_missing_table_is_named_and_the_rest_is_shown(copied_run, table, view):
    (copied_run / "tables" / f"{table}.parquet").unlink()
    choices = Choices(OpenRun(copied_run))
    gone = {name: view.missing for name, view in shown(choices, choices.first).items() if view.missing}
    assert len(gone) < len(OWN)
    assert all(table in why for why in gone.values())
    assert view is None or view in gone
    assert facts([choices], None)["layers"] == list(LAYERS)


def test_a_torn_table_and_a_torn_map_are_said_to_be_torn(copied_run):
    for name in ("tables/spectra.parquet", "maps/pca_ot-k2/layer-007.safetensors"):
        path = copied_run / name
        path.write_bytes(path.read_bytes()[:200])
    choices = Choices(OpenRun(copied_run))
    assert "cannot be read" in missing(choices, choices.first, "spectra")
    assert "cannot be read" in choices.run.faults["spectra"]
    assert missing(choices, choices.read({"layers": "7", "ot": "pca_ot:2"}), "plane")


def test_a_run_without_any_table_still_opens_and_another_folder_is_refused(copied_run, tmp_path):
    for path in (copied_run / "tables").iterdir():
        path.unlink()
    choices = Choices(OpenRun(copied_run))
    assert choices.layers == list(LAYERS)
    found = shown(choices, choices.first)
    assert not found["plane"].missing
    assert found["depth"].missing
    with pytest.raises(RunFolderError, match="not a run folder"):
        OpenRun(tmp_path)


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_runs_of_any_depth_are_shown(from_tables, layers):
    made = generators_tables.tables(layers=layers, methods=generators_tables.METHODS[::5])
    choices = Choices(OpenRun(from_tables(made)))
    assert len(choices.layers) == layers
    found = shown(choices, choices.read({"layers": str(layers - 1)}))
    assert {name for name, view in found.items() if view.missing} <= {"plane", "spectra"}


def test_rows_of_nan_leave_gaps_and_rows_of_nonsense_are_said_to_be(from_tables):
    tables = generators_tables.tables()
    values = {"localization": "value", "geometry": "value", "spectra": "eigenvalue", "cosines": "cosine"}
    for name, column in values.items():
        tables[name].loc[tables[name].index % 2 == 0, [column, "low", "high"]] = np.nan
    tables["cosines"] = tables["cosines"].drop(columns="layer_a").assign(layer_a="x")
    choices = Choices(OpenRun(from_tables(tables)))
    found = shown(choices, choices.first)
    assert not found["distances"].missing
    assert "cosines" in found["cosines"].missing


def test_a_run_of_one_prompt_per_class_is_shown_without_intervals(from_tables):
    tables = {name: generators_tables.tables()[name] for name in ("localization", "plane", "plane_ellipses")}
    tables["plane"] = tables["plane"][tables["plane"]["prompt"] == 0]
    tables["plane_ellipses"].loc[:, ["cov11", "cov12", "cov22"]] = np.nan
    tables["localization"].loc[:, ["low", "high"]] = np.nan
    choices = Choices(OpenRun(from_tables(tables)))
    found = shown(choices, choices.read({"layers": str(tables["plane"]["layer"].iloc[0])}))
    assert {name for name, view in found.items() if view.missing} == {"distances", "spectra", "cosines"}
    assert "no table" in found["spectra"].missing


def test_without_activations_the_plane_says_which_layers_it_has(copied_run):
    for path in (copied_run / "activations").rglob("index.json"):
        path.unlink()
    for name in ("plane", "plane_ellipses"):
        path = copied_run / "tables" / f"{name}.parquet"
        table = pd.read_parquet(path)
        table[table["layer"] != 5].to_parquet(path)
    choices = Choices(OpenRun(copied_run))
    assert not missing(choices, state_of(choices, layers="7"), "plane")
    why = missing(choices, state_of(choices), "plane")
    assert "activations" in why
    assert "layer 5" in why
