"""`tinyalign bank browse`: a memory bank as a local web page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import say, say_json
from tinyalign.errors import ConfigError
from tinyalign.log import logger

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(kw_only=True)
class BankBrowseArgs:
    """Arguments of `tinyalign bank browse`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, or the folder of a run that used it."""
    data: str | None = None
    """The data set that the bank was made of, to take pictures from: a file, folder or glob, or
    the name "easy_vqa". By default only image files that the entries name are shown."""
    format: Literal["auto", "llava", "parquet", "csv", "easy_vqa"] = "auto"
    """How to read the data set; "auto" looks at suffix and content."""
    image_folder: str | None = None
    """Where the data set's relative image paths start; by default beside the data file."""
    split: str = "train"
    """The split, where the data set has several."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own lets others see the bank: the page asks
    for no password."""
    port: int = 0
    """Port to listen on; 0 takes a free one."""
    open: bool = False
    """Open the page in the browser."""
    vision: str | None = None
    """Vision encoder for searches by image; by default the one that the bank names."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    json: bool = False
    """Print the page's address as JSON."""


def bank_browse(args: BankBrowseArgs) -> int:
    """Look at a memory bank in the browser: entries, search by text or image, neighbours, a map.

    Runs until it is stopped with Ctrl+C. What others add to the bank shows when the page is
    loaded again.
    """
    import sys
    import webbrowser

    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.open_bank import find_bank
    from tinyalign.model.device import choose_device
    from tinyalign.serving.browse.pictures import Pictures
    from tinyalign.serving.browse.server import BrowseServer
    from tinyalign.serving.browse.view import BankView

    if not 0 <= args.port <= 65_535:
        raise ConfigError(f"--port must be from 0 to 65535, found {args.port}")
    device = choose_device(args.device)
    bank = MemoryBank.open(find_bank(args.bank))
    view = BankView(bank, Pictures(_samples(args)), vision_name=args.vision, device=device)
    with BrowseServer(view, args.host, args.port) as server:
        if args.host not in LOOPBACK:
            logger.warning("everybody who reaches %s can see this bank", server.url)
        if args.json:
            say_json({"url": server.url, "bank": bank.folder, "entries": len(bank)})
        else:
            say(f"{len(bank)} entries at {server.url}   (Ctrl+C stops it)")
        sys.stdout.flush()
        if args.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _samples(args: BankBrowseArgs):  # type: ignore[no-untyped-def]
    from tinyalign.data.readers import open_dataset

    if args.data is None:
        return None
    return open_dataset(
        args.data, format=args.format, image_folder=args.image_folder, split=args.split
    )
