"""Nested settings compared: what two runs differ in, and what an older one did not have yet."""

from __future__ import annotations

import json
from typing import Any


def filled(settings: Any, defaults: Any) -> Any:
    """Settings with those that are missing at their defaults, as a version that did not have
    them ran; what is there stays."""
    if not (isinstance(settings, dict) and isinstance(defaults, dict)):
        return settings
    there = {name: filled(value, defaults.get(name)) for name, value in settings.items()}
    return {**json.loads(json.dumps(defaults)), **there}


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Settings in which two runs differ, as "memory.k 5 -> 3"."""
    if isinstance(before, dict) and isinstance(now, dict):
        found: list[str] = []
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            found += differences(before.get(key), now.get(key), inner)
        return found
    return [] if before == now else [f"{name} {before} -> {now}"]
