"""Peak memory is that of the stretch of work, not of what came before."""

import torch

from tinyalign.analysis.peak_ram import PeakMemory


def test_a_large_tensor_shows():
    with PeakMemory() as before:
        pass
    with PeakMemory() as during:
        big = torch.ones(100_000_000)  # 0.4 GB
        del big
    if not torch.cuda.is_available():
        assert during.gigabytes > before.gigabytes + 0.2
    assert before.gigabytes >= 0.0
