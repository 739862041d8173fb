"""The front door: one verb, one function, one typed argument dataclass. `main` opens it."""

from tinyalign.cli.front.app import main

__all__ = ["main"]
