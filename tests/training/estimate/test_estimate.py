"""An estimate counts what a real model has, and a real optimizer holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyalign.errors import ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.model.head_loss import CHUNK
from tinyalign.training.estimate.estimate import Amounts, Pace, amounts_said, estimate, key_width
from tinyalign.training.estimate.meta_model import language_sizes, outline, vision_sizes
from tinyalign.training.estimate.stage_ram import Batch, four_bit_bytes, part_memory, step_memory
from tinyalign.training.recipe.data import DataSource, MixturePart
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.recipe.memory import FusionArgs, KeyArgs, MemoryArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun
from tinyalign.training.weights.adapters import linear_weights
from tinyalign.training.weights.freeze import account, freeze
from tinyalign.training.weights.models import new_model
from tinyalign.vocabulary import CrossEntropy

CPU = torch.device("cpu")
NOTHING = Pace()


def tensors(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (p.shape, p.dtype) for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "memory",
    [
        {"k": 0},
        {"k": 5},
        {"k": 3, "fusion": FusionArgs(form="sequence", latents_used=12, linear_skip=True)},
        {"k": 3, "fusion": FusionArgs(form="sequence", latents_used=12, word_skip=True)},
        {"k": 2, "control": "soft_prompt"},
    ],
)
def test_an_outline_has_every_tensor_of_the_real_model(recipe: Recipe, memory: dict) -> None:
    recipe = replace(
        recipe, memory=MemoryArgs(**memory), model=replace(recipe.model, dtype="bfloat16")
    )
    drawn = outline(recipe)
    real, _ = new_model(recipe, CPU)
    assert tensors(drawn.model) == tensors(real)
    assert all(p.is_meta for p in drawn.model.parameters())
    assert drawn.model.config.image_seq_length == real.config.image_seq_length
    assert drawn.model.config.n_memory_tokens == real.config.n_memory_tokens


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_smollm2_and_efficientnet_are_counted_without_their_weights(stage: str) -> None:
    recipe = load_recipe("smollm2-135m-efficientnet-easy-vqa")
    drawn = outline(recipe).model
    real, _ = new_model(recipe, CPU)
    args: StageArgs = getattr(recipe, stage)
    assert freeze(drawn, args) == freeze(real, args)
    assert tensors(drawn) == tensors(real)
    assert part_memory(drawn) == part_memory(real)


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("smollm2-135m", 134_515_008),
        ("Qwen/Qwen2-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("microsoft/phi-2", 2_779_683_840),
    ],
)
def test_known_language_models_have_their_published_size(spec: str, published: int) -> None:
    from transformers import AutoModelForCausalLM

    config, tokenizer, _, new = language_sizes(spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == published
    assert (tokenizer, new) == (None, 2)


def test_known_towers_give_the_tokens_they_are_known_for() -> None:
    for vision, tokens, width in (("siglip", 729, 1152), ("clip", 576, 1024)):
        drawn = outline(load_recipe(f"qwen2-0.5b-{vision}"))
        assert drawn.feature_shape == (tokens, width)
        assert drawn.model.lm_head.weight is drawn.model.get_input_embeddings().weight
    siglip = outline(load_recipe("phi-2-siglip")).model
    assert sum(p.numel() for p in siglip.model.vision_tower.parameters()) == 428_225_600
    assert siglip.lm_head.bias is not None


def test_an_unknown_model_says_which_file_is_missing() -> None:
    for sizes, setting in ((language_sizes, "model.language"), (vision_sizes, "model.vision")):
        with pytest.raises(ConfigError, match=rf"{setting} 'no/such'.*config\.json"):
            sizes("no/such")


# ----------------------------------------------------------------------------------------- memory


def held(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@pytest.mark.parametrize("language", ["frozen", "full"])
def test_weights_gradients_and_adamw_take_what_torch_holds(recipe: Recipe, language: str) -> None:
    stage = StageArgs(language=language)
    model, _ = new_model(replace(recipe, model=replace(recipe.model, dtype="bfloat16")), CPU)
    freeze(model, stage)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values()]
    drawn = outline(replace(recipe, model=replace(recipe.model, dtype="bfloat16"))).model
    freeze(drawn, stage, tell=False)
    found = part_memory(drawn)
    assert sum(part.optimizer for part in found) == held(states)
    assert sum(part.gradients for part in found) == held([p.grad for p in trained])
    assert sum(part.weights for part in found) == held([*model.parameters(), *model.buffers()])
    assert sum(part.trained for part in found) == account(model).trained


def saved_for_backward(model, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of the different tensors that autograd keeps, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch, supervised_only=True, use_cache=False).loss
    assert loss.isfinite()
    return sum(kept.values())


@pytest.mark.parametrize("language", ["frozen", "full"])
def test_activations_are_near_what_autograd_keeps(recipe: Recipe, language: str) -> None:
    recipe = replace(recipe, memory=MemoryArgs(k=0), model=replace(recipe.model, compile="off"))
    model, _ = new_model(recipe, CPU)
    freeze(model, StageArgs(language=language))
    model.train()
    ids = torch.randint(5, 200, (4, 60))
    ids[:, :16] = model.config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -8:] = ids[:, -8:]
    features = torch.randn(4, 16, 32)
    real = saved_for_backward(
        model, {"input_ids": ids, "labels": labels, "vision_features": features}
    )
    found = step_memory(
        model, Batch(4, 60, 8), dtype=torch.float32, eager=True, checkpointing=False
    )
    assert 0.6 < (found.activations + found.logits) / real < 1.4


def test_checkpointing_keeps_less_and_a_larger_batch_more(recipe: Recipe) -> None:
    model = outline(load_recipe("qwen2-0.5b-siglip")).model
    freeze(model, StageArgs(language="full"), tell=False)

    def needed(samples: int, checkpointing: bool) -> int:
        batch = Batch(samples, 800, 40)
        return step_memory(
            model, batch, dtype=torch.bfloat16, eager=False, checkpointing=checkpointing
        ).activations

    assert needed(8, True) < needed(8, False) / 5
    assert needed(8, False) == pytest.approx(2 * needed(4, False))


def test_chunked_cross_entropy_holds_the_logits_of_one_chunk() -> None:
    model = outline(load_recipe("qwen2-0.5b-siglip")).model
    vocabulary = model.lm_head.weight.shape[0]

    def logits(samples: int, form: CrossEntropy) -> int | None:
        return step_memory(
            model,
            Batch(samples, 800, 40),
            dtype=torch.bfloat16,
            eager=False,
            checkpointing=False,
            cross_entropy=form,
        ).logits

    chunk = CHUNK // vocabulary * vocabulary * (2 + 8)
    assert logits(32, "full") == 32 * 40 * vocabulary * (2 + 8)
    assert logits(32, "chunked") == logits(64, "chunked") == chunk
    assert logits(1, "chunked") == logits(1, "full")  # fewer tokens than a chunk


@pytest.mark.parametrize(
    ("weights", "size"),
    [(64, 32 + 1 + 4), (64 * 256, 64 * 128 + 256 + 4), (64 * 256 + 2, 64 * 128 + 1 + 257 + 8)],
)
def test_nf4_takes_four_bits_a_weight_and_its_scales(weights: int, size: int) -> None:
    assert four_bit_bytes(weights) == size


def test_qlora_keeps_the_llms_linear_layers_in_four_bits(two_stage_recipe: Recipe) -> None:
    recipe = replace(two_stage_recipe, model=replace(two_stage_recipe.model, dtype="bfloat16"))
    found = {}
    for language in ("lora", "qlora"):
        changed = replace(recipe, finetune=StageArgs(language=language))
        _, stage = estimate(changed, {}, NOTHING).stages
        (found[language],) = (p for p in stage.memory.parts if p.name == "language model")
    linears = linear_weights(outline(recipe).model.model.language_model)
    saved = sum(2 * w.numel() - four_bit_bytes(w.numel()) for w in linears)
    assert found["lora"].weights - found["qlora"].weights == saved
    assert found["lora"].trained == found["qlora"].trained > 0
    assert found["lora"].frozen == found["qlora"].frozen


# ------------------------------------------------------------------------------- data, disk, hours


@pytest.mark.parametrize(
    ("micro_tokens", "samples"),
    [(None, 4), (3 * 68, 3), (3 * 68 - 1, 2), (10, 1), (10_000, 8)],  # samples of 68 tokens
)
def test_a_budget_of_tokens_decides_the_micro_batch(
    recipe: Recipe, micro_tokens: int | None, samples: int
) -> None:
    stage = StageArgs(batch_size=8, micro_batch_size=4, micro_tokens=micro_tokens)
    said = {"pretrain": Amounts(1000, 1000, 20.0)}
    (found,) = estimate(replace(recipe, pretrain=stage), said, NOTHING).stages
    assert (found.tokens_a_sample, found.micro_batch) == (16 + 32 + 20, samples)


def mixture(recipe: Recipe, *parts: MixturePart) -> Recipe:
    """The recipe with a stream of several data sets."""
    source = DataSource(streaming=True, mixture=list(parts))
    stage = replace(recipe.pretrain, max_steps=9)
    data = replace(recipe.data, pretrain=source)
    return replace(recipe, data=data, pretrain=stage, memory=MemoryArgs(k=0))


def test_a_mixture_has_the_samples_of_its_parts_and_their_mean_text(
    recipe: Recipe, pairs: Path, questions: Path
) -> None:
    def text_tokens(*parts: MixturePart) -> float:
        (stage,) = estimate(mixture(recipe, *parts), {}, NOTHING).stages
        return stage.tokens_a_sample

    one, two = MixturePart(str(pairs), weight=3.0), MixturePart(str(questions))
    both = estimate(mixture(recipe, one, two), {}, NOTHING)
    features = {each.name: each.size for each in both.disk}["features"]
    assert features == (24 + 24) * 16 * 32 * 4
    mean = (3 * text_tokens(one) + text_tokens(two)) / 4
    assert both.stages[0].tokens_a_sample == pytest.approx(mean, abs=1)


def test_parts_of_a_mixture_that_are_not_here_are_named(recipe: Recipe, pairs: Path) -> None:
    parts = MixturePart(str(pairs)), MixturePart("gone.json")
    found = estimate(mixture(recipe, *parts), {}, NOTHING)
    assert found.stages[0].tokens is None
    assert [note.split()[0] for note in found.assumptions if "disk" in note] == ["gone.json"]


def test_how_much_memory_unknown_texts_take_is_unknown(recipe: Recipe) -> None:
    gone = replace(recipe.data, pretrain=DataSource("gone.json"), pretrain_eval=None)
    found = estimate(replace(recipe, data=gone), {"pretrain": Amounts(1000, 1000)}, Pace(50.0, 1.0))
    (stage,) = found.stages
    assert stage.memory.activations is stage.memory.logits is stage.memory.total is None
    assert stage.tokens is stage.tokens_a_sample is stage.hours_by_peak is None
    assert stage.hours is not None
    assert {each.size for each in found.disk if each.name == "tokens"} == {None}
    assert any("--text-tokens" in note for note in found.assumptions)


def test_steps_samples_and_tokens_are_those_of_the_run(recipe: Recipe) -> None:
    found = estimate(recipe, {}, NOTHING)
    (stage,) = found.stages
    result = train(recipe)
    assert stage.steps == result.stages[0].steps == 6
    assert stage.samples == result.stages[0].samples == 24
    assert sum(part.trained for part in stage.memory.parts) == result.stages[0].trained_parameters
    shop = StageRun(recipe, RunFolder(recipe), "pretrain")
    lengths = shop.dataset(recipe.data.pretrain).lengths
    assert stage.tokens_a_sample == pytest.approx(lengths.mean(), rel=0.05)


def test_files_are_as_large_as_said(recipe: Recipe, tmp_path: Path) -> None:
    data = replace(recipe.data, cache_folder=str(tmp_path / "cache"), pretrain_eval=None)
    recipe = replace(recipe, data=data)
    sizes = {each.name: each.size for each in estimate(recipe, {}, NOTHING).disk}
    result = train(recipe)
    cache = tmp_path / "cache"
    assert sizes["features"] == next(cache.rglob("features.bin")).stat().st_size
    tokens = sum(path.stat().st_size for path in cache.rglob("tokens/*/*.bin"))
    assert sizes["tokens"] == pytest.approx(tokens, rel=0.15)
    manifest = MemoryBank.open(result.bank).manifest
    row = manifest.key_coding.record.itemsize + manifest.value_coding.record.itemsize
    assert sizes["bank"] == 24 * row
    assert sizes["neighbours"] == 24 * 10 * 8


@pytest.mark.parametrize("key", [KeyArgs(), KeyArgs(alpha=1.0)])
def test_keys_are_as_wide_as_said(recipe: Recipe, tmp_path: Path, key: KeyArgs) -> None:
    chosen = replace(recipe.memory, key=key)
    folder = RunFolder(replace(recipe, memory=chosen))
    folder.path.mkdir(parents=True)
    shop = StageRun(replace(recipe, memory=chosen), folder, "pretrain")
    assert shop.bank.manifest.key_coding.width == key_width(chosen, 32)


def test_data_that_are_not_here_are_left_open_or_said(recipe: Recipe) -> None:
    gone = replace(recipe.data, pretrain=DataSource("gone.json"), pretrain_eval=None)
    recipe = replace(recipe, data=gone, pretrain=StageArgs(batch_size=10))
    found = estimate(recipe, {}, NOTHING)
    assert found.stages[0].steps is None
    assert {each.size for each in found.disk if each.name == "features"} == {None}
    assert "gone.json" in found.assumptions[0]
    said = estimate(recipe, {"pretrain": Amounts(1000, 1000, 20.0)}, Pace(50.0, 100.0))
    stage = said.stages[0]
    assert (stage.steps, stage.samples) == (100, 1000)
    assert stage.tokens == 1000 * (16 + 32 + 20)
    assert stage.hours == pytest.approx(1000 / 50 / 3600)
    assert stage.hours_by_peak > 0
    with pytest.raises(ConfigError, match="positive"):
        amounts_said(0, None, None)


def test_arithmetic_grows_with_what_is_trained(recipe: Recipe) -> None:
    said = {"pretrain": Amounts(1000, 1000, 20.0)}
    hours = {}
    for language in ("frozen", "full"):
        stage = StageArgs(language=language)
        changed = replace(recipe, pretrain=stage)
        hours[language] = estimate(changed, said, Pace(tflops=1.0)).stages[0].hours_by_peak
    assert 1 < hours["full"] / hours["frozen"] < 6 / 4  # the connectors are trained in both


def test_nothing_is_written(recipe: Recipe, tmp_path: Path) -> None:
    data = replace(recipe.data, cache_folder=str(tmp_path / "cache"))
    estimate(replace(recipe, data=data), {}, NOTHING)
    assert list(tmp_path.iterdir()) == []
