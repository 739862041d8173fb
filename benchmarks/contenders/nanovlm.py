"""nanoVLM's own training loop, `train.train` of its public code, run as it is.

Given from outside: its config (sizes of the pair, trainable parts, no logging, no evaluation), the
SmolLM2 weights under its names, and a loader made of its own dataset, packing and collator over
our samples. Of what it imports, torchvision, einops and wandb are stood in for where they are
missing. With transformers 5 `apply_chat_template` is told to return lists, as its code expects.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from contenders.clock import Enough, StepClock
from contenders.pairs import PROMPT, RATES, Task

ROWS = 2  # packed rows a step, nanoVLM's own default
WORKERS = 3  # nanoVLM's own
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
)


def run(clock: StepClock, task: Task, path: Path) -> dict[str, Any]:
    """Time a stage with the code in `path`."""
    nano = code(path)
    config = settings(nano.config.VLMConfig, task)
    tokenizer = fixed_tokenizer(config)
    model = new_model(nano, config, task)
    nano.get_dataloaders = partial(loaders, clock=clock, tokenizer=tokenizer, task=task)
    nano.VisionLanguageModel = lambda *args, **named: model
    trained = nano.config.TrainConfig(
        lr_mp=RATES["pretrain"],
        lr_vision_backbone=0,
        lr_language_backbone=RATES[task.stage] if task.stage == "finetune" else 0,
        batch_size=ROWS,
        gradient_accumulation_steps=1,
        eval_in_epochs=False,
        log_wandb=False,
    )
    with suppress(Enough):
        nano.train(trained, config)
    return {"trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def code(path: Path) -> Any:
    """Its module `train`, from a checkout; the others are imported with it."""
    import datasets  # noqa: F401  (both ask on import whether torchvision is there)
    from transformers import AutoTokenizer  # noqa: F401

    from contenders.nanovlm_imports import stand_ins

    if not (path / "train.py").is_file():
        raise SystemExit(f"{path}: no train.py; --nanovlm is a checkout of huggingface/nanoVLM")
    sys.path.insert(0, str(path))
    with stand_ins():
        return importlib.import_module("train")


def settings(cls: Any, task: Task) -> Any:
    """Its config with the pair's sizes and the stage's template."""
    config = cls(
        vit_hidden_dim=768, vit_inter_dim=3072, vit_img_size=224,
        lm_hidden_dim=576, lm_inter_dim=1536, lm_n_heads=9, lm_n_kv_heads=3, lm_n_blocks=30,
        lm_max_length=task.pair.packed_length, lm_tokenizer=task.language,
        mp_pixel_shuffle_factor=2, mp_image_token_length=49, max_img_size=224,
        vlm_load_backbone_weights=False,
    )  # fmt: skip
    if task.stage == "pretrain":
        config.lm_chat_template = PLAIN
    if task.pair.name == "efficientnet":
        config.vit_img_size = config.max_img_size = 260
        config.mp_image_token_length = 25
    return config


def fixed_tokenizer(config: Any) -> Any:
    """Its tokenizer, which keeps one a name; templates give lists as before transformers 5."""
    processors = importlib.import_module("data.processors")
    tokenizer = processors.get_tokenizer(
        config.lm_tokenizer, config.vlm_extra_tokens, config.lm_chat_template
    )
    plain = tokenizer.apply_chat_template

    def lists(*args: Any, return_dict: bool = False, **named: Any) -> Any:
        return plain(*args, return_dict=return_dict, **named)

    tokenizer.apply_chat_template = lists
    return tokenizer


def new_model(nano: Any, config: Any, task: Task) -> Any:
    """Its model with SmolLM2's weights; for the other pair, that tower and connector in it."""
    import torch

    torch.manual_seed(0)
    model = nano.VisionLanguageModel(config, load_backbone=False)
    load_language(model.decoder, Path(task.language))
    if task.pair.name == "efficientnet":
        from contenders.nanovlm_tower import connector, tower

        model.vision_encoder, model.MP = tower(task.pair), connector(config)
    return model


def load_language(decoder: Any, folder: Path) -> None:
    """SmolLM2's weights under nanoVLM's names; rows of its extra tokens stay as drawn."""
    import torch
    from safetensors.torch import load_file

    names = (
        ("model.", ""),
        ("embed_tokens", "token_embedding"),
        ("layers.", "blocks."),
        ("self_attn.", "attn."),
        ("o_proj", "out_proj"),
        ("input_layernorm", "norm1"),
        ("post_attention_layernorm", "norm2"),
    )
    own = decoder.state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        for theirs, here in names:
            name = name.replace(theirs, here)
        with torch.no_grad():
            own[name][: len(tensor)].copy_(tensor)


def loaders(train_config: Any, config: Any, clock: StepClock, tokenizer: Any, task: Task) -> Any:
    """In the place of its `get_dataloaders`: its dataset, packing, collator and workers."""
    import torch

    advanced = importlib.import_module("data.advanced_datasets")
    processors = importlib.import_module("data.processors")
    dataset = importlib.import_module("data.datasets").VQADataset(
        Photos(task),
        tokenizer,
        processors.get_image_processor(
            config.max_img_size, config.vit_img_size, config.resize_to_max_side_len
        ),
        config.mp_image_token_length,
    )
    packed = advanced.ConstantLengthDataset(
        dataset,
        infinite=True,
        max_sample_length=config.lm_max_length,
        seq_length=config.lm_max_length,
        num_of_sequences=train_config.batch_size * 4,
        queue_size=8,
        max_images_per_example=train_config.max_images_per_example,
        max_images_per_knapsack=train_config.max_images_per_knapsack,
    )
    collate = importlib.import_module("data.collators").VQACollator(tokenizer, config.lm_max_length)
    loader = torch.utils.data.DataLoader(
        packed,
        batch_size=train_config.batch_size,
        collate_fn=collate,
        num_workers=min(WORKERS, torch.get_num_threads()),
        drop_last=True,
    )
    return loader, None, Timed(loader, clock), None


class Photos:
    """Our samples as rows of nanoVLM's data: {"images": [PIL], "texts": [{user, assistant}]}."""

    def __init__(self, task: Task) -> None:
        self.samples, self.order = task.samples(), task.order()
        self.prompt = PROMPT if task.stage == "finetune" else ""

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        from tinyalign.data.images import load_image

        sample = self.samples[self.order[position]]
        texts = [{"user": self.prompt, "assistant": sample.answer}]
        return {"images": [load_image(sample.images[0])], "texts": texts}


class Timed:
    """Its batches, one after the other, under the clock."""

    def __init__(self, loader: Any, clock: StepClock) -> None:
        self.batches, self.clock = iter(loader), clock

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> Any:
        self.clock.ask()
        batch = next(self.batches)
        self.clock.give(
            samples=sum(len(images) for images in batch["images"]),
            supervised=int((batch["labels"] != -100).sum()),
            tokens=int(batch["attention_mask"].sum()),
            computed=batch["input_ids"].numel(),
        )
        return batch
