"""Held-out samples are shared out between processes and come back in their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinyalign.training.batches.evaluation import EvaluationBatches

few = st.integers(1, 4)


@given(size=st.integers(1, 40), batch=few, processes=few)
def test_held_out_batches_are_shared_out_and_joined_in_order(size, batch, processes) -> None:
    shares = [EvaluationBatches(size, batch, processes, index) for index in range(processes)]
    assert len({len(list(share)) for share in shares}) == 1
    joined = shares[0].joined([list(share) for share in shares])
    assert [position for part in joined for position in part] == list(range(size))
