"""Put a vision tower and a language model together into a TinyAlign model with its processor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, GenerationConfig

from tinyalign.data.chat import IMAGE_TOKEN, MEMORY_TOKEN, choose_template, end_token_id
from tinyalign.errors import ModelError
from tinyalign.log import logger
from tinyalign.model.backbones.language import load_language
from tinyalign.model.backbones.vision import Layer, Select, VisionEncoder, load_vision
from tinyalign.model.configuration import TinyAlignConfig
from tinyalign.model.connectors.image import build_connector, match_scale, rms
from tinyalign.model.connectors.memory import MemoryConnector
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.model.processing import TinyAlignProcessor


def build_model(
    vision: str | Path,
    language: str | Path,
    *,
    k: int = 0,
    fusion: str = "width",
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    template: str | None = None,
    vision_feature_layer: Layer = -1,
    vision_feature_select: Select = "patch",
    **settings: Any,
) -> tuple[TinyAlignForConditionalGeneration, TinyAlignProcessor]:
    """(model, processor), with new connectors between a loaded tower and a loaded LLM.

    vision, language: hub id, folder, or packaged name (`load_vision`, `load_language`).
    k, fusion: memories a query and how they become tokens; k = 0 is the baseline.
    dtype: of tower and LLM, None is the LLM's own; the connectors are float32.
    attn_implementation: of the LLM, None leaves it to transformers.
    template: a name in `data.chat.CHAT_TEMPLATES`; None chooses by the tokenizer.
    settings: further fields of TinyAlignConfig (connector, connector_args, memory_source, ...).

    The connectors are drawn from torch's global generator, the image connector first: with the
    same seed a baseline and a TinyAlign model start from the same image connector. It is scaled on
    a made image so that image tokens start as large as the LLM's token embeddings.
    Raises ModelError for backbones that don't fit.
    """
    llm, tokenizer = load_language(language, dtype, attn_implementation)
    tower, image_processor = load_vision(vision, dtype or llm.dtype)
    image_id, memory_id = _add_placeholders(llm, tokenizer)
    encoder = VisionEncoder(tower, image_processor, vision_feature_layer, vision_feature_select)
    attention = [(part, part._attn_implementation) for part in (tower.config, llm.config)]
    config = TinyAlignConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_id=image_id,
        memory_token_id=memory_id,
        memory_k=k,
        memory_fusion=fusion,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select=vision_feature_select,
        vision_hash=encoder.hash,
        lm_head_bias=llm.get_output_embeddings().bias is not None,
        token_rms=_token_rms(llm),
        chat_template_name=template,
        dtype=llm.dtype,
        **settings,
    )
    model = _assemble(config, tower, llm)
    for part, chosen in attention:  # a config around others resets their choice
        part._attn_implementation = chosen
    _scale_image_connector(model, encoder)
    _check_head(model, llm, tokenizer)
    chat_template = choose_template(tokenizer, template)
    model.generation_config = _generation_config(llm, tokenizer, chat_template, config)
    return model, _processor(config, image_processor, tokenizer, chat_template)


def _scale_image_connector(
    model: TinyAlignForConditionalGeneration, encoder: VisionEncoder
) -> None:
    """Start image tokens as large as the LLM's, by a made image; and note how many there are."""
    connector, config = model.model.multi_modal_projector, model.config
    features = encoder.encode([_example_image()])
    match_scale(connector, features, config.token_rms)
    config.image_seq_length = connector.n_tokens(features.shape[1])


def _processor(
    config: TinyAlignConfig, image_processor: Any, tokenizer: Any, chat_template: str
) -> TinyAlignProcessor:
    return TinyAlignProcessor(
        image_processor,
        tokenizer,
        chat_template=chat_template,
        image_seq_length=config.image_seq_length,
        memory_seq_length=config.n_memory_tokens,
        memory_learned=config.memory_source == "soft_prompt",
    )


def _add_placeholders(llm: Any, tokenizer: Any) -> tuple[int, int]:
    """Give the tokenizer `<image>` and `<memory>`; new embedding rows are zero."""
    known = tokenizer.get_added_vocab()
    new = [token for token in (IMAGE_TOKEN, MEMORY_TOKEN) if token not in known]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
    rows = llm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in new]
    with torch.no_grad():
        for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            layer.weight[ids] = 0
            if getattr(layer, "bias", None) is not None:
                layer.bias[ids] = 0
    return (
        tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        tokenizer.convert_tokens_to_ids(MEMORY_TOKEN),
    )


@torch.no_grad()
def _token_rms(llm: Any) -> float:
    table = llm.get_input_embeddings()
    ids = torch.arange(0, table.weight.shape[0], max(1, table.weight.shape[0] // 4096))
    return rms(table(ids.to(table.weight.device)))


def _example_image() -> Image.Image:
    """A picture of gradients, the same everywhere: no photo, but no flat grey either."""
    line, disc = Image.linear_gradient("L"), Image.radial_gradient("L")
    return Image.merge("RGB", (line, disc, line.transpose(Image.Transpose.ROTATE_90)))


def _assemble(config: TinyAlignConfig, tower: Any, llm: Any) -> TinyAlignForConditionalGeneration:
    """The model around modules that are already loaded: nothing large is drawn or copied."""
    base = getattr(llm, llm.base_model_prefix)
    text: Any = type(config.text_config)
    expected: Any = AutoModel._model_mapping[text]
    if type(base) is not expected:
        raise ModelError(
            f"{type(llm).__name__} is built on {type(base).__name__}, but AutoModel gives "
            f"{expected.__name__} for its config; it could not be loaded again after saving. "
            "Choose a text-only language model."
        )
    with torch.device("meta"):
        model = TinyAlignForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = base
    model.lm_head = llm.get_output_embeddings()
    projector = build_connector(config)
    projector.reset_parameters()
    model.model.multi_modal_projector = projector
    if config.memory_k:
        memory = MemoryConnector(config)
        memory.reset_parameters()
        model.model.memory_connector = memory
    return model.eval()


@torch.no_grad()
def _check_head(model: TinyAlignForConditionalGeneration, llm: Any, tokenizer: Any) -> None:
    """Some LLMs change hidden states or logits on the way out; ours must give the same."""
    ids = tokenizer("A dog.", return_tensors="pt")["input_ids"].to(model.device)
    if not torch.equal(model(input_ids=ids).logits, llm(input_ids=ids).logits):
        raise ModelError(
            f"{type(llm).__name__} computes its logits in a way that TinyAlign's head does not "
            "follow. Choose another language model."
        )


def _generation_config(
    llm: Any, tokenizer: Any, chat_template: str, config: TinyAlignConfig
) -> GenerationConfig:
    """The LLM's own, which also stops at the template's turn end and never says a placeholder."""
    generation = copy.deepcopy(llm.generation_config) or GenerationConfig()
    stops = generation.eos_token_id
    ends = [*stops] if isinstance(stops, list) else [] if stops is None else [stops]
    for end in (end_token_id(tokenizer, chat_template), tokenizer.eos_token_id):
        if end is not None and end not in ends:
            ends.append(end)
    generation.eos_token_id = ends if len(ends) != 1 else ends[0]
    generation.pad_token_id = tokenizer.pad_token_id
    generation.suppress_tokens = [config.image_token_id, config.memory_token_id]
    if not ends:
        logger.warning("the tokenizer has no end-of-sequence token; answers run to their limit")
    return generation
