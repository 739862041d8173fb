"""Who may ask, and how a request that fails is answered: a layer around all of the page's routes.

What keeps the page to itself: a request must name this machine in its Host header, so that no
foreign site can reach it by rebinding its name to 127.0.0.1; requests that another site's page
sent are refused; and the page may load nothing from anywhere else.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from tinyalign.errors import BankError, ConfigError, DataError, ModelError, TinyAlignError
from tinyalign.log import logger
from tinyalign.serving.browse.view import NotThereError, RenumberedError

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

EVERYWHERE = ("0.0.0.0", "::")
METHODS = ("GET", "HEAD", "POST")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RefusedError(TinyAlignError):
    """A request that is not answered, with the status that says why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Lets through what may be asked, adds `HEADERS` to every answer, and explains errors."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """host: the address that the server listens on."""
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        from starlette.datastructures import Headers, MutableHeaders

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun, headers = True, MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if message["status"] >= HTTPStatus.BAD_REQUEST:
                    headers["Connection"] = "close"  # a body may be left unread
                logger.debug("%s %s: %d", scope["method"], scope["path"], message["status"])
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            await self.app(scope, receive, sending)
        except Exception as error:
            if begun:
                raise
            status, reason = _explained(error)
            await json_answer({"error": reason}, status)(scope, receive, sending)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host, origin = headers.get("Host"), headers.get("Origin")
        if not may_ask(host, self.host):
            port = (scope.get("server") or ("", 0))[1]
            place = page_url(self.host, port) + scope.get("root_path", "").lstrip("/")
            raise RefusedError(
                HTTPStatus.FORBIDDEN,
                f"the Host header names {host!r}, not this machine; open {place}",
            )
        if origin is not None and _split(origin).netloc != host:
            raise RefusedError(HTTPStatus.FORBIDDEN, f"requests from pages of {origin} are refused")
        if scope["method"] not in METHODS:
            raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, f"expected one of {', '.join(METHODS)}")


def page_url(host: str, port: int) -> str:
    """The address of what listens on a host and port, for this machine's browser."""
    name = "localhost" if host in EVERYWHERE else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/"


def may_ask(host_header: str | None, host: str) -> bool:
    """Whether a Host header names this machine as its user would: never a foreign name.

    host: the address that the server listens on.
    """
    name = _host_name(host_header or "")
    if name in ("localhost", host.lower()):
        return True
    if host in EVERYWHERE and name == socket.gethostname().lower():
        return True
    try:
        ipaddress.ip_address(name)  # a number cannot be rebound
    except ValueError:
        return False
    return True


def json_answer(value: object, status: int = HTTPStatus.OK) -> Response:
    """Any JSON value; a lone surrogate, which is no text, becomes a question mark."""
    from starlette.responses import Response

    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(body, status, media_type="application/json; charset=utf-8")


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _host_name(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _explained(error: Exception) -> tuple[HTTPStatus, str]:
    """The status and the sentence for an error; what nobody foresaw goes to the log."""
    if isinstance(error, RefusedError):
        return error.status, str(error)
    kinds: list[tuple[type[Exception], HTTPStatus]] = [
        (NotThereError, HTTPStatus.NOT_FOUND),
        (RenumberedError, HTTPStatus.CONFLICT),
        (ConfigError, HTTPStatus.BAD_REQUEST),
        (DataError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        (BankError, HTTPStatus.INTERNAL_SERVER_ERROR),
        (ModelError, HTTPStatus.INTERNAL_SERVER_ERROR),
    ]
    for kind, status in kinds:
        if isinstance(error, kind):
            return status, str(error)
    logger.error("a request failed", exc_info=error)
    return HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}; the terminal says more"
