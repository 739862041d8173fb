"""Precision, attention, loss and optimiser kernels: equal within tolerance, refused in words."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tinyalign.data.collator import Collator
from tinyalign.errors import ConfigError
from tinyalign.training import run
from tinyalign.training.loop.arguments import training_arguments
from tinyalign.training.loop.trainer import TinyAlignTrainer
from tinyalign.training.machine import precision
from tinyalign.training.machine.precision import adamw, check_machine, mixed_precision
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.model import ModelArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun

from .. import flash_written_out

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def curve(recipe: Recipe, name: str, language: str = "full", **model: object) -> list[float]:
    """Losses of a run with other settings of the model."""
    stage = replace(recipe.pretrain, language=language)
    memory = replace(recipe.memory, k=0)
    recipe = replace(
        recipe, pretrain=stage, memory=memory, model=replace(recipe.model, **model),
        output=f"{recipe.output}-{name}",
    )  # fmt: skip
    lines = read_metrics(train(recipe).folder / "metrics.jsonl")
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("language", ["frozen", "full"])
def test_bfloat16_learns_as_float32_does(recipe: Recipe, language: str) -> None:
    """Six steps; bfloat16 keeps 8 bits, so that losses near 6 agree to 0.5 %."""
    exact = curve(recipe, "32", language, dtype="float32")
    assert curve(recipe, "16", language, dtype="bfloat16") == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("language", ["frozen", "full"])
def test_chunked_cross_entropy_learns_the_same(recipe: Recipe, language: str) -> None:
    exact = curve(recipe, "full", language)
    assert curve(recipe, "chunked", language, cross_entropy="chunked") == pytest.approx(
        exact, rel=1e-5
    )


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["frozen", "full"])
def test_float16_learns_as_float32_does(recipe: Recipe, language: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    recipe = replace(recipe, device="cuda")
    exact = curve(recipe, "32", language, dtype="float32")
    assert curve(recipe, "16", language, dtype="float16") == pytest.approx(exact, rel=5e-3)


@pytest.fixture
def scaler(monkeypatch) -> torch.amp.GradScaler:
    """torch's loss scaling for CPUs, in the place that accelerate leaves empty there."""
    scaler = torch.amp.GradScaler("cpu")
    prepare = TinyAlignTrainer.create_accelerator_and_postprocess

    def with_scaling(trainer: TinyAlignTrainer) -> None:
        prepare(trainer)
        if trainer.accelerator.mixed_precision == "fp16":
            trainer.accelerator.native_amp, trainer.accelerator.scaler = True, scaler

    monkeypatch.setattr(TinyAlignTrainer, "create_accelerator_and_postprocess", with_scaling)
    monkeypatch.setattr(run, "check_machine", lambda *_: None)  # it refuses float16 on a CPU
    return scaler


@pytest.mark.parametrize("language", ["frozen", "full"])
def test_float16_with_scaled_losses_learns_as_float32_does(recipe, scaler, language: str) -> None:
    exact = curve(recipe, "32", language, dtype="float32")
    assert curve(recipe, "16", language, dtype="float16") == pytest.approx(exact, rel=1e-4)
    assert scaler.get_scale() == 65536.0


def test_steps_whose_gradients_overflow_change_nothing(recipe, scaler) -> None:
    """Each halves the scale; losses are those of a run that hardly learns."""
    still = replace(recipe, pretrain=replace(recipe.pretrain, learning_rate=1e-12))
    unmoved = curve(still, "still", dtype="float32")
    scaler._init_scale = 2.0**60
    assert curve(recipe, "16", dtype="float16") == pytest.approx(unmoved, rel=1e-4)
    assert scaler.get_scale() == 2.0 ** (60 - len(unmoved))


def batch_loss(recipe: Recipe, backward: bool) -> tuple[float, torch.Tensor]:
    """Loss of the first items, and the gradient of the image connector's last matrix."""
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True, exist_ok=True)
    shop = StageRun(recipe, folder, "pretrain")
    dataset = shop.dataset(recipe.data.pretrain)
    batch = Collator(shop.processor.tokenizer.pad_token_id)([dataset[i] for i in range(4)])
    inputs = {k: v for k, v in batch.items() if k not in ("index", "n_supervised")}
    with torch.set_grad_enabled(backward):
        loss = shop.model(**inputs, supervised_only=True, use_cache=False).loss
    if backward:
        loss.backward()
    weight = shop.model.model.multi_modal_projector.output.weight
    return loss.item(), torch.empty(0) if weight.grad is None else weight.grad.clone()


def test_a_frozen_llm_in_float16_gives_the_loss_of_float32(recipe: Recipe) -> None:
    """Without the Trainer: its loss scaling needs a GPU, float16 itself does not."""
    exact, _ = batch_loss(recipe, backward=False)
    low = replace(recipe, model=replace(recipe.model, dtype="float16"))
    assert math.isclose(batch_loss(low, backward=False)[0], exact, rel_tol=2e-3)


def attending(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, model=replace(recipe.model, attn_implementation=name))


@pytest.mark.parametrize(
    ("name", "backward"),
    [("sdpa", True), pytest.param("flex_attention", False, marks=pytest.mark.slow)],
)
def test_attention_gives_the_same_loss_and_gradient(recipe: Recipe, name: str, backward) -> None:
    """torch has flex attention's backward pass on GPUs only."""
    exact, gradient = batch_loss(attending(recipe, "eager"), backward)
    loss, found = batch_loss(attending(recipe, name), backward)
    assert math.isclose(loss, exact, rel_tol=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_gradient_unfused(monkeypatch, recipe: Recipe) -> None:
    """Its fused backward pass is for GPUs; the same arithmetic, written out, runs anywhere."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    exact, gradient = batch_loss(attending(recipe, "eager"), backward=True)
    with torch.compiler.set_stance("force_eager"):
        loss, found = batch_loss(attending(recipe, "flex_attention"), backward=True)
    assert math.isclose(loss, exact, rel_tol=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)


def test_flash_attention_gives_the_same_written_out(monkeypatch, caplog, recipe: Recipe) -> None:
    """What a model does around its kernel: padding taken out, samples of a packed row apart."""
    exact, gradient = batch_loss(attending(recipe, "eager"), backward=True)
    calls = flash_written_out.install(monkeypatch)
    monkeypatch.setattr(run, "check_machine", lambda *_: None)  # it refuses the kernel on a CPU
    flash = attending(recipe, "flash_attention_2")
    loss, found = batch_loss(flash, backward=True)
    assert math.isclose(loss, exact, rel_tol=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)
    for packing in (True, False):
        stage = replace(recipe.pretrain, packing=packing)
        own = curve(replace(recipe, pretrain=stage), f"own-{packing}")
        calls.clear()
        assert curve(replace(flash, pretrain=stage), f"flash-{packing}") == pytest.approx(own)
        assert calls["flash_attn_varlen_func"]
    assert "lets packed samples see each other" not in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_2"])
def test_attention_of_gpus_learns_as_the_librarys_own(recipe: Recipe, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if name == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    recipe = replace(recipe, device="cuda")
    exact = curve(recipe, "sdpa", dtype="bfloat16", attn_implementation="sdpa")
    found = curve(recipe, name, dtype="bfloat16", attn_implementation=name)
    assert found == pytest.approx(exact, rel=5e-3)


def test_fused_adamw_takes_the_steps_of_the_plain_one() -> None:
    """20 steps in float32, on weights of several shapes; the order of sums differs."""
    assert adamw(CPU) == adamw(GPU) == "adamw_torch_fused"
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(13, 7), torch.nn.Linear(7, 5, bias=False))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1, fused=fused)
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(3, 13)).square().sum().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    for fused_one, plain in zip(*results):
        torch.testing.assert_close(fused_one, plain, rtol=1e-5, atol=1e-7)


def test_the_trainer_is_told_precision_and_optimiser(recipe: Recipe, tmp_path: Path) -> None:
    arguments = training_arguments(recipe, recipe.pretrain, tmp_path, CPU)
    assert arguments.optim == "adamw_torch_fused"
    assert mixed_precision("bfloat16", trains_large=True) == {"bf16": True, "fp16": False}
    assert mixed_precision("bfloat16", trains_large=False) == {"bf16": False, "fp16": False}
    assert mixed_precision("float16", trains_large=False) == {"bf16": False, "fp16": True}
    assert mixed_precision("float32", trains_large=True) == {"bf16": False, "fp16": False}


@pytest.mark.parametrize(
    ("settings", "device", "says"),
    [
        ({"dtype": "float16"}, CPU, 'on a CPU use "bfloat16"'),
        ({"attn_implementation": "flash_attention_2"}, CPU, "runs on GPUs only"),
        ({"attn_implementation": "flash_attention_2"}, GPU, "pip install flash-attn"),
        ({"attn_implementation": "flash_attention_2", "dtype": "float32"}, GPU, "16 bits only"),
        ({"attn_implementation": "sdap"}, CPU, "one of .*eager.*sdpa"),
        ({"cross_entropy": "liger"}, GPU, r'pip install "tinyalign-vlm\[liger\]"'),
    ],
)
def test_what_this_machine_lacks_is_said(settings, device, says, monkeypatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda package: None)
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: True)
    with pytest.raises(ConfigError, match=says):
        check_machine(ModelArgs(**settings), device)


def test_deepspeed_on_cpus_is_told_to_be_exact(monkeypatch) -> None:
    check_machine(ModelArgs(dtype="bfloat16"), CPU)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_machine(ModelArgs(dtype="float32"), CPU)
    with pytest.raises(ConfigError, match="to float32"):
        check_machine(ModelArgs(dtype="bfloat16"), CPU)


def test_liger_on_a_cpu_is_refused_with_what_to_use(monkeypatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda package: object())
    with pytest.raises(ConfigError, match='use "chunked" on cpu'):
        check_machine(ModelArgs(cross_entropy="liger"), CPU)


def test_a_run_is_refused_before_anything_is_made(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        train(replace(recipe, model=replace(recipe.model, dtype="float16")))
    assert not Path(recipe.output).exists()


@pytest.mark.parametrize("name", ["auto", "eager", "sdpa", "flex_attention", "owner/kernel"])
def test_other_attention_passes(name: str) -> None:
    check_machine(ModelArgs(attn_implementation=name), CPU)
