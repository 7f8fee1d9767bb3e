"""Views without a browser: figures, rows, the code that makes them, and incomplete runs."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ot_lens.errors import RunFolderError
from ot_lens.explorer.depth_view import control_range
from ot_lens.explorer.facts import facts
from ot_lens.explorer.plane_view import plane_tables
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from ot_lens.explorer.view import csv_text, image
from ot_lens.explorer.views import VIEWS, content, views_of, warm
from ot_lens.plots.measures import MEASURES
from tests import generators_tables
from tests.explorer.conftest import LAYERS

OWN = ("depth", "plane", "localization", "methods", "distances", "spectra", "cosines")


def state_of(choices, **fields):
    return choices.read({"layers": "5", "ot": "pca_ot:2", "by": "directional_ablation", **fields})


def shown(choices, state, names=OWN):
    return {name: content(VIEWS[name], choices.run, state) for name in names}


def test_every_view_of_a_whole_run_is_drawn(opened):
    names = [view.name for view in views_of([opened.run])]
    found = shown(opened, state_of(opened), names)
    assert {name for name, view in found.items() if view.missing} == set()
    assert set(OWN) <= set(found)
    for view in found.values():
        assert json.dumps(view.figure, allow_nan=False)


# Views of tables that the small run lacks: it sweeps neither pairs nor strengths.
OF_OTHER_RUNS = ("pair_matrix", "strength_by_layer", "run_cosines", "diagnostics")


def makes_its_figure(view, choices, state, monkeypatch, folder):
    """Run the code of a view elsewhere; its files must equal those that the page offers."""
    found = content(view, choices.run, state)
    assert not found.missing
    monkeypatch.chdir(folder)
    exec(compile(found.code, view.name, "exec"), {})
    assert (folder / f"{view.name}.png").read_bytes() == image(view, choices.run, state, "png")
    assert (folder / f"{view.name}.svg").stat().st_size > 1000


@pytest.mark.trust
@pytest.mark.parametrize("name", sorted(set(VIEWS) - set(OF_OTHER_RUNS)))
def test_the_python_of_a_view_makes_its_figure(opened, name, tmp_path, monkeypatch):
    makes_its_figure(VIEWS[name], opened, state_of(opened, strength="0.5"), monkeypatch, tmp_path)


@pytest.mark.trust
@pytest.mark.parametrize("name", OF_OTHER_RUNS)
def test_the_python_of_a_view_of_other_tables_makes_its_figure(from_tables, name, tmp_path, monkeypatch):
    made = generators_tables.tables(layers=6)
    view = VIEWS[name]
    choices = Choices(OpenRun(from_tables(made)))
    makes_its_figure(view, choices, choices.first, monkeypatch, tmp_path)


def test_the_python_of_a_quantity_of_the_geometry_makes_its_figure(opened, tmp_path, monkeypatch):
    state = state_of(opened, measure="geometry/effective_rank_harmful")
    assert state.measure == "geometry/effective_rank_harmful"
    monkeypatch.chdir(tmp_path)
    exec(content(VIEWS["depth"], opened.run, state).code, {})
    assert (tmp_path / "depth.png").read_bytes() == image(VIEWS["depth"], opened.run, state, "png")


def test_rows_are_those_of_the_state(opened):
    rows = pd.read_csv(pd.io.common.StringIO(csv_text(VIEWS["localization"], opened.run, state_of(opened))))
    acting = rows[rows["method"] != "none"]
    assert set(zip(acting["method"], acting["k"].fillna(0), strict=True)) == {
        ("pca_ot", 2),
        ("directional_ablation", 0),
    }
    here = pd.read_csv(pd.io.common.StringIO(csv_text(VIEWS["methods"], opened.run, state_of(opened))))
    assert set(here["layer"].dropna()) == {5}
    assert {"rfa", "pca_ot", "none"} <= set(here["method"])


def test_the_plane_from_activations_is_the_stored_one(opened):
    stored = opened.run.tables["plane"]
    layer = int(stored["layer"].iloc[0])
    found = plane_tables(opened.run, state_of(opened, layers=str(layer)))["plane"]
    both = stored.merge(found, on=["layer", "prompt", "class", "state"])
    assert len(both) == len(found)
    np.testing.assert_allclose(both["pc1_x"], both["pc1_y"], atol=1e-8)
    half = plane_tables(opened.run, state_of(opened, layers=str(layer), strength="0.5"))["plane"]
    wide = half.pivot_table(index=["class", "prompt"], columns="state", values="pc1")
    whole = found.pivot_table(index=["class", "prompt"], columns="state", values="pc1")
    middle = (whole["before"] + whole["pca_ot (k = 2)"]) / 2
    np.testing.assert_allclose(wide["pca_ot (k = 2)"], middle, atol=1e-8)
    assert not np.allclose(wide["pca_ot (k = 2)"], whole["pca_ot (k = 2)"])


def test_controls_are_the_range_of_their_draws(opened):
    sweep = opened.run.tables["localization"]
    band, draws = control_range(sweep, MEASURES["refusal_score/harmful"], "pca_ot:2", "random_subspace")
    rows = sweep[
        (sweep["control"] == "random_subspace")
        & (sweep["method"] == "pca_ot")
        & (sweep["k"] == 2)
        & (sweep["layer"] == 7)
        & (sweep["measure"] == "refusal_score")
        & (sweep["prompts"] == "harmful")
    ]
    at = list(band.x).index(7)
    assert draws == len(rows) == 2
    assert (band.low[at], band.high[at]) == (rows["value"].min(), rows["value"].max())
    assert control_range(sweep, MEASURES["refusal_score/harmful"], "pca_ot:2", "permuted_labels") is None


def test_a_state_goes_into_a_link_and_comes_back(opened):
    from urllib.parse import parse_qs

    state = state_of(opened, layers="7,2", strength="0.25", tokens="last", measure="kl/harmless")
    assert state.layers == (7, 2)
    assert opened.read({k: v[0] for k, v in parse_qs(state.query).items()}) == state


@given(
    st.dictionaries(
        st.sampled_from(["layers", "ot", "by", "measure", "strength", "tokens", "other"]),
        st.one_of(
            st.none(), st.text(max_size=30), st.integers(), st.floats(), st.lists(st.integers(), max_size=3)
        ),
    ),
    st.booleans(),
)
def test_any_request_gives_a_state_that_every_view_answers(opened, asked, strict):
    state = opened.read(asked, strict=strict)
    assert 0 <= state.strength <= 1
    assert strict or set(state.layers) <= set(LAYERS)
    assert content(VIEWS["spectra"], opened.run, state) is not None


def test_layers_and_methods_that_another_run_lacks_are_said_to_be_missing(opened):
    state = opened.read({"layers": "99", "ot": "gaussian_ot:3"}, strict=True)
    assert state.layers == (99,)
    assert state.ot == "gaussian_ot:3"
    assert "99" in content(VIEWS["spectra"], opened.run, state).missing
    assert content(VIEWS["plane"], opened.run, state).missing
    assert opened.read({"ot": "../../etc/passwd"}, strict=True).ot == opened.first.ot


def test_a_run_that_lacks_both_chosen_methods_beside_a_whole_one(opened, copied_run):
    table = copied_run / "tables" / "localization.parquet"
    sweep = pd.read_parquet(table)
    sweep[sweep["method"] != "directional_ablation"].to_parquet(table)
    other = OpenRun(copied_run)
    warm([opened.run, other])
    asked = {"ot": "directional_ablation", "by": "directional_ablation", "measure": "kl/harmless"}
    state = Choices(other).read(asked, strict=True)
    assert "no value of" in content(VIEWS["depth"], other, state).missing
    assert not content(VIEWS["spectra"], other, state).missing


@pytest.mark.parametrize(
    "table", ["localization", "geometry", "spectra", "cosines", "plane", "plane_ellipses"]
)
def test_a_missing_table_is_named_and_the_rest_is_shown(copied_run, table):
    (copied_run / "tables" / f"{table}.parquet").unlink()
    choices = Choices(OpenRun(copied_run))
    found = shown(choices, choices.first)
    gone = {name for name, view in found.items() if view.missing}
    assert gone < set(found)
    assert all(table in found[name].missing for name in gone if name in OWN)
    needs = {
        "geometry": "distances",
        "spectra": "spectra",
        "cosines": "cosines",
        "localization": "localization",
    }
    assert table not in needs or needs[table] in gone
    assert facts([choices], None)["layers"] == list(LAYERS)


def test_a_torn_table_is_said_to_be_torn(copied_run):
    path = copied_run / "tables" / "spectra.parquet"
    path.write_bytes(path.read_bytes()[:200])
    choices = Choices(OpenRun(copied_run))
    assert "cannot be read" in content(VIEWS["spectra"], choices.run, choices.first).missing
    assert "cannot be read" in next(iter(choices.run.faults.values()))


def test_a_torn_map_is_said_to_be_torn(copied_run):
    path = copied_run / "maps" / "pca_ot-k2" / "layer-007.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    choices = Choices(OpenRun(copied_run))
    state = choices.read({"layers": "7", "ot": "pca_ot:2"})
    assert content(VIEWS["plane"], choices.run, state).missing


def test_a_run_without_any_table_still_opens(copied_run):
    for path in (copied_run / "tables").iterdir():
        path.unlink()
    choices = Choices(OpenRun(copied_run))
    assert choices.layers == list(LAYERS)
    found = shown(choices, choices.first)
    assert not found["plane"].missing
    assert found["depth"].missing


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        OpenRun(tmp_path)


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_runs_of_any_depth_are_shown(from_tables, layers):
    made = generators_tables.tables(layers=layers, methods=generators_tables.METHODS[::5])
    choices = Choices(OpenRun(from_tables(made)))
    assert len(choices.layers) == layers
    for name, view in shown(choices, choices.read({"layers": str(layers - 1)})).items():
        assert view.figure is not None or view.missing, name
        assert name in ("plane", "spectra") or not view.missing, (name, view.missing)


def test_rows_of_nan_leave_gaps_and_no_error(from_tables):
    tables = generators_tables.tables()
    for name, column in (
        ("localization", "value"),
        ("geometry", "value"),
        ("spectra", "eigenvalue"),
        ("cosines", "cosine"),
    ):
        tables[name].loc[tables[name].index % 2 == 0, [column, "low", "high"]] = np.nan
    choices = Choices(OpenRun(from_tables(tables)))
    for name, view in shown(choices, choices.first).items():
        assert view.figure is not None or view.missing, name
        assert json.dumps(view.figure, allow_nan=False)


def test_a_run_of_one_prompt_a_class_is_shown_without_intervals(from_tables):
    tables = {name: generators_tables.tables()[name] for name in ("localization", "plane", "plane_ellipses")}
    tables["plane"] = tables["plane"][tables["plane"]["prompt"] == 0]
    tables["plane_ellipses"].loc[:, ["cov11", "cov12", "cov22"]] = np.nan
    tables["localization"].loc[:, ["low", "high"]] = np.nan
    choices = Choices(OpenRun(from_tables(tables)))
    layer = str(tables["plane"]["layer"].iloc[0])
    found = shown(choices, choices.read({"layers": layer}))
    for name in ("depth", "plane", "localization", "methods"):
        assert found[name].figure is not None, found[name].missing
        assert json.dumps(found[name].figure, allow_nan=False)
    assert "no table" in found["spectra"].missing


def test_without_activations_the_plane_says_which_layers_it_has(copied_run):
    for path in (copied_run / "activations").rglob("index.json"):
        path.unlink()
    held, other = 7, 5
    for name in ("plane", "plane_ellipses"):
        path = copied_run / "tables" / f"{name}.parquet"
        table = pd.read_parquet(path)
        table[table["layer"] != other].to_parquet(path)
    choices = Choices(OpenRun(copied_run))
    assert content(VIEWS["plane"], choices.run, state_of(choices, layers=str(held))).figure is not None
    missing = content(VIEWS["plane"], choices.run, state_of(choices, layers=str(other))).missing
    assert "activations" in missing
    assert f"layer {other}" in missing
