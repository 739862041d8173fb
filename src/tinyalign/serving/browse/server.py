"""The page's web server, for this machine's own browser: uvicorn on the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import TYPE_CHECKING, Any

from tinyalign.errors import ConfigError
from tinyalign.serving.browse.app import browse_app
from tinyalign.serving.browse.guard import page_url
from tinyalign.serving.browse.view import BankView

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from uvicorn import Server

PATIENCE = 30  # seconds a connection may say nothing between two requests
LAST_WORDS = 2  # seconds that answers may take once the server is stopped


class BrowseServer:
    """Serves one bank. `serve_forever` blocks; `url` is what to open.

    Connections wait from the start, and are answered once `serve_forever` runs.
    """

    def __init__(self, view: BankView, host: str = "127.0.0.1", port: int = 0) -> None:
        """port 0 takes a free one. ConfigError where the address cannot be had, or the extra
        `serve` is not installed."""
        require_serve()
        self.view, self.host = view, host
        self._socket = _listening(host, port)
        self.server_address: tuple[Any, ...] = self._socket.getsockname()
        self._server = _uvicorn(browse_app(view, host))

    @property
    def url(self) -> str:
        """The page's address."""
        return page_url(self.host, self.server_address[1])

    def serve_forever(self) -> None:
        """Answer until `shutdown`, or Ctrl+C, which is raised on as KeyboardInterrupt."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """Let `serve_forever` come to its end, from any thread."""
        self._server.should_exit = True

    def server_close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def __enter__(self) -> BrowseServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.server_close()


def require_serve() -> None:
    """Raise ConfigError with the command to run, unless Starlette and uvicorn are installed."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the page needs {' and '.join(missing)}, which is not installed; "
            '`pip install "tinyalign-vlm[serve]"`'
        )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio would not switch off Nagle's algorithm: 40 ms for each answer.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen()
    except (OSError, OverflowError) as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({error}); choose another --port, or 0 "
            "for a free one"
        ) from error
    return made


def _uvicorn(app: Starlette) -> Server:
    """Silent: the application says by itself what goes wrong in it."""
    from uvicorn import Config, Server

    config = Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("Server", "TinyAlign")],
        timeout_keep_alive=PATIENCE,
        timeout_graceful_shutdown=LAST_WORDS,
    )
    return Server(config)
