from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinyalign.errors import ConfigError
from tinyalign.memory.bank.coding import TOP, CodingError, KeyCoding, ValueCoding

INT8 = ValueCoding("int8", 3, 5)
HALF = ValueCoding("float16", 3, 5)
numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=300, deadline=None)
@given(values=arrays(np.float32, (2, 3, 5), elements=numbers))
def test_a_number_is_off_by_half_a_step_and_what_rounding_the_scale_costs(values) -> None:
    decoded = INT8.decode(INT8.encode(values))
    scale = np.abs(values).max(axis=-1, keepdims=True).astype(np.float64) / TOP
    off = np.maximum(scale * 2**-11, 2**-25)  # rounding of the scale to half precision
    bound = 0.5 * (scale + off) + TOP * off
    assert (np.abs(decoded.astype(np.float64) - values) <= bound * (1 + 1e-5)).all()


@settings(max_examples=100, deadline=None)
@given(values=arrays(np.float32, (2, 3, 5), elements=st.floats(-6e4, 6e4, width=32)))
def test_half_precision_rounds_to_the_nearest(values) -> None:
    assert (HALF.decode(HALF.encode(values)) == values.astype(np.float16)).all()


@pytest.mark.parametrize("coding", [INT8, HALF])
def test_zeros_stay_zeros(coding: ValueCoding) -> None:
    decoded = coding.decode(coding.encode(np.zeros((2, 3, 5), np.float32)))
    assert (decoded == 0).all()
    assert decoded.dtype == np.float32


def test_a_latent_of_zeros_beside_others_costs_them_nothing() -> None:
    values = np.ones((1, 3, 5), np.float32)
    values[0, 1] = 0
    decoded = INT8.decode(INT8.encode(values))
    assert (decoded[0, 1] == 0).all()
    np.testing.assert_allclose(decoded[0, [0, 2]], 1.0, rtol=1e-3)


def test_a_large_latent_does_not_flatten_a_small_one() -> None:
    values = np.ones((1, 3, 5), np.float32) * np.array([1000.0, 1.0, 0.01])[None, :, None]
    decoded = INT8.decode(INT8.encode(values.astype(np.float32)))
    np.testing.assert_allclose(decoded, values, rtol=5e-3)


@pytest.mark.parametrize("coding", [INT8, HALF])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30])
def test_what_cannot_be_held_is_never_finite_again(coding: ValueCoding, number: float) -> None:
    """So that the writer sees it and refuses the sample."""
    values = np.ones((2, 3, 5), np.float32)
    values[0, 1, 2] = number
    decoded = coding.decode(coding.encode(values))
    assert not np.isfinite(decoded[0, 1]).all()
    assert np.isfinite(decoded[1]).all()


def test_keys_that_overflow_become_infinite() -> None:
    keys = np.array([[1.0, 1e6]], np.float32)
    assert np.isinf(KeyCoding("float16", 2).encode(keys)[0, 1])
    assert (KeyCoding("float32", 2).encode(keys) == keys).all()


def test_sizes_on_disk() -> None:
    assert ValueCoding("int8", 32, 96).record.itemsize == 32 * 96 + 2 * 32
    assert ValueCoding("float16", 32, 96).record.itemsize == 2 * 32 * 96
    assert KeyCoding("float16", 512).record.itemsize == 1024
    assert KeyCoding("float32", 512).record.itemsize == 2048


def test_the_cost_of_coding_is_a_relative_error() -> None:
    cost = CodingError()
    assert cost.relative == 0.0
    cost.add(np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32))
    assert cost.relative == pytest.approx(0.1)
    both = cost + cost
    assert both.relative == pytest.approx(0.1)
    assert both.squared_norm == pytest.approx(50.0)


@pytest.mark.parametrize("make", [lambda: KeyCoding("int8", 4), lambda: ValueCoding("f4", 1, 1)])
def test_unknown_types_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        make()
