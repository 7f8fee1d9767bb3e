"""What is served and with which headers, on which addresses; the command line on top."""

import shutil
import socket
import sys

import psutil
import pytest

from ot_lens import cli
from ot_lens.errors import ExplorerError
from ot_lens.explorer import start
from ot_lens.explorer.app import TYPES, build_app
from ot_lens.explorer.guard import MOST_BYTES, UPDATE, is_loopback
from ot_lens.explorer.live import live_model
from tests.explorer.requests import update, view_path

LOCAL = "127.0.0.1:8050"


@pytest.fixture(scope="module")
def client(opened):
    return build_app([opened.run], live_model(opened.run, None)).server.test_client()


def get(client, path, host=LOCAL, **headers):
    return client.get(path, headers={"Host": host, **headers})


def test_on_another_address_numbers_and_this_machine_s_name_are_served(opened):
    client = build_app([opened.run], None, host="0.0.0.0").server.test_client()
    assert get(client, "/", "192.168.0.9:8050").status_code == 200
    assert get(client, "/", socket.gethostname()).status_code == 200
    assert get(client, "/", "evil.example").status_code == 403


def test_small_updates_from_the_page_are_served_and_no_other_method(client):
    headers = {"Host": LOCAL, "Origin": f"http://{LOCAL}"}
    assert client.post(UPDATE, json=update({"number": 1}), headers=headers).status_code == 200
    assert client.post(UPDATE, json=update({"x": "y" * MOST_BYTES}), headers=headers).status_code == 413
    assert client.post(UPDATE, data="x", headers=headers).status_code == 415
    assert client.post("/", json={}, headers=headers).status_code == 405
    assert client.post(view_path(), json={}, headers=headers).status_code == 405
    assert {client.open("/", method=m, headers=headers).status_code for m in ("PUT", "TRACE")} == {405}


def test_a_view_is_sent_with_its_figure_or_without(client):
    complete = get(client, view_path(layers="5"))
    assert complete.mimetype == "application/json"
    assert complete.headers["Cache-Control"] == "no-store"
    assert complete.json["note"] == "Layer 5."
    assert complete.json["figure"]["figure"]["data"]
    words = get(client, view_path(layers="5", figure="no"))
    assert words.json == {name: part for name, part in complete.json.items() if name != "figure"}
    assert get(client, view_path("nothing")).status_code == get(client, view_path(run=1)).status_code == 404


def test_pages_carry_security_headers_and_load_nothing_from_elsewhere(client):
    answer = get(client, "/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    loaded = [part for part in answer.text.split('"') if part.startswith(("http:", "https:", "//"))]
    assert [part for part in loaded if "dash-version" not in part] == []


@pytest.mark.parametrize("suffix", TYPES)
def test_downloads_have_their_type_and_name_and_are_not_cached(client, suffix):
    answer = get(client, f"/export/0/spectra.{suffix}?layers=5")
    assert answer.status_code == 200
    assert answer.mimetype == TYPES[suffix]
    assert f"run-spectra.{suffix}" in answer.headers["Content-Disposition"]
    assert answer.headers["Cache-Control"] == get(client, "/").headers["Cache-Control"] == "no-store"
    with get(client, "/assets/explorer.js") as script:  # or its file stays open
        assert script.headers.get("Cache-Control") != "no-store"


def test_debug_mode_is_off_whatever_the_environment_says(opened, monkeypatch):
    monkeypatch.setenv("FLASK_DEBUG", "1")
    monkeypatch.setenv("DASH_DEBUG", "1")
    server = build_app([opened.run], None).server
    assert not server.debug
    assert not server.testing
    assert "debugger" not in get(server.test_client(), "/?__debugger__=yes").text


def test_a_taken_port_is_one_line(finished_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExplorerError, match=f"127.0.0.1:{port}.*--port"):
            start.make_server(finished_run, port=port)


def test_runs_of_the_same_name_are_told_apart(finished_run, tmp_path):
    other = shutil.copytree(finished_run, tmp_path / finished_run.name)
    server = start.make_server(finished_run, other)
    server.close()
    assert str(other) in str(get(server.app.test_client(), "/_dash-layout").json)


def test_only_loopback_addresses_need_no_warning(finished_run, monkeypatch):
    class Server:
        port = 1
        close = serve = staticmethod(lambda: None)

    monkeypatch.setattr(start, "make_server", lambda *_, **__: Server())
    hosts = dict.fromkeys(("127.0.0.1", "127.0.0.2", "localhost", "::1"), True)
    hosts |= dict.fromkeys(("", "0.0.0.0", "::", "192.168.0.9", "localhost.evil.example"), False)
    for host, own in hosts.items():
        lines = []
        start.explore(finished_run, host=host, browser=False, say=lines.append)
        assert is_loopback(host) is own
        assert any("everyone who reaches this machine" in line for line in lines) is not own


def test_the_server_listens_on_loopback_only(port):
    """As the kernel sees it; the command likewise in tests/trust/test_explorer_load.py."""
    sockets = [at for at in psutil.net_connections("tcp") if at.status == "LISTEN" and at.laddr.port == port]
    assert [at.laddr.ip for at in sockets] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore", "missing"], "manifest.json"),
        (["explore", "RUN", "--compare", "."], "manifest.json"),
        (["explore", "RUN", "--model", "./none"], "./none"),
        (["explore", "RUN", "--host", "203.0.113.7"], "203.0.113.7"),
    ],
)
def test_the_command_names_a_mistake(arguments, message, finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    filled = [str(finished_run) if part == "RUN" else part for part in arguments]
    monkeypatch.setattr(sys, "argv", ["ot-lens", *filled, "--no-browser", "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
