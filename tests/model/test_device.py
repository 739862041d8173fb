"""Devices by name, and what they multiply."""

from __future__ import annotations

import pytest
import torch

from tinyalign.errors import ConfigError
from tinyalign.memory.search.exact import rough_dtype
from tinyalign.model.device import choose_device, multiplies_bfloat16

CPU = torch.device("cpu")


def test_names_of_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="'nothing' is unknown to torch"):
        choose_device("nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        choose_device("cuda")


def test_bfloat16_is_asked_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda a=answer: a)
        assert multiplies_bfloat16(CPU) is answer
        assert rough_dtype(CPU) == (torch.bfloat16 if answer else torch.float32)
    assert not multiplies_bfloat16(torch.device("meta"))
