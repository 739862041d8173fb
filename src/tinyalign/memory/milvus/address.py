"""Where a bank's keys are in Milvus, as people write it: one URI.

`milvus://[user:password@]host:port/collection?values=FOLDER` for a server, or
`milvus+lite:FILE.db/collection?values=FOLDER` for the embedded form (Milvus Lite).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from tinyalign.errors import ConfigError

SERVER, EMBEDDED = "milvus", "milvus+lite"
DEFAULT_COLLECTION = "tinyalign"
DEFAULT_PORT = 19530
TOKEN = "MILVUS_TOKEN"
OPTIONS = ("values", "database", "tls")
SHAPES = (
    f"expected {SERVER}://host:port/collection?values=FOLDER, or "
    f"{EMBEDDED}:FILE.db/collection?values=FOLDER"
)


def is_milvus(where: str | Path) -> bool:
    """Whether a bank is named by a Milvus URI, not by a folder."""
    return isinstance(where, str) and where.startswith((f"{SERVER}:", f"{EMBEDDED}:"))


@dataclass(frozen=True)
class MilvusAddress:
    """A collection on a server, or in a file, and the folder that its values are in."""

    server: str
    """What `pymilvus` connects to: http(s)://host:port, or the path of a .db file."""
    collection: str = DEFAULT_COLLECTION
    values: Path | None = None
    """The bank's folder; by default the one that the collection was pushed from."""
    database: str = ""
    token: str = field(default="", repr=False)
    """user:password, or a key; by default that of the environment's MILVUS_TOKEN."""

    @classmethod
    def parse(cls, uri: str, collection: str | None = None) -> MilvusAddress:
        """Read a URI. collection: its name, where the URI has none.

        Raises ConfigError saying what does not fit.
        """
        parts = urlsplit(uri)
        if parts.scheme == EMBEDDED:
            server, named = _file(uri, unquote(parts.netloc + parts.path))
            token = ""
        elif parts.scheme == SERVER:
            server, named = _host(uri), unquote(parts.path.strip("/"))
            token = ":".join(unquote(one) for one in (parts.username, parts.password) if one)
        else:
            raise ConfigError(f"{uri}: not a Milvus URI; {SHAPES}")
        if named and collection and named != collection:
            raise ConfigError(f"two collections are named, {named!r} and {collection!r}; name one")
        name = named or collection or DEFAULT_COLLECTION
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(
                f"collection {name!r}: a name has letters, digits and underscores; {SHAPES}"
            )
        options = _options(uri)
        if options.get("tls", "false") not in ("true", "false"):
            raise ConfigError(f"tls={options['tls']}: expected true or false")
        if options.get("tls") == "true":
            server = server.replace("http://", "https://", 1)
        values = Path(options["values"]) if options.get("values") else None
        token = token or os.environ.get(TOKEN, "")
        return cls(server, name, values, options.get("database", ""), token)

    @property
    def embedded(self) -> bool:
        """Whether it is a file of this machine."""
        return self.server.endswith(".db")

    def with_values(self, folder: Path) -> MilvusAddress:
        """The same collection, with values from this folder."""
        return replace(self, values=folder.resolve())

    def __str__(self) -> str:
        """The URI, without a password."""
        host = self.server.split("://")[-1]
        start = f"{EMBEDDED}:{quote(host)}" if self.embedded else f"{SERVER}://{host}"
        options = {
            "values": "" if self.values is None else str(self.values),
            "database": self.database,
            "tls": "true" if self.server.startswith("https:") else "",
        }
        query = "&".join(f"{name}={quote(value)}" for name, value in options.items() if value)
        return f"{start}/{self.collection}" + (f"?{query}" if query else "")


def _host(uri: str) -> str:
    try:
        host, port = urlsplit(uri).hostname, urlsplit(uri).port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"{uri}: {error}; {SHAPES}") from error
    if not host:
        raise ConfigError(f"{uri}: no host in it; {SHAPES}")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _file(uri: str, path: str) -> tuple[str, str]:
    """(the .db file, the collection or nothing)."""
    if path.endswith(".db"):
        return path, ""
    file, _, name = path.rpartition("/")
    if not file.endswith(".db"):
        raise ConfigError(f"{uri}: the file's name must end in .db; {SHAPES}")
    return file, name


def _options(uri: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in filter(None, urlsplit(uri).query.split("&")):
        name, _, value = one.partition("=")
        if name not in OPTIONS:
            raise ConfigError(f"{uri}: no option {name!r}; there are {', '.join(OPTIONS)}")
        found[name] = unquote(value)
    return found
