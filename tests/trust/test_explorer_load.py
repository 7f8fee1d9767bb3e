"""Twenty users at once: no errors, no live edit in another user's answer; times are recorded, not judged."""

import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ot_lens.explorer.guard import UPDATE
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from tests.explorer.requests import asked, live

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
        self._lock = threading.Lock()
        bodies = [
            live(text, what, 0, **s) for what, text, s in product(("tokens", "answers"), prompts, states)
        ]
        self.alone = {body: self._ask("POST", UPDATE, body) for body in bodies}

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and content of one request, as a browser on this machine sends it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        origin = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body, origin if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def run(self, users: int, seconds: float, thought: tuple[float, float]) -> None:
        """Run users for a while; each thinks for some seconds between two requests."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._user, args=(n, end, thought)) for n in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _user(self, number: int, end: float, thought: tuple[float, float]) -> None:
        chance = random.Random(number)
        for path in ("/", "/_dash-layout"):
            self.timed("page", lambda path=path: self._ask("GET", path))
        while time.monotonic() < end:
            time.sleep(chance.uniform(*thought))
            self._question(number, chance)

    def _question(self, number: int, chance: random.Random) -> None:
        state, drawn = chance.choice(self.states), chance.random()
        if drawn < 0.75:
            body = json.dumps(asked(chance.choice(VIEWS), data=state))
            self.timed("view", lambda: self._ask("POST", UPDATE, body))
        elif drawn < 0.85:
            query = f"layers={state['layers'][0]}&ot={state['ot']}&by={state['by']}"
            path = f"/export/0/{chance.choice(VIEWS)}.{chance.choice(['csv', 'py'])}?{query}"
            self.timed("file", lambda: self._ask("GET", path))
        elif drawn < 0.97:
            self.live(chance.choice(list(self.alone)))
        else:
            # An exception halfway: no map at that layer, or a prompt that is too long.
            odd = {"prompt": "x" * 3000} if number % 2 else {"prompt": "hello", "ot": "rfa", "layers": [0]}
            body = live(number=0, **{**state, **odd})
            self.timed("refused", lambda: self._ask("POST", UPDATE, body))

    def live(self, body: str) -> None:
        """A live edit, whose answer is known."""
        self.timed("live", lambda: self._ask("POST", UPDATE, body), self.alone[body])

    def timed(self, kind: str, ask: Callable[[], tuple[int, bytes]], expected: Any = None) -> None:
        began = time.monotonic()
        try:
            answer = ask()
        except OSError as error:
            answer = (0, repr(error).encode())
        with self._lock:
            self.seconds[kind].append(time.monotonic() - began)
            if answer[0] != 200:
                self.wrong.append(f"{kind}: {answer[0]} {answer[1][:80]!r}")
            elif expected is not None and answer != expected:
                self.wrong.append(f"{kind}: an answer that differs from that to a single user")


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
    some = dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]])
    return [
        {"layers": [layer], "ot": keys[at % len(keys)], "by": "directional_ablation", "strength": strength}
        for at, (layer, strength) in enumerate(product(some, (0.0, 0.5, 1.0)))
    ]


def test_twenty_users_at_once(run, full_size, record_property):
    choices = Choices(OpenRun(run))
    states, prompts = states_of(choices), choices.run.texts["harmful"][: 2 if full_size else 1]
    with listening(run) as (port, process):
        crowd = Crowd(port, states if full_size else states[:3], prompts)
        assert {status for status, _ in crowd.alone.values()} == {200}
        assert len(set(crowd.alone.values())) > len(prompts) * 2  # the edits are distinguishable
        crowd.run(USERS, 60.0 if full_size else 3.0, (0.5, 1.5) if full_size else (0.1, 0.6))
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
