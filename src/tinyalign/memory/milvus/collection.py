"""A collection in Milvus that holds the keys and entries of a bank, and a record of which bank.

Everything that speaks to Milvus is here; its errors become errors for people.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.milvus.address import MilvusAddress

IndexKind = Literal["flat", "hnsw", "autoindex"]
RECORD = "tinyalign.bank"  # the collection's property that names its bank
RECORD_VERSION = 1
MOST = 16_384  # results that one request may ask of Milvus
MOST_BYTES = 65_535  # of a text field
CONNECT_SECONDS, CALL_SECONDS = 5, 120  # whole: pymilvus ignores fractions in places
FIELDS = ("id", "source", "image_hash", "text", "instruction")
KEY, ROW = "key", "row"
HNSW = {"M": 32, "efConstruction": 200}


@dataclass(frozen=True)
class Span:
    """The first rows of a bank and a hash of what they hold (`push.spans`)."""

    rows: int = 0
    hash: str = ""


@dataclass(frozen=True)
class Record:
    """What a collection says about itself."""

    done: Span
    """Rows that are in it, apart from those that were removed from the bank."""
    begun: Span
    """Rows that a push was about to put in; the same as `done` once it was finished."""
    bank: str = ""
    """Hash of the bank that it holds; nothing before its first push was finished."""
    commit: int = 0
    """That bank's count of changes."""
    folder: str = ""
    """Where that bank was."""
    index: IndexKind = "flat"
    version: int = RECORD_VERSION

    def dumped(self) -> str:
        """As JSON, which is how the collection keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def loaded(cls, text: str) -> Record:
        """Raises ValueError, TypeError or KeyError for anything that is no record."""
        content = json.loads(text)
        if content["version"] != RECORD_VERSION:
            raise ValueError(f"record version {content['version']}, expected {RECORD_VERSION}")
        content |= {name: Span(**content[name]) for name in ("done", "begun")}
        return cls(**content)


class MilvusCollection:
    """One collection on one server, whether it exists yet or not."""

    def __init__(self, address: MilvusAddress) -> None:
        """Connect. BankError when nobody answers, ConfigError without `pymilvus`."""
        pymilvus = _pymilvus(address)
        self.address = address
        self.name = address.collection
        with self._speaking(f"cannot be reached: {_advice(address)}"):
            self.client = pymilvus.MilvusClient(
                uri=address.server,
                token=address.token,
                db_name=address.database,
                timeout=CONNECT_SECONDS,
            )

    def close(self) -> None:
        """Let the connection go."""
        self.client.close()

    @contextmanager
    def _speaking(self, trouble: str) -> Iterator[None]:
        """Turn what Milvus complains of into one sentence."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError, ValueError) as error:
            said = getattr(error, "message", "") or str(error)
            raise BankError(f"{self.address}: {trouble} (Milvus: {said})") from error

    # -- what it is ---------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such a collection."""
        with self._speaking("cannot be looked up"):
            return bool(self.client.has_collection(self.name, timeout=CALL_SECONDS))

    def record(self) -> Record:
        """What it says about itself. BankError for a collection that is missing or no bank's."""
        if not self.exists():
            raise BankError(
                f"{self.address}: there is no collection {self.name!r}; make it with "
                "`tinyalign bank push BANK URI`"
            )
        with self._speaking("cannot be described"):
            facts = self.client.describe_collection(self.name, timeout=CALL_SECONDS)
        try:
            return Record.loaded(facts["properties"][RECORD])
        except (ValueError, TypeError, KeyError) as error:
            raise BankError(
                f"{self.address}: collection {self.name!r} was not made by this version's "
                f"`tinyalign bank push` ({error}); choose another --collection"
            ) from error

    def width(self) -> int:
        """d_k of the keys in it; 0 where it has none."""
        with self._speaking("cannot be described"):
            facts = self.client.describe_collection(self.name, timeout=CALL_SECONDS)
        widths = [one["params"].get("dim", 0) for one in facts["fields"] if one["name"] == KEY]
        return int(widths[0]) if widths else 0

    def create(self, width: int, record: Record) -> None:
        """Make it, empty. Searches will see whatever was written before them."""
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ROW, DataType.INT64, is_primary=True)
        for name in FIELDS:
            schema.add_field(name, DataType.VARCHAR, max_length=MOST_BYTES)
        schema.add_field(KEY, DataType.FLOAT_VECTOR, dim=width)
        params = self.client.prepare_index_params()
        params.add_index(
            KEY,
            index_type=record.index.upper(),
            metric_type="IP",
            params=HNSW if record.index == "hnsw" else {},
        )
        with self._speaking(f"collection {self.name!r} cannot be made"):
            self.client.create_collection(
                self.name,
                schema=schema,
                index_params=params,
                consistency_level="Strong",
                properties={RECORD: record.dumped()},
                timeout=CALL_SECONDS,
            )

    def write_record(self, record: Record) -> None:
        """Say which bank it holds."""
        with self._speaking("its record cannot be written"):
            self.client.alter_collection_properties(
                self.name, properties={RECORD: record.dumped()}, timeout=CALL_SECONDS
            )

    def drop(self) -> None:
        """Delete it with all that is in it."""
        with self._speaking("cannot be dropped"):
            self.client.drop_collection(self.name, timeout=CALL_SECONDS)

    def load(self) -> None:
        """Make it searchable, if it is not."""
        with self._speaking("cannot be loaded"):
            self.client.load_collection(self.name, timeout=CALL_SECONDS)

    # -- what is in it ------------------------------------------------------------------------

    def count(self, where: str = "") -> int:
        """Entries in it, or those that fit an expression."""
        with self._speaking("cannot be counted"):
            found = self.client.query(
                self.name, filter=where, output_fields=["count(*)"], timeout=CALL_SECONDS
            )
        return int(found[0]["count(*)"])

    def rows(self, below: int) -> np.ndarray:
        """Rows below a number that are in it (int64, sorted)."""
        found: list[int] = []
        for low in range(0, below, MOST):
            where = f"{ROW} >= {low} and {ROW} < {min(low + MOST, below)}"
            with self._speaking("its rows cannot be read"):
                some = self.client.query(
                    self.name, filter=where, output_fields=[ROW], limit=MOST, timeout=CALL_SECONDS
                )
            found.extend(one[ROW] for one in some)
        return np.unique(np.asarray(found, dtype=np.int64))

    def put(self, rows: Sequence[int], keys: np.ndarray, entries: Sequence[Entry]) -> None:
        """Write entries and their keys (B, d_k) at rows, over what may be there."""
        data = [
            {ROW: row, KEY: key, **_fields(entry)}
            for row, key, entry in zip(rows, keys.astype(np.float32), entries)
        ]
        with self._speaking(f"rows {rows[0]} to {rows[-1]} cannot be written"):
            self.client.upsert(self.name, data=data, timeout=CALL_SECONDS)

    def delete(self, where: str) -> None:
        """Delete what fits an expression."""
        with self._speaking("rows cannot be deleted"):
            self.client.delete(self.name, filter=where, timeout=CALL_SECONDS)

    def flush(self) -> None:
        """Have everything written kept."""
        with self._speaking("cannot be flushed"):
            self.client.flush(self.name, timeout=CALL_SECONDS)

    def search(
        self,
        queries: np.ndarray,
        limit: int,
        where: str = "",
        *,
        above: float | None = None,
        index: IndexKind = "flat",
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query (B, d_k) fp32: rows (n,) int64 and scores (n,), best first, n <= limit.

        where: an expression that entries must fit; above: only those with a larger score.
        """
        params: dict[str, Any] = {} if above is None else {"radius": above}
        if index == "hnsw":
            params["ef"] = max(2 * limit, HNSW["efConstruction"])
        with self._speaking("cannot be searched"):
            found = self.client.search(
                self.name,
                data=list(queries),
                anns_field=KEY,
                limit=limit,
                filter=where,
                output_fields=[ROW],
                search_params={"metric_type": "IP", "params": params},
                timeout=CALL_SECONDS,
            )
        return [
            (
                np.asarray([hit[ROW] for hit in hits], dtype=np.int64),
                np.asarray([hit["distance"] for hit in hits], dtype=np.float32),
            )
            for hits in found
        ]


def among(field: str, values: Sequence[int] | Sequence[str], *, negate: bool = False) -> str:
    """The expression that a field is one of these, or none of them."""
    return f"{field} {'not in' if negate else 'in'} {json.dumps(list(values), ensure_ascii=False)}"


def _fields(entry: Entry) -> dict[str, str]:
    """An entry's fields, texts cut to what Milvus takes; the folder has them whole."""
    found = {name: getattr(entry, name) for name in FIELDS}
    for name in ("id", "source"):  # searched by, so never cut
        if len(found[name].encode()) > MOST_BYTES:
            raise BankError(f"sample {entry.id[:80]}: its {name} is longer than {MOST_BYTES} bytes")
    for name in ("text", "instruction"):
        found[name] = found[name].encode()[:MOST_BYTES].decode(errors="ignore")
    return found


def _pymilvus(address: MilvusAddress) -> Any:
    """The package; in embedded form with the engine. ConfigError naming what to install."""
    try:
        import pymilvus

        if address.embedded:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'{address}: {error.name} is not installed; `pip install "tinyalign-vlm[milvus]"`'
        ) from error
    if address.embedded and not Path(address.server).resolve().parent.is_dir():
        raise ConfigError(f"{address}: no folder {Path(address.server).resolve().parent}")
    noisy = ("pymilvus", "milvus_lite", "grpc._server")  # what goes wrong is raised, and said once
    for name in noisy if address.embedded else noisy[:1]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def _advice(address: MilvusAddress) -> str:
    if address.embedded:
        return "only one process at a time may open the file; end the other, or run a server"
    return "is the server up, are host, port and password right?"


def check_bank(collection: MilvusCollection, bank: MemoryBank) -> Record:
    """Raise BankError unless the collection holds this very bank; returns its record."""
    record, manifest = collection.record(), bank.manifest
    push = f"`tinyalign bank push {bank.folder} {str(collection.address).partition('?')[0]}`"
    if not record.bank:
        raise BankError(f"{collection.address}: its first push was not finished; run {push} again")
    if (width := collection.width()) != manifest.key_dim:
        raise BankError(
            f"{collection.address}: its keys have {width} numbers, those of {bank.folder} have "
            f"{manifest.key_dim}; this is not the bank it was pushed from ({record.folder})"
        )
    if record.bank != manifest.hash:
        raise BankError(
            f"{collection.address}: holds bank {record.bank} (change {record.commit}, pushed from "
            f"{record.folder}), but {bank.folder} is bank {manifest.hash} (change "
            f"{manifest.commit}); if that is the same bank, changed since, run {push}; if not, "
            "name the right folder with ?values="
        )
    return record
