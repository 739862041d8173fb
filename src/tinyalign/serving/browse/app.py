"""The page as a Starlette application: a few fixed addresses, nothing else.

Its own files ask for each other by relative addresses, so another application can mount it
anywhere: `app.mount("/bank", browse_app(view))`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from tinyalign.serving.browse.guard import Guard, RefusedError, json_answer
from tinyalign.serving.browse.pictures import SIDES, decode_upload
from tinyalign.serving.browse.view import BankView

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
}
"""The only files that are served; they come with the package."""
LARGEST_UPLOAD = 32 << 20  # bytes
HITS = 60
NOTHING = "there is nothing at this address"


def browse_app(view: BankView, host: str = "127.0.0.1") -> Starlette:
    """The page of one bank. Needs the extra `serve`; `server.BrowseServer` runs it by itself.

    host: the address that the server listens on, by which the page may be asked for.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    routes = [Route(path, _in_thread(answer)) for path, answer in ROUTES.items()]
    routes.append(Route("/api/search", _search_by_upload, methods=["POST"]))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    app.state.view = view
    return app


class Asked:
    """The parts of a request that routes look at."""

    def __init__(self, request: Request) -> None:
        self.view: BankView = request.app.state.view
        self.rest = str(request.path_params.get("rest", ""))
        """Of the path, behind its fixed part."""
        try:
            query = request.scope["query_string"].decode("ascii")
            self._query = parse_qs(query, errors="strict", max_num_fields=50)
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


Answer = Callable[[Asked], "Response"]


def _in_thread(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers in a thread of its own, which nothing waits for at the end."""

    async def endpoint(request: Request) -> Response:
        return await _threaded(answer, Asked(request))

    return endpoint


async def _threaded(answer: Callable[..., Response], *arguments: object) -> Response:
    from anyio.to_thread import run_sync

    return await run_sync(answer, *arguments, abandon_on_cancel=True)


async def _no_route(request: Request, error: Exception) -> Response:
    return json_answer({"error": NOTHING}, HTTPStatus.NOT_FOUND)


async def _search_by_upload(request: Request) -> Response:
    length = request.headers.get("Content-Length", "")
    if not length.isascii() or not length.isdigit():
        raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "an upload must say its length")
    if len(length) > 12 or int(length) > LARGEST_UPLOAD:
        raise RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"a picture may have {LARGEST_UPLOAD >> 20} MB at most; make it smaller",
        )
    return await _threaded(_search, Asked(request), await request.body())


# -- routes ------------------------------------------------------------------------------------


def _file(name: str, content_type: str) -> Response:
    from starlette.responses import Response

    body = files(__package__).joinpath("assets").joinpath(name).read_bytes()
    return Response(body, media_type=content_type)


def _page(asked: Asked) -> Response:
    return _file("index.html", "text/html; charset=utf-8")


def _asset(asked: Asked) -> Response:
    if asked.rest not in ASSETS:
        raise RefusedError(HTTPStatus.NOT_FOUND, NOTHING)
    return _file(asked.rest, ASSETS[asked.rest])


def _picture(asked: Asked) -> Response:
    from starlette.responses import Response

    size = asked.choice("size", list(SIDES))
    body = asked.view.picture(asked.rest, size)
    keep = {"Cache-Control": "private, max-age=3600"}
    return Response(body, media_type="image/jpeg", headers=keep)


def _bank(asked: Asked) -> Response:
    return json_answer(asked.view.facts())


def _entries(asked: Asked) -> Response:
    newest = asked.choice("order", ["oldest", "newest"]) == "newest"
    return json_answer(asked.view.page(asked.number("page", 1), asked.texts("source"), newest))


def _entry(asked: Asked) -> Response:
    name = asked.text("id")
    if name is not None:
        return json_answer(asked.view.entry(name))
    return json_answer(asked.view.entry_at(asked.number("row"), asked.number("generation")))


def _neighbours(asked: Asked) -> Response:
    name = asked.text("id")
    if name is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "id: expected an entry's id, found none")
    others = asked.choice("images", ["all", "other"]) == "other"
    k = asked.number("k", HITS)
    return json_answer(asked.view.neighbours(name, k, asked.texts("source"), others))


def _search(asked: Asked, body: bytes = b"") -> Response:
    image = decode_upload(body) if body else None
    text = (asked.text("text") or "").strip()
    k, sources = asked.number("k", HITS), asked.texts("source")
    return json_answer(asked.view.search(image, text, k, sources))


def _map(asked: Asked) -> Response:
    return json_answer(asked.view.map(asked.text("method", "pca") or "pca"))


ROUTES: dict[str, Answer] = {
    "/": _page,
    "/assets/{rest}": _asset,
    "/image/{rest}": _picture,
    "/api/bank": _bank,
    "/api/entries": _entries,
    "/api/entry": _entry,
    "/api/neighbours": _neighbours,
    "/api/search": _search,
    "/api/map": _map,
}
