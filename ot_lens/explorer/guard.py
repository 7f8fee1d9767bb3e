"""Which requests are served: small ones, to a known host name, from the page itself; and security headers.

Flask's TRUSTED_HOSTS is not enough here: it knows neither IPv6 addresses nor a class of addresses such as all
those that DNS cannot rebind.
"""

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
# Scripts, styles and icons of the page; every other path shows content of a run.
STATIC = ("/assets/", "/_dash-component-suites/", "/_favicon.ico")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
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
        host: The address it is bound to. On loopback only loopback names are served; otherwise also numeric
            addresses, which DNS cannot rebind, and this machine's name.
        script_hashes: Content-Security-Policy hashes of the page's inline scripts.
    """
    server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    policy = _policy(script_hashes)

    @server.before_request
    def check() -> None:
        if not _known_host(_host_name(), host):
            _refuse(403, f"Unknown host {request.headers.get('Host', '')!r}.")
        if not _from_the_page():
            _refuse(403, "Requests from another site are refused.")
        if request.method not in METHODS or (request.method == "POST" and request.path != UPDATE):
            abort(405)
        if request.method == "POST" and not request.is_json:
            abort(415)

    @server.errorhandler(DependencyException)
    def no_such_file(_error: DependencyException) -> Response:
        return Response("No such file.\n", 404, mimetype="text/plain")

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
    """Whether no other site's script, image or form sent the request, as far as a browser tells."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    if origin is not None and origin not in (f"http://{request.host}", f"https://{request.host}"):
        return False
    return site in ("none", "same-origin") or request.headers.get("Sec-Fetch-Mode") == "navigate"


def _policy(script_hashes: Sequence[str]) -> str:
    """Load everything from here; plotly writes style elements and draws images from data and blob URLs."""
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
    if name == socket.gethostname().lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
