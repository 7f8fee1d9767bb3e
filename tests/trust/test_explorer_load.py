"""Twenty users at once: no errors, no live edit in another user's answer; times are recorded, not judged."""

import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ot_lens.explorer.guard import UPDATE
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from tests.explorer.requests import live, view_path

USERS, PATIENCE = 20, 120.0
VIEWS = ("depth", "plane", "localization", "methods", "distances", "spectra", "cosines")


@contextmanager
def listening(run: Path) -> Iterator[tuple[int, subprocess.Popen]]:
    """The command in a separate process, with its port."""
    command = [sys.executable, "-m", "ot_lens.cli", "explore", str(run), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(line for line in process.stdout if "http://" in line).split("http://")[1]
            yield int(address.split(":")[1].split("/")[0]), process
        finally:
            process.terminate()


class Crowd:
    """Concurrent users with seeded requests: each asks, reads for a moment and asks again.

    Attributes:
        seconds: Seconds from request to complete answer, by kind of request.
        wrong: Errors, statuses other than 200, and answers that differ from those to a single user.
    """

    def __init__(self, port: int, states: Sequence[dict[str, Any]], prompts: Sequence[str]) -> None:
        self.port, self.states = port, states
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        parts = product(("tokens", "answers"), prompts, states)
        bodies = [live(text, what, 0, **state) for what, text, state in parts]
        self.alone = {body: self.ask("page", UPDATE, body) for body in bodies}

    def ask(self, kind: str, path: str, body: str | None = None, expected: bytes | None = None) -> bytes:
        """The answer to one request, as a browser on this machine sends it; trouble is kept."""
        connection, began = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE), time.monotonic()
        origin = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        try:
            connection.request("POST" if body else "GET", path, body, origin if body else {})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except OSError as error:
            status, content = 0, repr(error).encode()
        finally:
            connection.close()
        self.seconds[kind].append(time.monotonic() - began)
        if status != 200:
            self.wrong.append(f"{kind}: {status} {content[:80]!r}")
        elif expected is not None and content != expected:
            self.wrong.append(f"{kind}: an answer that differs from that to a single user")
        return content

    def run(self, users: int, seconds: float, thought: tuple[float, float]) -> None:
        """Run users for a while; each thinks for some seconds between two requests."""

        def user(number: int) -> None:
            chance = random.Random(number)
            self.ask("page", "/")
            self.ask("page", "/_dash-layout")
            while time.monotonic() < end:
                time.sleep(chance.uniform(*thought))
                self.question(chance)

        end = time.monotonic() + seconds
        with ThreadPoolExecutor(users) as pool:
            list(pool.map(user, range(users)))

    def question(self, chance: random.Random) -> None:
        state, drawn = chance.choice(self.states), chance.random()
        if drawn < 0.75:
            layers = ",".join(map(str, state["layers"]))
            self.ask("view", view_path(chance.choice(VIEWS), **state | {"layers": layers}))
        elif drawn < 0.85:
            query = f"layers={state['layers'][0]}&ot={state['ot']}&by={state['by']}"
            self.ask("file", f"/export/0/{chance.choice(VIEWS)}.{chance.choice(['csv', 'py'])}?{query}")
        elif drawn < 0.97:
            self.live(chance.choice(list(self.alone)))
        else:
            # An exception halfway: no map at that layer, or a prompt that is too long.
            odd = chance.choice([{"prompt": "x" * 3000}, {"prompt": "hello", "ot": "rfa", "layers": [0]}])
            self.ask("refused", UPDATE, live(number=0, **{**state, **odd}))

    def live(self, body: str) -> None:
        """A live edit, whose answer is known."""
        self.ask("live", UPDATE, body, self.alone[body])


def states_of(choices: Choices) -> list[dict]:
    """States that differ in layer, edits and strength, all with maps."""
    layers = [n for n in choices.layers if n > 0]
    keys = [key for key in choices.run.map_folders if key.startswith("pca_ot")]
    some = dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]])
    return [
        {"layers": [layer], "ot": keys[at % len(keys)], "by": "directional_ablation", "strength": strength}
        for at, (layer, strength) in enumerate(product(some, (0.0, 0.5, 1.0)))
    ]


@pytest.mark.campaign
def test_twenty_users_at_once(finished_run, record_property):
    choices = Choices(OpenRun(finished_run))
    states, prompts = states_of(choices), choices.run.texts["harmful"][:2]
    with listening(finished_run) as (port, process):
        sockets = [at for at in psutil.net_connections("tcp") if at.pid == process.pid]
        assert [at.laddr.ip for at in sockets if at.status == "LISTEN"] == ["127.0.0.1"]
        crowd = Crowd(port, states, prompts)
        assert crowd.wrong == []
        assert len(set(crowd.alone.values())) > len(prompts) * 2  # the edits are distinguishable
        crowd.run(USERS, 60.0, (0.5, 1.5))
        wrong = list(crowd.wrong)
        # The control: a crowd that expects the answers to other questions says so.
        crowd.alone = dict(zip(crowd.alone, list(crowd.alone.values())[::-1], strict=True))
        for body in crowd.alone:
            crowd.live(body)
        process.terminate()
        assert "Traceback" not in process.stderr.read()
    assert wrong == []
    assert any("differs from that to a single user" in line for line in crowd.wrong)
    for kind, seconds in crowd.seconds.items():
        record_property(f"explorer_load_{kind}_requests", len(seconds))
        for share in (0.5, 0.95):
            name = f"explorer_load_{kind}_p{round(100 * share)}_seconds"
            record_property(name, round(float(np.quantile(seconds, share)), 4))
    assert len(crowd.seconds["view"]) > len(crowd.seconds["live"]) - len(crowd.alone) > 0
