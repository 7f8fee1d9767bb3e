"""Requests as an attacker writes them, byte by byte, to a listening server, which refuses them."""

import json
import socket
import subprocess
import sys
import time
from contextlib import closing
from http.client import HTTPConnection

import psutil
import pytest

from ot_lens.explorer import serving
from ot_lens.explorer.app import build_app
from ot_lens.explorer.guard import MOST_BYTES, UPDATE, is_loopback
from ot_lens.explorer.live import MOST_CHARACTERS
from tests.explorer.conftest import served
from tests.explorer.test_server import asked

ROUTES = (
    "/",
    "/anything",
    "/_dash-layout",
    "/_dash-dependencies",
    "/_reload-hash",
    "/_favicon.ico",
    "/assets/explorer.js",
    "/assets/explorer.css",
    "/_dash-component-suites/dash/dcc/dash_core_components.js",
    "/export/0/spectra.csv",
    "/export/0/spectra.svg",
)


@pytest.fixture
def port(address):
    return int(address.rsplit(":", 1)[1].strip("/"))


@pytest.fixture(autouse=True)
def no_unhandled_error(caplog, capfd):
    """No request may end in an unexpected error, which Flask would log."""
    yield
    assert "Traceback" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def said(port, *parts, patience=20.0):
    """Status and text of the answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        for part in parts:
            connection.sendall(part.encode() if isinstance(part, str) else part)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode("latin-1")


def ask(port, *headers, line="GET / HTTP/1.1"):
    return said(port, "\r\n".join([line, *headers, "", ""]))[0]


def send(port, body, *headers, length=None):
    """Status of an update with a body of any bytes."""
    content = body if isinstance(body, bytes) else body.encode()
    size = len(content) if length is None else length
    head = [
        f"POST {UPDATE} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {size}",
        *headers,
        "",
        "",
    ]
    return said(port, "\r\n".join(head).encode() + content)[0]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Host:"],
        ["Host: 127.0.0.1:{port}", "Host: evil.example"],
        ["Host: evil.example", "Host: 127.0.0.1:{port}"],
        ["Host: 127.0.0.1:{port},evil.example"],
        ["Host: evil.example"],
        ["Host: localhost.evil"],
        ["Host: 192.168.0.9:{port}"],
        ["Host: evil.example@127.0.0.1"],
        ["Host: 127.0.0.1@evil.example"],
        ["Host: 127.0.0.1#evil.example"],
        ["Host: 127.0.0.1/evil.example"],
        ["Host: 127.0.0.1:evil"],
        ["Host: 127.0.0.1:999999"],
        ["Host: 2130706433"],
        ["Host: 127.1"],
        ["Host: 127.0.0.2"],
        ["Host: [::ffff:127.0.0.1]:{port}"],
        ["Host: [::1%25lo]:{port}"],
        ["Host: evil.example", "X-Forwarded-Host: 127.0.0.1:{port}"],
        ["Host: evil.example", "Forwarded: host=127.0.0.1:{port}"],
        ["Host: evil.example", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1"],
    ],
    ids=str,
)
def test_no_other_host_is_served(port, headers):
    assert ask(port, *(header.format(port=port) for header in headers)) in (400, 403)


def test_only_the_host_header_counts(port):
    here = f"Host: 127.0.0.1:{port}"
    assert ask(port, here) == ask(port, here, "X-Forwarded-Host: evil.example") == 200
    assert ask(port, f"Host: [::1]:{port}") == ask(port, f"Host: LOCALHOST:{port}") == 200
    # A request line for a proxy, which this server is not: the Host header alone decides.
    assert ask(port, "Host: evil.example", line=f"GET http://127.0.0.1:{port}/ HTTP/1.1") == 403


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_checks_host_origin_and_site(port, path):
    line, here = f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"
    assert ask(port, here, line=line) == 200
    assert ask(port, f"Host: evil.example:{port}", line=line) == 403
    assert ask(port, here, "Origin: http://evil.example", line=line) == 403
    assert ask(port, here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", line=line) == 403
    assert ask(port, here, "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors", line=line) == 403
    assert ask(port, here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", line=line) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://[",
        "",
        "null",
        "http://127.0.0.1:1",
        "http://x@127.0.0.1:{port}",
        "ftp://127.0.0.1:{port}",
    ],
)
def test_no_other_origin_is_served(port, origin):
    assert ask(port, f"Host: 127.0.0.1:{port}", f"Origin: {origin.format(port=port)}") == 403


def test_a_web_socket_is_not_opened(port):
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: x",
        "Sec-WebSocket-Version: 13",
    )
    assert ask(port, f"Host: 127.0.0.1:{port}", *upgrade) == 400


@pytest.mark.parametrize(
    "path",
    [
        "/_dash-component-suites/<b>x</b>/y.js",
        "/_dash-component-suites/%3Cimg%20src=x%20onerror=alert(1)%3E/y.js",
        "/_dash-component-suites/dash/../../../../pyproject.toml",
        "/_dash-component-suites/os/os.py",
        "/assets/..%2f..%2f..%2fpyproject.toml",
        "/assets/..%5c..%5capp.py",
        "/assets/%2e%2e/app.py",
        "/assets/%00",
        "/export/0/spectra.csv%00",
        "/export/" + "9" * 5000 + "/spectra.csv",
    ],
)
def test_unknown_files_are_not_found_and_not_echoed(port, path):
    status, text = said(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    assert status == 404
    assert "onerror" not in text
    assert "<b>" not in text


DEEP = 50_000


@pytest.mark.trust
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("[" * DEEP, 400),
        ("[" * DEEP + "]" * DEEP, 400),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, 400),
        ('{"output":' + "9" * 5000 + "}", 400),
        ('{"output": NaN}', 400),
        (b'{"output":"\xff"}', 400),
        ("{}".encode("utf-16"), 400),
        (b"", 400),
        (b" " * (MOST_BYTES + 1), 413),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_of_any_kind_is_answered(port, body, status):
    assert send(port, body) == status


@pytest.mark.parametrize("length", [-1, "x", 10**12, "1,2"])
def test_a_false_length_is_answered(port, length):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = f"POST {UPDATE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n{{}}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).split()[1] in (b"400", b"413")


@pytest.mark.parametrize(
    "body", ["2\r\n{}\r\n0\r\n\r\n", "zz\r\n", "-5\r\nabc\r\n0\r\n\r\n", "7fffffffffff\r\nabc"]
)
def test_chunked_requests_harm_nobody(port, body):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = f"POST {UPDATE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100)[9:12] in (b"", b"400", b"413")
    assert send(port, json.dumps(asked())) == 200


ODD = (None, "x", [], {}, [None], [{}], [{"id": {"view": [], "run": 0}}])


@pytest.mark.trust
@pytest.mark.parametrize("part", ["output", "outputs", "inputs", "state", "changedPropIds"])
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_forged_callbacks_are_refused(port, part, odd):
    expected = 200 if part in ("state", "changedPropIds") and odd == [] else 400
    assert send(port, json.dumps({**asked(), part: odd})) == expected


def test_callbacks_of_other_shapes_and_names_are_refused(port):
    whole = asked(data={"layers": [5]})
    assert send(port, json.dumps(whole)) == 200
    for forged in (
        {**whole, "inputs": whole["inputs"] * 2},
        {**whole, "outputs": whole["outputs"][:1]},
        {**whole, "outputs": whole["outputs"][::-1]},
        {**whole, "output": "started.data"},  # runs in the browser alone
        {**whole, "output": "page.children"},
    ):
        assert send(port, json.dumps(forged)) == 400


@pytest.mark.parametrize(
    "data",
    [
        {"strength": 10**4000},
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"strength": True},
        {"strength": "9" * 50_000},
        {"layers": [float("nan"), -1, 10**4000, 99999, "../.."]},
        {"layers": "5," * 50_000},
        {"ot": "../../manifest", "by": "\x00", "measure": "geometry/../../x", "tokens": "__class__"},
    ],
    ids=lambda value: str(value)[:40],
)
def test_states_out_of_range_fall_back(port, data):
    assert send(port, json.dumps(asked("plane", data=data))) == 200


def live(prompt, what="tokens", number=1, **fields):
    """A request of the live panel."""
    value = {"layers": [7], "ot": "pca_ot:2", "by": "directional_ablation", "strength": 1, "tokens": "all"}
    return json.dumps(
        {
            "output": f"..live-{what}.children...told-{what}.data..",
            "outputs": [
                {"id": f"live-{what}", "property": "children"},
                {"id": f"told-{what}", "property": "data"},
            ],
            "inputs": [
                {
                    "id": f"ask-{what}",
                    "property": "data",
                    "value": {**value, "prompt": prompt, "number": number, **fields},
                }
            ],
            "changedPropIds": [f"ask-{what}.data"],
        }
    )


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ("a\x00b", 200),
        ("\u202e<script>", 200),
        ("</s><s>[INST]", 200),
        ("\u0301" * MOST_CHARACTERS, 200),
        ("x" * (MOST_CHARACTERS + 1), 200),
        ("a " * (MOST_CHARACTERS // 2), 200),
        (3, 200),
        (["x"], 200),
        (None, 200),
        ("\ud800", 400),
        ({"type": "Div", "namespace": "dash_html_components", "props": {"children": ["x"]}}, 400),
    ],
    ids=lambda value: repr(value)[:24],
)
@pytest.mark.parametrize("what", ["tokens", "answers"])
def test_prompts_of_any_kind_are_answered(port, prompt, what, status):
    assert send(port, live(prompt, what)) == status


def test_no_request_raises_the_token_budget_of_an_answer(opened, monkeypatch):
    from ot_lens.explorer.live import live_model

    panel, budgets = live_model(opened.run, None), []
    assert opened.run.config.max_new_tokens == 16
    monkeypatch.setattr("ot_lens.explorer.live.MOST_NEW_TOKENS", 3)
    monkeypatch.setattr(
        "ot_lens.explorer.live.complete",
        lambda _model, prompts, max_new_tokens: budgets.append((len(prompts), max_new_tokens)) or _done(),
    )
    panel.answers("hello", opened.read({"layers": [7], "max_new_tokens": 10**6, "batch": 64}))
    assert budgets == [(1, 3)] * 3


def _done():
    from ot_lens.generation import Completion

    return [Completion("", 0, truncated=False)]


@pytest.mark.trust
def test_slow_clients_are_dropped(finished_run, monkeypatch):
    """However steadily a request trickles in: the deadline is for the complete request."""
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 1)
    with served(finished_run) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        head = f"POST {UPDATE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        for start in ("GET /", head, f"{head}Content-Length: 9999\r\n\r\n"):
            assert _trickled(port, start) < 10


def _trickled(port, start):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        connection.sendall(start.encode())
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
def test_connections_over_the_limit_wait(finished_run, monkeypatch):
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 4)  # the listener and its trigger count as two
    with served(finished_run) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        with pytest.raises(TimeoutError):
            said(port, f"GET /_reload-hash HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", patience=0.5)
        for connection in held:
            connection.close()
        assert ask(port, f"Host: 127.0.0.1:{port}", line="GET /_reload-hash HTTP/1.1") == 200


def test_debug_mode_is_off_whatever_the_environment_says(opened, monkeypatch):
    monkeypatch.setenv("FLASK_DEBUG", "1")
    monkeypatch.setenv("DASH_DEBUG", "1")
    server = build_app([opened.run], None).server
    assert not server.debug
    assert not server.testing
    assert (
        "debugger" not in server.test_client().get("/?__debugger__=yes", headers={"Host": "127.0.0.1"}).text
    )


def test_browsers_do_not_cache_content_of_a_run(port):
    def kept(path):
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", path)
        # Read to the end, or the garbage collector has to close the file that the server still sends.
        with closing(connection), connection.getresponse() as response:
            response.read()
            return response.headers.get("Cache-Control")

    assert {kept(path) for path in ("/", "/_dash-layout", "/export/0/spectra.csv")} == {"no-store"}
    assert kept("/assets/explorer.js") != "no-store"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("localhost", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.9", False),
        ("localhost.evil.example", False),
    ],
)
def test_only_loopback_addresses_need_no_warning(host, own, finished_run, monkeypatch):
    from ot_lens.explorer import start

    class Server:
        port = 1
        close = serve = staticmethod(lambda: None)

    lines = []
    monkeypatch.setattr(start, "make_server", lambda *_, **__: Server())
    start.explore(finished_run, host=host, browser=False, say=lines.append)
    assert is_loopback(host) is own
    assert any("everyone who reaches this machine" in line for line in lines) is not own


def test_the_command_listens_on_loopback_only(finished_run):
    """As the kernel sees the process from outside."""
    command = [
        sys.executable,
        "-m",
        "ot_lens.cli",
        "explore",
        str(finished_run),
        "--no-browser",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            next(line for line in process.stdout if "http://" in line)
            listening = [
                at.laddr.ip
                for at in psutil.net_connections("tcp")
                if (at.pid, at.status) == (process.pid, "LISTEN")
            ]
            assert listening == ["127.0.0.1"]
        finally:
            process.terminate()
            process.wait(20)
