"""Requests as an attacker writes them, byte by byte, to a listening server, which refuses them."""

import json
import socket
import time

import pytest

from ot_lens.explorer import serving as server_module
from ot_lens.explorer.app import build_app
from ot_lens.explorer.guard import MOST_BYTES, UPDATE
from ot_lens.explorer.live import MOST_CHARACTERS, live_model
from ot_lens.generation import Completion
from tests.explorer.conftest import serving
from tests.explorer.requests import live, update, view_path

ROUTES = (
    "/ /anything /_dash-layout /_dash-dependencies /_reload-hash /_favicon.ico /assets/explorer.js "
    "/_dash-component-suites/dash/dcc/dash_core_components.js /export/0/spectra.csv /export/0/spectra.svg "
    "/view/0/spectra"
)
HOSTS = (
    "evil.example localhost.evil 192.168.0.9:{port} evil.example@127.0.0.1 127.0.0.1@evil.example "
    "127.0.0.1#evil.example 127.0.0.1/evil.example 127.0.0.1:evil 127.0.0.1:999999 2130706433 127.1 "
    "127.0.0.2 [::ffff:127.0.0.1]:{port} [::1%25lo]:{port} 127.0.0.1:{port},evil.example"
)
ELSEWHERE = (
    "/_dash-component-suites/<b>x</b>/y.js /_dash-component-suites/%3Cimg%20src=x%20onerror=alert(1)%3E/y.js "
    "/_dash-component-suites/dash/../../../../pyproject.toml /_dash-component-suites/os/os.py "
    "/assets/..%2f..%2f..%2fpyproject.toml /assets/..%5c..%5capp.py /assets/%2e%2e/app.py /assets/%00 "
    "/export/0/..%2f..%2fmanifest.csv /export/0/%2e%2e/%2e%2e/config.yaml /export/0/manifest.json "
    "/export/0/spectra.parquet /export/0/spectra.csv%00 /export/9/spectra.csv "
    "/view/9/spectra /view/-1/spectra /view/0/nothing /view/0/..%2fmanifest /view/0/__class__ /view/0/"
)


@pytest.fixture(autouse=True)
def no_unhandled_error(caplog, capfd):
    """No request may end in an unexpected error, which Flask would log."""
    yield
    assert "Traceback" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def said(port, request, patience=20.0):
    """Status and text of the answer to raw bytes; status 0 where the connection ends without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        connection.sendall(request.encode() if isinstance(request, str) else request)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode("latin-1")


def ask(port, *headers, line="GET / HTTP/1.1"):
    return said(port, "\r\n".join([line, *headers, "", ""]))[0]


def head(port, *headers):
    """The head of an update."""
    lines = [f"POST {UPDATE} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def send(port, body):
    """Status of an update with a body of any bytes."""
    content = body if isinstance(body, bytes) else body.encode()
    return said(port, head(port, f"Content-Length: {len(content)}") + content)[0]


def test_no_other_host_is_served(port):
    here = f"Host: 127.0.0.1:{port}"
    evil = "Host: evil.example"
    hosts = [[f"Host: {host.format(port=port)}"] for host in HOSTS.split()]
    forwarded = ["X-Forwarded-Host: 127.0.0.1", "Forwarded: host=127.0.0.1", "X-Forwarded-For: 127.0.0.1"]
    for headers in ([], ["Host:"], [here, evil], [evil, here], *hosts, *([evil, own] for own in forwarded)):
        assert ask(port, *headers) in (400, 403), headers
    assert ask(port, here) == ask(port, here, "X-Forwarded-Host: evil.example") == 200
    assert ask(port, f"Host: [::1]:{port}") == ask(port, f"Host: LOCALHOST:{port}") == 200
    # A request line for a proxy, which this server is not: the Host header alone decides.
    assert ask(port, evil, line=f"GET http://127.0.0.1:{port}/ HTTP/1.1") == 403


@pytest.mark.parametrize("path", ROUTES.split())
def test_every_route_checks_host_origin_and_site(port, path):
    line, here = f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"
    assert ask(port, here, line=line) == 200
    assert ask(port, f"Host: evil.example:{port}", line=line) == 403
    assert ask(port, here, "Origin: http://evil.example", line=line) == 403
    assert ask(port, here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", line=line) == 403
    assert ask(port, here, "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors", line=line) == 403
    assert ask(port, here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", line=line) == 200


def test_no_other_origin_and_no_web_socket_is_served(port):
    here = f"Host: 127.0.0.1:{port}"
    others = [
        "http://[",
        "",
        "null",
        "http://127.0.0.1:1",
        f"http://x@127.0.0.1:{port}",
        f"ftp://127.0.0.1:{port}",
    ]
    assert {ask(port, here, f"Origin: {origin}") for origin in others} == {403}
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: x",
        "Sec-WebSocket-Version: 13",
    )
    assert ask(port, here, *upgrade) == 400


@pytest.mark.parametrize("path", ELSEWHERE.split())
def test_other_files_are_not_found_and_not_echoed(port, path):
    status, text = said(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    assert status == 404 or "react-entry-point" in text  # the page itself
    for word in ("onerror", "<b>", "schema_version", "build_app"):
        assert word not in text


@pytest.mark.trust
def test_json_of_any_kind_is_answered(port):
    nested = ["[" * 50_000, "[" * 50_000 + "]" * 50_000, '{"a":' * 10_000 + "1" + "}" * 10_000]
    odd = [
        '{"output":' + "9" * 5000 + "}",
        '{"output": NaN}',
        b'{"output":"\xff"}',
        "{}".encode("utf-16"),
        b"",
    ]
    for body in (*nested, *odd):
        assert send(port, body) == 400, body[:20]
    assert send(port, b" " * (MOST_BYTES + 1)) == 413


def test_false_lengths_and_chunks_harm_nobody(port):
    for length in (-1, "x", 10**12, "1,2"):
        assert said(port, head(port, f"Content-Length: {length}") + b"{}")[0] in (400, 413), length
    for chunks in ("2\r\n{}\r\n0\r\n\r\n", "zz\r\n", "-5\r\nabc\r\n0\r\n\r\n", "7fffffffffff\r\nabc"):
        assert said(port, head(port, "Transfer-Encoding: chunked") + chunks.encode())[0] in (0, 400, 413)
    assert send(port, json.dumps(update({}))) == 200


@pytest.mark.trust
@pytest.mark.parametrize("part", ["output", "outputs", "inputs", "state", "changedPropIds"])
def test_forged_callbacks_are_refused(port, part):
    for odd in (None, "x", [], {}, [None], [{}], [{"id": {"view": [], "run": 0}}]):
        expected = 200 if part in ("state", "changedPropIds") and odd == [] else 400
        assert send(port, json.dumps({**update({}), part: odd})) == expected, odd


def test_callbacks_of_other_shapes_and_names_are_refused(port):
    real = update({"layers": [5]})
    assert send(port, json.dumps(real)) == 200
    for forged in (
        {**real, "inputs": real["inputs"] * 2},
        {**real, "outputs": real["outputs"][:1]},
        {**real, "outputs": real["outputs"][::-1]},
        {**real, "outputs": [{**output, "id": "page"} for output in real["outputs"]]},
        {**real, "outputs": [{**output, "id": {"type": "page"}} for output in real["outputs"]]},
        {**real, "output": "started.data"},  # runs in the browser alone
        {**real, "output": "page.children"},
    ):
        assert send(port, json.dumps(forged)) == 400, forged


def test_states_of_any_kind_fall_back(port):
    for state in (
        {"strength": 10**4000},
        {"strength": "nan"},
        {"strength": "9" * 50_000},
        {"layers": f"nan,-1,{10**4000},99999,../.."},
        {"layers": "5," * 50_000},
        {"ot": "../../manifest", "by": "\x00", "measure": "geometry/../../x", "tokens": "__class__"},
        {"figure": "../..", "other": "x"},
    ):
        line = f"GET {view_path('plane', **state)} HTTP/1.1"
        assert ask(port, f"Host: 127.0.0.1:{port}", line=line) == 200, str(state)[:40]


@pytest.mark.filterwarnings("ignore::ot_lens.errors.PromptWarning")
@pytest.mark.parametrize("what", ["tokens", "answers"])
def test_prompts_of_any_kind_are_answered(port, what):
    texts = [
        "a\x00b",
        "\u202e<script>",
        "</s><s>[INST]",
        "\u0301" * MOST_CHARACTERS,
        "a " * (MOST_CHARACTERS // 2),
    ]
    for prompt in (*texts, "x" * (MOST_CHARACTERS + 1), 3, ["x"], None):
        assert send(port, live(prompt, what)) == 200, repr(prompt)[:24]
    component = {"type": "Div", "namespace": "dash_html_components", "props": {"children": ["x"]}}
    assert send(port, live("\ud800", what)) == send(port, live(component, what)) == 400


def test_no_request_raises_the_token_budget_of_an_answer(opened, monkeypatch):
    budgets = []

    def completed(_model, prompts, max_new_tokens):
        budgets.append((len(prompts), max_new_tokens))
        return [Completion("", 0, truncated=False)]

    assert opened.run.config.max_new_tokens == 16
    monkeypatch.setattr("ot_lens.explorer.live.MOST_NEW_TOKENS", 3)
    monkeypatch.setattr("ot_lens.explorer.live.complete", completed)
    live = live_model(opened.run, None)
    fields = {"layers": [7], "max_new_tokens": 10**6, "batch": 64}
    live.answers("hello", live.asked(fields, opened.read(fields)))
    assert budgets == [(1, 3)] * 3


@pytest.fixture
def another_server(opened):
    """A server with limits that a test has changed."""

    def make():
        listener = socket.create_server(("127.0.0.1", 0))
        return serving(server_module.Server(build_app([opened.run], None).server, listener))

    return make


@pytest.mark.trust
def test_slow_clients_are_dropped(another_server, monkeypatch):
    """However steadily a request trickles in: the deadline is for the complete request."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 1)
    with another_server() as port:
        for start in (b"GET /", head(port)[:-2], head(port, "Content-Length: 9999")):
            assert _trickled(port, start) < 10


def _trickled(port, start):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        connection.sendall(start)
        for _ in range(200):
            try:
                connection.sendall(b"a")
                connection.recv(1000)
                break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - began


@pytest.mark.trust
def test_connections_over_the_limit_wait(another_server, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 4)  # the listener and its trigger count as two
    with another_server() as port:
        request = f"GET /_reload-hash HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        with pytest.raises(TimeoutError):
            said(port, request, patience=0.5)
        for connection in held:
            connection.close()
        assert said(port, request)[0] == 200


def test_a_server_that_stops_closes_the_answer_that_nobody_read():
    """Of a long answer, what the client does not take goes to a temporary file."""

    def app(_request, respond):
        respond("200 OK", [("Content-Type", "text/plain")])
        return [b"x" * 2**20] * 32

    server = server_module.Server(app, socket.create_server(("127.0.0.1", 0)))
    channels = server._server.active_channels
    with socket.socket() as client, serving(server) as port:
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 20
        while not any(buffer.overflowed for channel in [*channels.values()] for buffer in channel.outbufs):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        files = [b.buf.file for channel in channels.values() for b in channel.outbufs if b.overflowed]
    assert files
    assert all(file.closed for file in files)
