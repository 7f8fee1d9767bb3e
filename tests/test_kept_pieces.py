"""Pieces of a plan that are kept in the run folder: computed once, and handed on as they were written."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour import PanelSettings, phrase_list
from ot_lens.localization import Method, fit_maps, fit_sequentially, search
from ot_lens.localization.search import search_by_pieces
from ot_lens.localization.sequential import sequential_by_pieces
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study import RunFolder, StudyConfig
from ot_lens.study.kept import KeptPieces
from ot_lens.transport import AffineMap


class StoppedError(Exception):
    """In the midst of a piece."""


class Executor:
    """Computes here, and stops after so many pieces."""

    name = "counting"
    in_process = True

    def __init__(self, model: Any = None, stops_after: int | None = None) -> None:
        self.model, self.stops_after, self.done = model, stops_after, []

    def call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        return function(self.model, *arguments, **options)

    def stream(self, function: Any, pieces: Sequence[Any], *arguments: Any) -> Iterator[Any]:
        for piece in pieces:
            if len(self.done) == self.stops_after:
                raise StoppedError
            self.done.append(piece[0])
            yield from function(self.model, *arguments, [piece])


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.start(tmp_path, StudyConfig(), resume=False)


def numbers(_model: Any, factor: float, piece: list[float]) -> list[float]:
    return [factor * number for number in piece]


def test_a_stop_repeats_no_piece_that_was_kept(folder):
    pieces = {"a": [0.1, 1 / 3], "b": [], "c": [1e-300, float("inf")]}
    first = Executor(stops_after=2)
    with pytest.raises(StoppedError):
        KeptPieces(folder, first, "parts/planned")(numbers, pieces, 3.0)
    second = Executor()
    found = KeptPieces(folder, second, "parts/planned")(numbers, pieces, 3.0)
    assert (first.done, second.done) == (["a", "b"], ["c"])
    assert found == {name: numbers(None, 3.0, piece) for name, piece in pieces.items()}
    assert list(found) == list(pieces)
    assert KeptPieces(folder, Executor(stops_after=0), "parts/planned")(numbers, pieces, 3.0) == found
    other = Executor()
    KeptPieces(folder, other, "filtered")(numbers, pieces, 3.0)
    assert other.done == list(pieces)
    folder.drop("parts")
    assert not (folder.path / "tables" / "parts").exists()


def mapped(_model: Any, piece: int) -> AffineMap:
    drawn = torch.randn(6, 2 * piece, generator=torch.Generator().manual_seed(piece), dtype=torch.float64)
    return AffineMap(drawn[:, ::2], drawn[:, 1::2], drawn[:, 0] / 3).labelled(layer=piece, ridge=1 / 3)


def test_a_kept_map_is_the_map_to_the_bit_and_truths_stay_truths(folder):
    found = KeptPieces(folder, Executor(), "parts/planned")(mapped, {"1": 1, "2": 2})
    for name, edit in found.items():
        made = mapped(None, int(name))
        assert all(torch.equal(getattr(edit, part), getattr(made, part)) for part in ("U", "V", "bias"))
        assert edit.info == made.info
    kept = KeptPieces(folder, Executor(), "filtered")(lambda _, piece: piece, {"x": [True, False]})
    assert kept["x"] == [True, False]
    assert all(isinstance(value, bool) for value in kept["x"])


@pytest.fixture(scope="module")
def organism() -> Any:
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def prompts() -> Any:
    full = otl.load_prompts("organism")
    few = {s: Contrast(c.harmful[:6], c.harmless[:6]) for s, c in dict(full.splits).items()}
    return ContrastSet("few", **few)


METHODS = [Method("mean_shift"), Method("pca_ot", {"k": 2})]


def test_sequential_fits_and_a_search_stopped_at_every_piece_end_as_in_one_go(organism, prompts, tmp_path):
    acts = otl.capture(organism, prompts.train, layers=[3, 5, 7])
    maps = fit_maps(acts, METHODS, layers=acts.layers, position=-1)
    settings = PanelSettings(
        ("refusal_score",), phrase_list("arditi"), otl.refusal_token_ids(organism), batch_size=4
    )
    later = fit_sequentially(organism, prompts.train, METHODS, layers=acts.layers, batch_size=4)
    best = search(organism, prompts.val.harmful, maps, settings, size=2, each_size=True)
    folder = RunFolder.start(tmp_path, StudyConfig(), resume=False)
    done: list[str] = []
    for _ in range(20):
        executor = Executor(organism, stops_after=1)
        compute = KeptPieces(folder, executor, "parts/planned")
        try:
            again = sequential_by_pieces(
                compute,
                prompts.train,
                acts,
                METHODS,
                layers=acts.layers,
                position=-1,
                hook="resid_pre",
                tokens="all",
                batch_size=4,
            )
            found = search_by_pieces(
                compute, 8, prompts.val.harmful, maps, settings, size=2, kind="beam", each_size=True
            )
            break
        except StoppedError:
            done += executor.done
    assert len(done) == len(set(done)) == 2 * 3 + 2 * 2 - 1
    assert found == best
    for method, by_layer in later.items():
        for layer, edit in by_layer.items():
            torch.testing.assert_close(again[method][layer].bias, edit.bias, rtol=1e-9, atol=1e-9)


def test_a_set_is_a_piece_where_the_model_cannot_be_walked(organism, prompts, monkeypatch, tmp_path):
    acts = otl.capture(organism, prompts.train, layers=[5, 7])
    maps = fit_maps(acts, METHODS[:1], layers=acts.layers, position=-1)
    settings = PanelSettings(("refusal_score",), phrase_list("arditi"), otl.refusal_token_ids(organism))
    walked = search(organism, prompts.val.harmful, maps, settings, size=2)
    folder, executor = RunFolder.start(tmp_path, StudyConfig(), resume=False), Executor(organism)
    # The package gives the module's name to the function.
    module = importlib.import_module("ot_lens.localization.search")
    monkeypatch.setattr(module, "why_not", lambda *_: "it cannot")
    hooked = search_by_pieces(
        KeptPieces(folder, executor, "parts/planned"),
        8,
        prompts.val.harmful,
        maps,
        settings,
        size=2,
        kind="beam",
    )
    assert [name.split("|")[1] for name in executor.done] == ["walk", "hooks", "hooks", "walk", "hooks"]
    assert [b.layers for b in hooked] == [b.layers for b in walked]
    assert hooked[0].score == pytest.approx(walked[0].score, abs=1e-4)
