"""The page's web server: a few fixed addresses, nothing else, for this machine's own browser.

What keeps it to itself: it listens on the loopback interface unless told otherwise; a request
must name this machine in its Host header, so that no foreign site can reach it by rebinding its
name to 127.0.0.1; requests that another site's page sent are refused; and the page may load
nothing from anywhere else.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, unquote, urlsplit

from tinyalign.errors import BankError, ConfigError, DataError, ModelError, TinyAlignError
from tinyalign.log import logger
from tinyalign.serving.browse.pictures import SIDES, decode_upload
from tinyalign.serving.browse.view import BankView, NotThereError, RenumberedError

ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
}
"""The only files that are served; they come with the package."""
EVERYWHERE = ("0.0.0.0", "::")
LARGEST_UPLOAD = 32 << 20  # bytes
PATIENCE = 30  # seconds a connection may say nothing
HITS = 60
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


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    body: bytes
    content_type: str
    keep: str = "no-store"
    """The Cache-Control header."""


class Request:
    """The parts of a request that routes look at."""

    def __init__(self, target: str, body: bytes = b"") -> None:
        self.body = body
        try:
            parts = urlsplit(target)
            self.path = unquote(parts.path)
            self._query = parse_qs(parts.query, errors="strict", max_num_fields=50)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"unreadable address ({error})") from error

    def text(self, name: str, default: str | None = None) -> str | None:
        """The last value given under a name."""
        return self._query.get(name, [default])[-1]

    def texts(self, name: str) -> list[str]:
        """All values given under a name."""
        return [value for value in self._query.get(name, []) if value]

    def number(self, name: str, default: int | None = None) -> int:
        """A value that must be a whole number; RefusedError if it is not, or is missing."""
        value = self.text(name)
        if value is None and default is not None:
            return default
        if value is None or not value.isascii() or not value.isdigit() or len(value) > 12:
            message = f"{name}: expected a whole number, found {value!r}"
            raise RefusedError(HTTPStatus.BAD_REQUEST, message)
        return int(value)

    def choice(self, name: str, among: list[str]) -> str:
        """A value that must be one of these; the first by default."""
        value = self.text(name, among[0])
        if value not in among:
            message = f"{name}: expected one of {', '.join(among)}, found {value!r}"
            raise RefusedError(HTTPStatus.BAD_REQUEST, message)
        return str(value)


class BrowseServer(ThreadingHTTPServer):
    """Serves one bank. `serve_forever` blocks; `url` is what to open."""

    daemon_threads = True
    view: BankView

    def __init__(self, view: BankView, host: str = "127.0.0.1", port: int = 0) -> None:
        """port 0 takes a free one. ConfigError where the address cannot be had."""
        self.view, self.host = view, host
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {host}, port {port} ({error}); choose another --port, or 0 "
                "for a free one"
            ) from error

    @property
    def url(self) -> str:
        """The page's address."""
        port = self.server_address[1]
        name = "localhost" if self.host in EVERYWHERE else self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{port}/"

    def may_ask(self, host_header: str | None) -> bool:
        """Whether a Host header names this machine as its user would: never a foreign name."""
        name = _host_name(host_header or "")
        if name in ("localhost", self.host.lower()):
            return True
        if self.host in EVERYWHERE and name == socket.gethostname().lower():
            return True
        try:
            ipaddress.ip_address(name)  # a number cannot be rebound
        except ValueError:
            return False
        return True


def _host_name(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: BrowseServer
    protocol_version = "HTTP/1.1"
    server_version = "TinyAlign"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer a question."""
        self._reply(lambda: self._route(Request(self.path), ROUTES))

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Answer a question that comes with a picture."""
        self._reply(lambda: self._route(Request(self.path, self._body()), POSTED))

    def _route(self, request: Request, routes: dict[str, Route]) -> Answer:
        first, _, rest = request.path.removeprefix("/").partition("/")
        for known in (request.path, f"/{first}/*" if rest else ""):
            if known in routes:
                return routes[known](self.server.view, request)
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _reply(self, make: Callable[[], Answer]) -> None:
        try:
            self._check_sender()
            answer, status = make(), HTTPStatus.OK
        except Exception as error:
            status, message = _explained(error)
            answer = _json({"error": message})
            self.close_connection = True  # a body may be left unread
        self.send_response(status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", answer.keep)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _check_sender(self) -> None:
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not self.server.may_ask(host):
            raise RefusedError(
                HTTPStatus.FORBIDDEN,
                f"the Host header names {host!r}, not this machine; open {self.server.url}",
            )
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(HTTPStatus.FORBIDDEN, f"requests from pages of {origin} are refused")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "an upload must say its length")
        if len(length) > 12 or int(length) > LARGEST_UPLOAD:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a picture may have {LARGEST_UPLOAD >> 20} MB at most; make it smaller",
            )
        return self.rfile.read(int(length))

    def handle(self) -> None:
        """All requests of the connection, until either side has enough."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):  # the browser left
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say each request only where somebody debugs."""
        logger.debug("%s %s", self.address_string(), format % args)


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


# -- routes ------------------------------------------------------------------------------------

Route = Callable[[BankView, Request], Answer]


def _json(value: object) -> Answer:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    body = text.encode("utf-8", "replace")  # a lone surrogate is no text
    return Answer(body, "application/json; charset=utf-8")


def _asset(name: str, content_type: str) -> Answer:
    return Answer(files(__package__).joinpath("assets").joinpath(name).read_bytes(), content_type)


def _page(view: BankView, request: Request) -> Answer:
    return _asset("index.html", "text/html; charset=utf-8")


def _static(view: BankView, request: Request) -> Answer:
    name = request.path.removeprefix("/assets/")
    if name not in ASSETS:
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")
    return _asset(name, ASSETS[name])


def _picture(view: BankView, request: Request) -> Answer:
    size = request.choice("size", list(SIDES))
    body = view.picture(request.path.removeprefix("/image/"), size)
    return Answer(body, "image/jpeg", keep="private, max-age=3600")


def _bank(view: BankView, request: Request) -> Answer:
    return _json(view.facts())


def _entries(view: BankView, request: Request) -> Answer:
    newest = request.choice("order", ["oldest", "newest"]) == "newest"
    return _json(view.page(request.number("page", 1), request.texts("source"), newest))


def _entry(view: BankView, request: Request) -> Answer:
    name = request.text("id")
    if name is not None:
        return _json(view.entry(name))
    return _json(view.entry_at(request.number("row"), request.number("generation")))


def _neighbours(view: BankView, request: Request) -> Answer:
    name = request.text("id")
    if name is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "id: expected an entry's id, found none")
    others = request.choice("images", ["all", "other"]) == "other"
    k = request.number("k", HITS)
    return _json(view.neighbours(name, k, request.texts("source"), others))


def _search(view: BankView, request: Request) -> Answer:
    image = decode_upload(request.body) if request.body else None
    text = (request.text("text") or "").strip()
    return _json(view.search(image, text, request.number("k", HITS), request.texts("source")))


def _map(view: BankView, request: Request) -> Answer:
    return _json(view.map(request.text("method", "pca") or "pca"))


ROUTES: dict[str, Route] = {
    "/": _page,
    "/assets/*": _static,
    "/image/*": _picture,
    "/api/bank": _bank,
    "/api/entries": _entries,
    "/api/entry": _entry,
    "/api/neighbours": _neighbours,
    "/api/search": _search,
    "/api/map": _map,
}
POSTED: dict[str, Route] = {"/api/search": _search}
