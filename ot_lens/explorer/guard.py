"""Who may ask: requests by a known host name, from this page itself, small; and headers that say so."""

import ipaddress
import socket
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import urlsplit

from dash.exceptions import DependencyException
from flask import Flask, Response, abort, request

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 128 * 1024
METHODS = ("GET", "HEAD", "POST")
UPDATE = "/_dash-update-component"
# Scripts, styles and icons of the page; everything else holds what is in a run.
STATIC = ("/assets/", "/_dash-component-suites/", "/_favicon.ico")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def install_guard(server: Flask, host: str, script_hashes: Sequence[str]) -> None:
    """Check every request of a Flask application, and send security headers with every answer.

    Args:
        server: The application.
        host: The address it is bound to; on loopback no other host name is served, else also addresses in
            figures (which DNS cannot rebind) and this machine's name.
        script_hashes: Content-Security-Policy hashes of the page's inline scripts.
    """
    server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    policy = _policy(script_hashes)

    @server.before_request
    def check() -> None:
        if not _known_host(_host_name(), host):
            _refuse(403, f"unknown host {request.headers.get('Host', '')!r}")
        if not _from_the_page():
            _refuse(403, "requests from another site are refused")
        if request.method not in METHODS or (request.method == "POST" and request.path != UPDATE):
            abort(405)
        # Werkzeug's reader of chunks runs past its buffer where a client breaks off, which ends the process.
        if "Transfer-Encoding" in request.headers:
            abort(411)
        if request.method == "POST" and not request.is_json:
            abort(415)

    @server.errorhandler(DependencyException)
    def no_such_file(_error: DependencyException) -> Response:
        return Response("no such file\n", 404, mimetype="text/plain")

    @server.after_request
    def headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if not request.path.startswith(STATIC):
            response.headers["Cache-Control"] = "no-store"
        return response


def _refuse(status: int, why: str) -> NoReturn:
    abort(Response(f"{why}\n", status, mimetype="text/plain"))


def _from_the_page() -> bool:
    """Whether a browser, if it is one, asks for this page: no other site's script, image or form does."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    if origin is not None and origin not in (f"http://{request.host}", f"https://{request.host}"):
        return False
    return site in ("none", "same-origin") or request.headers.get("Sec-Fetch-Mode") == "navigate"


def _policy(script_hashes: Sequence[str]) -> str:
    """Everything from here; plotly writes style elements, and draws images from data and blob URLs."""
    parts = {
        "default-src": "'self'",
        "script-src": " ".join(["'self'", *script_hashes]),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _host_name() -> str:
    """The name in the request's Host header, without port and brackets; "" where there is none.

    A request line that names a host of its own, as one to a proxy does, has none either.
    """
    if "Host" not in request.headers or not request.environ.get("RAW_URI", "/").startswith("/"):
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
    if name == socket.gethostname().lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
