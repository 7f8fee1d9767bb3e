"""The estimate of a run: it counts what the run then does, and more prompts take longer."""

import re

import pandas as pd
import pytest
import torch

from ot_lens.activations import Activations
from ot_lens.cli import console
from ot_lens.study import Cost, estimate_run, parse_config
from ot_lens.study.estimate import _extrapolated, _Sample


def test_the_estimate_counts_what_the_run_does(finished_run, run_settings):
    costs = {cost.stage: cost for cost in estimate_run(parse_config(run_settings))}
    assert all(cost.price > 0 for cost in costs.values() if cost.stage not in ("sweep, answers", "search"))
    sweep = pd.read_parquet(finished_run / "tables" / "localization.parquet")
    assert costs["sweep, answers"].count + costs["sweep, next token"].count == sweep["key"].nunique() - 1
    assert costs["maps"].count == len(list((finished_run / "maps").rglob("*.safetensors")))
    assert costs["activations"].count == 2 * 16 + 2 * 12
    tried = sweep.loc[sweep["measure"] == "choice_price", "note"].str.extract(r"best of (\d+)")[0]
    assert costs["search"].count == tried.astype(int).sum()
    edits = pd.read_parquet(finished_run / "tables" / "visibility.parquet")
    assert costs["visibility"].count == len(edits[["method", "edited_layer"]].drop_duplicates())
    alike = pd.read_parquet(finished_run / "tables" / "model_similarity.parquet")
    assert costs["similarity of models"].count == len(alike[["comparison", "method"]].drop_duplicates())


def test_twice_the_prompts_take_longer():
    none = torch.zeros(1, 1, 1, 2)
    acts = Activations({"harmful": none, "harmless": none}, (0,), (-1,), "resid_pre")

    def sample(share: float, seconds: float) -> _Sample:
        return _Sample(acts, {}, [], [], share, {"capture": seconds, "score": 1.0})

    whole = _extrapolated(sample(0.25, 1.0), sample(0.5, 1.5))
    assert whole.seconds == pytest.approx({"capture": 2.5, "score": 1.0})  # one fixed second and a half
    assert _extrapolated(sample(0.25, 1.0)).seconds["capture"] == pytest.approx(4.0)
    faster = _extrapolated(sample(0.25, 1.0), sample(0.5, 0.9))  # noise: never less than what was measured
    assert faster.seconds["capture"] == pytest.approx(0.9)


def test_the_command_prints_80_columns_and_writes_nothing(command, tmp_path, monkeypatch):
    costs = [
        Cost("loading the model", 1, "model", 141.0),
        Cost("controls", 1, "", 7000.0),
        Cost("sweep, next token", 123_456, "edits", 0.012),
    ]
    monkeypatch.setattr("ot_lens.study.estimate.estimate_run", lambda *_, **__: costs)
    monkeypatch.setattr("ot_lens.study.estimate_run", lambda *_, **__: costs)
    monkeypatch.setattr(console.out, "width", 80)
    code, printed, _ = command("demo", "--estimate")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert re.search(r"sweep, next token +123,456 edits +12 ms +24 min 41 s", printed)
    assert re.search(r"total +2 h 23 min", printed)
    _, printed, _ = command("demo", "--estimate", "--processes", 2)  # the sweep is shared, loading is not
    assert re.search(r"in 2 processes, at least +2 h 11 min", printed)
    _, printed, _ = command("demo", "--estimate", "--processes", 1)
    assert "processes" not in printed
    assert list(tmp_path.iterdir()) == []
