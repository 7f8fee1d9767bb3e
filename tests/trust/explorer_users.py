"""Users of the explorer for a load test: each requests, reads for a moment and requests again, all timed."""

import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from ot_lens.explorer.guard import UPDATE
from tests.explorer.test_hostile_requests import live
from tests.explorer.test_server import asked

VIEWS = ("depth", "plane", "localization", "methods", "distances", "spectra", "cosines")
PATIENCE = 120.0


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


def answered(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    """Status and content of one request, as a browser on this machine sends it."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"} if body else {}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Crowd:
    """Concurrent users with seeded requests.

    Attributes:
        seconds: Seconds from request to complete answer, by kind of request.
        wrong: Errors, statuses other than 200, and answers that differ from those to a single user.
    """

    def __init__(self, port: int, states: Sequence[dict[str, Any]], prompts: Sequence[str]) -> None:
        self.port, self.states, self.prompts = port, states, prompts
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self.alone = {key: self._live(*key) for key in self._questions()}

    def _questions(self) -> list[tuple[str, int, int]]:
        return [
            (what, prompt, state)
            for what in ("tokens", "answers")
            for prompt in range(len(self.prompts))
            for state in range(len(self.states))
        ]

    def _live(self, what: str, prompt: int, state: int) -> tuple[int, bytes]:
        body = live(self.prompts[prompt], what, 0, **self.states[state])
        return answered(self.port, "POST", UPDATE, body)

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
        self._timed("page", lambda: answered(self.port, "GET", "/"))
        self._timed("page", lambda: answered(self.port, "GET", "/_dash-layout"))
        while time.monotonic() < end:
            time.sleep(chance.uniform(*thought))
            self._question(number, chance)

    def _question(self, number: int, chance: random.Random) -> None:
        state = chance.choice(self.states)
        drawn = chance.random()
        if drawn < 0.75:
            body = json.dumps(asked(chance.choice(VIEWS), data=state))
            self._timed("view", lambda: answered(self.port, "POST", UPDATE, body))
        elif drawn < 0.85:
            query = f"layers={state['layers'][0]}&ot={state['ot']}&by={state['by']}"
            path = f"/export/0/{chance.choice(VIEWS)}.{chance.choice(['csv', 'py'])}?{query}"
            self._timed("file", lambda: answered(self.port, "GET", path))
        elif drawn < 0.97:
            key = chance.choice(self._questions())
            self._timed("live", lambda: self._live(*key), self.alone[key])
        else:
            # An exception halfway: no map at that layer, or a prompt that is too long.
            odd = {"prompt": "x" * 3000} if number % 2 else {"prompt": "hello", "ot": "rfa", "layers": [0]}
            body = live(number=0, **{**state, **odd})
            self._timed("refused", lambda: answered(self.port, "POST", UPDATE, body))

    def _timed(self, kind: str, ask: Any, expected: Any = None) -> None:
        began = time.monotonic()
        try:
            found = ask()
        except OSError as error:
            found = (0, repr(error).encode())
        took = time.monotonic() - began
        with self._lock:
            self.seconds[kind].append(took)
            if found[0] != 200:
                self.wrong.append(f"{kind}: {found[0]} {found[1][:80]!r}")
            elif expected is not None and found != expected:
                self.wrong.append(f"{kind}: an answer that differs from that to a single user")

    def quantile(self, share: float, *kinds: str) -> float:
        """Seconds within which this share of the requests of some kinds was answered."""
        return float(np.quantile([s for kind in kinds for s in self.seconds[kind]], share))
