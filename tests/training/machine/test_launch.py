"""Without a launcher there is one process, and it waits for nobody; `test_distributed` has two."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tinyalign.errors import ConfigError
from tinyalign.training.machine import launch


def test_one_process_is_the_first_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.processes() == 1
    assert launch.is_first()
    assert launch.join(torch.device("cpu")) == torch.device("cpu")
    launch.wait_for_all()
    assert launch.gather("mine") == ["mine"]
    with pytest.raises(KeyError), launch.first_goes_first():
        raise KeyError("as it is")


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not launch.is_first()
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    monkeypatch.setattr(launch, "PartialState", lambda cpu: alone)
    with pytest.raises(ConfigError, match="2 processes were launched, 1 found each other"):
        launch.join(torch.device("cpu"))


def test_deepspeed_serves_cpus_only_where_there_are_no_gpus(monkeypatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not launch.zero_on_cpu(cpu)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert launch.zero_on_cpu(cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not launch.zero_on_cpu(gpu)
    with pytest.raises(ConfigError, match="hide them with CUDA_VISIBLE_DEVICES="):
        launch.zero_on_cpu(cpu)
