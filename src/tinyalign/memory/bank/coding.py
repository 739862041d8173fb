"""How keys and values lie on disk: half or single floats, or 8-bit integers with a scale a latent.

A value of 32 latents of width 96 takes 6,144 bytes as float16 and 3,136 as int8. What the coding
loses is measured while it is written (`CodingError`) and shown by `tinyalign bank info`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from tinyalign.errors import ConfigError
from tinyalign.vocabulary import KeysDtype, ValuesDtype

SUFFIXES = {"float16": "f16", "float32": "f32", "int8": "i8"}
TOP = 127  # largest code of an int8 latent
# Sums are kept as multiples of these, so that they come out the same in any order of adding:
# exact up to 1e8 (error) and 1e11 (norm), which is tens of millions of entries.
ERROR_STEP, NORM_STEP = 2.0**-26, 2.0**-16


@dataclass
class CodingError:
    """Sums over coded numbers, from which a relative error follows."""

    squared_error: float = 0.0
    squared_norm: float = 0.0

    def add(self, exact: np.ndarray, coded: np.ndarray) -> None:
        """Count numbers before and after coding."""
        difference = exact.astype(np.float64) - coded
        error, norm = np.square(difference).sum(), np.square(exact, dtype=np.float64).sum()
        self.squared_error += round(float(error) / ERROR_STEP) * ERROR_STEP
        self.squared_norm += round(float(norm) / NORM_STEP) * NORM_STEP

    def __add__(self, other: CodingError) -> CodingError:
        return CodingError(
            self.squared_error + other.squared_error, self.squared_norm + other.squared_norm
        )

    @property
    def relative(self) -> float:
        """Root of the squared error over the squared norm; 0 for nothing coded."""
        return (self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else 0.0


@dataclass(frozen=True)
class KeyCoding:
    """Keys (N, d_k) as rows of one float type."""

    dtype: KeysDtype
    width: int

    def __post_init__(self) -> None:
        _known("keys_dtype", self.dtype, get_args(KeysDtype))

    @property
    def record(self) -> np.dtype:
        """One key."""
        return np.dtype((f"<f{np.dtype(self.dtype).itemsize}", (self.width,)))

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        return SUFFIXES[self.dtype]

    def encode(self, keys: np.ndarray) -> np.ndarray:
        """Keys (B, d_k) fp32 as they are written; what overflows becomes infinite."""
        with np.errstate(over="ignore"):
            return keys.astype(self.record.base)


@dataclass(frozen=True)
class ValueCoding:
    """Values (N, latents, width) as fp16, or as int8 codes with one fp16 scale a latent."""

    dtype: ValuesDtype
    n_latents: int
    d_latents: int

    def __post_init__(self) -> None:
        _known("values_dtype", self.dtype, get_args(ValuesDtype))

    @property
    def record(self) -> np.dtype:
        """One value."""
        shape = (self.n_latents, self.d_latents)
        if self.dtype == "float16":
            return np.dtype(("<f2", shape))
        return np.dtype([("scale", "<f2", (self.n_latents,)), ("codes", "i1", shape)])

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        return SUFFIXES[self.dtype]

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values (B, latents, width) fp32 as they are written: records (B,), or fp16.

        A latent's scale is its largest magnitude over 127. What fp16 cannot hold becomes
        infinite; `decode` shows it.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self.dtype == "float16":
                return values.astype("<f2")
            records = np.empty(len(values), dtype=self.record)
            records["scale"] = np.abs(values).max(axis=-1, initial=0.0) / TOP
            scale = records["scale"].astype(np.float32)[..., None]
            codes = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
            records["codes"] = np.nan_to_num(np.rint(codes).clip(-TOP, TOP))
            return records

    def decode(self, records: np.ndarray) -> np.ndarray:
        """Values (..., latents, width) fp32 of records (...)."""
        if self.dtype == "float16":
            return records.astype(np.float32)
        scale = records["scale"].astype(np.float32)[..., None]
        with np.errstate(invalid="ignore"):  # an infinite scale times 0 is not a number
            return records["codes"] * scale


def _known(what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ConfigError(f"{what} is {found!r}; expected one of {', '.join(known)}")
