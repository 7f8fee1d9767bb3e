"""Who is served, and what: host names, origins, sizes, paths, headers, ports; the command line on top."""

import json
import socket
import subprocess
import sys

import pytest

from ot_lens import cli
from ot_lens.errors import ExplorerError
from ot_lens.explorer.app import TYPES, build_app
from ot_lens.explorer.guard import MOST_BYTES, UPDATE
from ot_lens.explorer.live import live_model
from ot_lens.explorer.start import make_server

LOCAL = "127.0.0.1:8050"


@pytest.fixture(scope="module")
def server(opened):
    return build_app([opened.run], live_model(opened.run, None)).server


@pytest.fixture
def client(server):
    return server.test_client()


def get(client, path, host=LOCAL, **headers):
    return client.get(path, headers={"Host": host, **headers})


def asked(view="spectra", run=0, data=None):
    """A request as the page makes it."""
    fields = (
        ("drawn", "data"),
        ("missing", "children"),
        ("missing", "hidden"),
        ("note", "children"),
        ("code", "children"),
    )
    anywhere = '{"run":["MATCH"],"type":"TYPE","view":["MATCH"]}'
    known = [anywhere.replace("TYPE", kind) + f".{field}" for kind, field in fields]
    return {
        "output": f"..{'...'.join(known)}..",
        "outputs": [
            {"id": {"run": run, "type": kind, "view": view}, "property": field} for kind, field in fields
        ],
        "inputs": [{"id": {"run": run, "type": "state", "view": view}, "property": "data", "value": data}],
        "changedPropIds": [json.dumps({"run": run, "type": "state", "view": view}) + ".data"],
    }


def post(client, content, **headers):
    return client.post(UPDATE, json=content, headers={"Host": LOCAL, **headers})


@pytest.mark.parametrize("host", [LOCAL, "localhost:8050", "127.0.0.1", "[::1]:8050", "LOCALHOST:9"])
def test_this_machine_is_served(client, host):
    assert get(client, "/", host).status_code == 200


def test_on_another_address_names_are_refused_all_the_same(opened):
    client = build_app([opened.run], None, host="0.0.0.0").server.test_client()
    assert get(client, "/", "192.168.0.9:8050").status_code == 200
    assert get(client, "/", socket.gethostname()).status_code == 200
    assert get(client, "/", "evil.example").status_code == 403


def test_requests_from_the_page_itself_are_served(client):
    done = post(client, asked(data={"layers": [5]}), Origin=f"http://{LOCAL}")
    assert done.status_code == 200
    assert "Layer 5." in done.text


@pytest.mark.parametrize("run", [7, -1, "0", None, [0]])
def test_runs_that_are_not_open_are_refused(client, run):
    assert post(client, asked(run=run)).status_code in (400, 500)


@pytest.mark.parametrize("view", ["../manifest", "nothing", "", "__class__"])
def test_views_that_do_not_exist_are_refused(client, view):
    assert post(client, asked(view=view)).status_code in (400, 500)
    assert b"," not in get(client, f"/export/0/{view}.csv").data.split(b"<")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/export/0/../../manifest.json",
        "/export/0/..%2f..%2fmanifest.csv",
        "/export/0/%2e%2e/%2e%2e/config.yaml",
        "/export/9/spectra.csv",
        "/export/-1/spectra.csv",
        "/export/0/spectra.parquet",
        "/export/0/manifest.json",
        "/assets/../app.py",
        "/assets/..%2fapp.py",
        "/_dash-component-suites/dash/../../../ot_lens/cli.py",
        "/static/../app.py",
    ],
)
def test_nothing_outside_is_handed_out(client, path):
    answer = get(client, path)
    assert answer.status_code in (400, 403, 404, 500) or b"react-entry-point" in answer.data
    assert b"schema_version" not in answer.data
    assert b"build_app" not in answer.data


def test_large_requests_and_other_methods_are_refused(client):
    assert post(client, asked(data={"x": "y" * MOST_BYTES})).status_code == 413
    headers = {"Host": LOCAL}
    assert client.post(UPDATE, data="x", headers=headers).status_code == 415
    assert client.post("/", json={}, headers=headers).status_code == 405
    assert client.put("/", headers=headers).status_code == 405
    assert client.open("/", method="TRACE", headers=headers).status_code == 405


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
def test_downloads_have_their_type_and_name(client, suffix):
    answer = get(client, f"/export/0/spectra.{suffix}?layers=5")
    assert answer.status_code == 200
    assert answer.mimetype == TYPES[suffix]
    assert f"run-spectra.{suffix}" in answer.headers["Content-Disposition"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_taken_port_is_one_line(finished_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExplorerError, match=f"127.0.0.1:{port}.*--port"):
            make_server(finished_run, port=port)


def test_runs_of_the_same_name_are_told_apart(finished_run, tmp_path):
    import shutil

    other = shutil.copytree(finished_run, tmp_path / finished_run.name)
    server = make_server(finished_run, other)
    server.close()
    page = server.app.test_client().get("/_dash-layout", headers={"Host": LOCAL}).json
    assert str(other) in str(page)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore", "."], "manifest.json"),
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


def test_dash_is_imported_only_to_serve():
    code = (
        "import sys, ot_lens; ot_lens.explore\n"
        "print(sorted({'dash', 'flask', 'plotly', 'torch'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
