"""Where a saved model lies."""

from __future__ import annotations

from pathlib import Path

from tinyalign.errors import ConfigError


def find_model(path: str | Path) -> Path:
    """The model folder of a run folder, or of a folder that is one. ConfigError otherwise."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(f"{path}: no model there; expected a run folder, or one with a config.json")
