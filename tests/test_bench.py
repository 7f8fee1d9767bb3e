import json

import pytest
import torch

from tests.benchmarks import bench, speed
from tests.benchmarks.measure import faster, within

COLUMNS = ["name", "ours_s", "peer", "peer_s", "ratio", "bar", "meets", "sizes"]


def test_a_bar_is_a_ratio_and_a_right_answer():
    assert faster("fit", 1.0, "peer", 100.0, 100, d=4).meets
    assert not faster("fit", 1.0, "peer", 99.0, 100).meets
    assert not faster("fit", 1.0, "peer", 500.0, 100, sound=False).meets
    row = within("fit", 3.0, "floor", 2.0, 1.5, d=4)
    assert (row.ratio, row.bar, row.meets, row.sizes) == (1.5, "<= 1.5", True, {"d": 4})
    assert not within("fit", 3.1, "floor", 2.0, 1.5).meets


@pytest.mark.trust
def test_rows_are_written_and_printed(tmp_path, monkeypatch, capsys):
    out = tmp_path / "runs" / "bench.json"
    monkeypatch.setattr("sys.argv", ["bench.py", "--only", "applying", "--out", str(out)])
    bench.main()
    rows = json.loads(out.read_text())
    assert [list(row) for row in rows] == [COLUMNS]
    printed = capsys.readouterr().out
    assert "applying a rank-2 map" in printed
    assert f"{int(rows[0]['meets'])} of 1 bars met" in printed
    assert list(out.parent.iterdir()) == [out]


def test_the_gpu_bench_runs_at_a_tiny_shape_on_the_cpu():
    tiny = speed.Shape(4, 32, 4, 2, 64, 320, prompts=2, tokens=16, repeats=1, dtype=torch.bfloat16)
    rows = list(speed.gpu_speed(tiny, "cpu"))
    kinds = [row.name.partition(",")[0].partition(" of ")[0] for row in rows]
    assert kinds == ["GPU capture", "GPU capture", "GPU generation under a 2-layer PCA-OT edit", "GPU sweep"]
    assert all(row.ours_s > 0 and row.sizes["hardware"] == speed.hardware() for row in rows)


def test_the_gpu_bench_says_that_it_was_not_run(monkeypatch, capsys):
    monkeypatch.setattr(speed.torch.cuda, "is_available", lambda: False)
    assert list(speed.gpu_speed()) == []
    assert capsys.readouterr().out.strip() == speed.NOT_RUN
