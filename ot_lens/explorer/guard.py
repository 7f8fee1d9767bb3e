"""Which requests are served: small ones, to a known host name, from the page itself and of its shape.

Flask's TRUSTED_HOSTS is not enough here: it knows neither IPv6 addresses nor a class of addresses such as all
those that DNS cannot rebind. Dash trusts the shape of a request, so that a forged one would end in an
unhandled error: pydantic parses the bytes first, which also bounds their nesting and refuses text that is not
valid Unicode.
"""

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dash import Dash
from dash.exceptions import DependencyException
from flask import Flask, Response, abort, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 128 * 1024
METHODS = ("GET", "HEAD", "POST")
UPDATE = "/_dash-update-component"
# Scripts, styles and icons of the page; every other path shows content of a run.
STATIC = ("/assets/", "/_dash-component-suites/", "/_favicon.ico")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Load everything from here; plotly writes style elements and draws images from data and blob URLs.
POLICY = (
    "default-src 'self'; script-src 'self' {}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Word = str | int | float | bool | None
Value = Word | list[Word] | dict[str, Word | list[Word] | dict[str, Word]]


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
    address = _numeric(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def install_guard(app: Dash, host: str) -> None:
    """Check every request of an application, and send security headers with every answer.

    On a loopback `host` only loopback names are served; otherwise also numeric addresses, which DNS cannot
    rebind, and this machine's name.
    """
    server: Flask = app.server
    server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    headers = HEADERS | {"Content-Security-Policy": POLICY.format(" ".join(app.csp_hashes()))}

    @server.before_request
    def check() -> None:
        if not _known_host(_host_name(), host):
            abort(_text(403, f"Unknown host {request.headers.get('Host', '')!r}."))
        if not _from_the_page():
            abort(_text(403, "Requests from another site are refused."))
        if request.method not in METHODS or (request.method == "POST" and request.path != UPDATE):
            abort(405)
        if request.method == "POST" and not request.is_json:
            abort(415)
        if request.method == "POST" and not _is_known(request.get_data(), app.callback_map):
            abort(400)

    @server.errorhandler(DependencyException)
    def no_such_file(_error: DependencyException) -> Response:
        return _text(404, "No such file.")

    @server.after_request
    def secured(response: Response) -> Response:
        response.headers.update(headers)
        if not request.path.startswith(STATIC):
            response.headers["Cache-Control"] = "no-store"
        return response


def _text(status: int, why: str) -> Response:
    return Response(f"{why}\n", status, mimetype="text/plain")


def _from_the_page() -> bool:
    """Whether no other site's script, image or form sent the request, as far as a browser tells."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    if origin is not None and origin not in (f"http://{request.host}", f"https://{request.host}"):
        return False
    return site in ("none", "same-origin") or request.headers.get("Sec-Fetch-Mode") == "navigate"


def _host_name() -> str:
    """The name in the request's Host header, without port and brackets; "" without one."""
    if "Host" not in request.headers:
        return ""
    try:
        return (urlsplit(f"//{request.host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _known_host(name: str, bound: str) -> bool:
    if name in (*LOOPBACK, bound.lower()):
        return bool(name)
    if is_loopback(bound):
        return False
    return name == socket.gethostname().lower() or _numeric(name) is not None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Property(_Strict):
    """A property of a component, with its value if it is an input."""

    id: str
    property: str
    value: Value = None


class _Update(_Strict):
    """A request for the outputs of one callback."""

    output: str
    outputs: list[_Property]
    inputs: list[_Property]
    changed: list[str] = Field(alias="changedPropIds")
    state: list[_Property] = Field(default=[], max_length=0)


def _is_known(body: bytes, callbacks: Mapping[str, Any]) -> bool:
    """Whether a body is JSON that calls one of the server's callbacks with its inputs and outputs."""
    try:
        update = _Update.model_validate_json(body)
    except ValidationError:
        return False
    known = callbacks.get(update.output, {})
    if "callback" not in known:
        return False
    outputs = [(output.component_id, output.component_property) for output in known["output"]]
    inputs = [(given["id"], given["property"]) for given in known["inputs"]]
    return _named(update.outputs) == outputs and _named(update.inputs) == inputs


def _named(properties: list[_Property]) -> list[tuple[str, str]]:
    return [(given.id, given.property) for given in properties]
