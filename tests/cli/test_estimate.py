"""`tinyalign estimate` on the command line."""

from __future__ import annotations

import json


def test_a_shipped_recipe_is_estimated_without_its_data_and_weights(run):
    words = ("estimate", "--config", "qwen2-0.5b-siglip", "--samples", 558_128)
    words += ("--finetune-samples", 665_298, "--text-tokens", 40, "--samples-per-second", 50)
    code, out, _ = run(*words, "--tflops", 989)
    assert code == 0
    for said in ("pretrain", "finetune", "494,032,768", "2,181", "bank", "free on that disk"):
        assert said in out, said


def test_as_json_and_with_overrides(run):
    words = ("estimate", "--config", "qwen2-0.5b-siglip", "--json", "--memory.k", 0)
    code, out, _ = run(*words, "--samples", 1000, "--text-tokens", 40)
    assert code == 0
    found = json.loads(out)
    assert [stage["stage"] for stage in found["stages"]] == ["pretrain", "finetune"]
    first = found["stages"][0]
    names = [part["name"] for part in first["memory"]["parts"]]
    assert names == ["vision tower", "image connector", "language model"]
    assert first["memory"]["total"] > 2 * (494_032_768 + 428_225_600)
    assert first["samples"] == 1000
    assert found["stages"][1]["samples"] is None
    assert "bank" not in [each["name"] for each in found["disk"]]


def test_an_unknown_model_is_an_error_in_words(run):
    words = ("estimate", "--config", "qwen2-0.5b-siglip", "--model.language", "no/such")
    code, _, err = run(*words)
    assert code == 2
    assert "config.json" in err


def test_lines_that_hang_on_unknown_texts_stay_open(run):
    words = ("estimate", "--config", "qwen2-0.5b-siglip", "--samples", 1000, "--tflops", 989)
    code, out, _ = run(*words)
    assert code == 0
    lines = out.splitlines()
    for name in ("activations", "logits", "memory in all", "tokens  ", "hours by the device"):
        assert all("unknown" in line for line in lines if name in line), name
    assert "say --text-tokens" in " ".join(out.split())


def test_qlora_is_estimated_without_the_package_that_quantises(run):
    words = ("estimate", "--config", "qwen2-0.5b-siglip", "--finetune.language", "qlora")
    code, out, _ = run(*words)
    assert code == 0
    assert "nf4" in out
