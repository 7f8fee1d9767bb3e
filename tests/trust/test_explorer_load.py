"""Twenty users at once: no errors, no live edit in another user's answer; times are recorded, not judged."""

import subprocess
import sys
from pathlib import Path

import pytest

from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from tests.trust.explorer_users import Crowd, listening

USERS = 20


@pytest.fixture(scope="module")
def run(full_size, repository, tmp_path_factory, finished_run) -> Path:
    """The demo run at full size, else the small one."""
    if not full_size:
        return finished_run
    demo = repository / "runs" / "demo"
    # An unfinished run, or one of an earlier format, has no readable maps.
    if not (demo / "report.html").is_file() or not OpenRun(demo).map_folders:
        demo = tmp_path_factory.mktemp("load") / "demo"
        subprocess.run([sys.executable, "-m", "ot_lens.cli", "demo", "--out", str(demo)], check=True)
    return demo


def states_of(choices: Choices) -> list[dict]:
    """States that differ in layer, edits and strength, all with maps."""
    layers = [n for n in choices.layers if n > 0]
    keys = [key for key in choices.run.map_folders if key.startswith("pca_ot")]
    some = [layers[0], layers[len(layers) // 2], layers[-1]]
    return [
        {"layers": [layer], "ot": keys[at % len(keys)], "by": "directional_ablation", "strength": strength}
        for at, (layer, strength) in enumerate([(n, s) for n in dict.fromkeys(some) for s in (0.0, 0.5, 1.0)])
    ]


def test_twenty_users_at_once(run, full_size, record_property):
    choices = Choices(OpenRun(run))
    prompts = choices.run.texts["harmful"][:2]
    with listening(run) as (port, process):
        crowd = Crowd(port, states_of(choices)[: None if full_size else 3], prompts)
        assert {status for status, _ in crowd.alone.values()} == {200}
        assert len(set(crowd.alone.values())) > len(prompts) * 2  # the edits are distinguishable
        crowd.run(USERS, 60.0 if full_size else 5.0, (0.5, 1.5))
        process.terminate()
        told = process.stderr.read()
    assert crowd.wrong == []
    assert "Traceback" not in told
    asked = {kind: len(times) for kind, times in crowd.seconds.items()}
    record_property("explorer_load_requests", sum(asked.values()))
    for kind, number in asked.items():
        record_property(f"explorer_load_{kind}_requests", number)
        for share in (0.5, 0.95):
            seconds = round(crowd.quantile(share, kind), 4)
            record_property(f"explorer_load_{kind}_p{round(100 * share)}_seconds", seconds)
            print(kind, number, f"p{100 * share:.0f}", seconds)
    assert asked["view"] > asked["live"] > 0


def test_the_comparison_can_fail(run):
    """A crowd that expects the wrong single-user answers says so."""
    choices = Choices(OpenRun(run))
    with listening(run) as (port, _process):
        crowd = Crowd(port, states_of(choices)[:2], choices.run.texts["harmful"][:1])
        swapped = list(crowd.alone.values())[::-1]
        crowd.alone = dict(zip(crowd.alone, swapped, strict=True))
        crowd.run(4, 0.0, (0.0, 0.0))
        for key, expected in crowd.alone.items():
            crowd._timed("live", lambda key=key: crowd._live(*key), expected)
    assert any("differs from that to a single user" in line for line in crowd.wrong)
