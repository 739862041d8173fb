"""TinyAlignConfig: one config for the baseline (k = 0), TinyAlign and its controls."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from tinyalign.errors import ConfigError
from tinyalign.model.backbones.feature_width import feature_width
from tinyalign.model.forms import FUSIONS, IMAGE_CONNECTORS
from tinyalign.model.perceiver_config import PerceiverNetworkConfig
from tinyalign.model.remote import AUTO_MAP, PackageIsTheCode, write_remote_module
from tinyalign.vocabulary import MemoryOrder


class TinyAlignConfig(PackageIsTheCode, PreTrainedConfig):
    """Config of a vision tower, an image connector, an LLM and, for `memory_k` > 0, a
    memory connector (the RAG connector of the paper).

    image_token_id, memory_token_id: ids of the placeholder tokens in the LLM's vocabulary.
    image_seq_length: tokens an image takes in the LLM's input (after the connector).
    vision_feature_layer, vision_feature_select: see `vision.tower_features`.
    connector, connector_args: form and arguments of the image connector (`model.forms`).
    memory_k: memories a query (k of the paper); 0 is the baseline.
    memory_fusion, memory_fusion_args: how k memories become tokens (`model.forms`).
    memory_latents_used: latents taken of each memory by sequence fusion, the first ones.
    memory_hidden_size: hidden width of the memory connector's MLP; None is the LLM's width.
    memory_linear_skip: add the linear map beside the MLP that can be started in closed form.
    memory_word_skip: add what the Perceiver's read-out says of each text latent, in the LLM's
        embeddings (`connectors.memory.WordSkip`).
    memory_order, memory_neighbours, memory_temperature: how memories are chosen among the nearest
        entries (`memory.search.ranking.Ranking`), as they were in training.
    memory_copy: how answers are copied from neighbours' texts (`model.copying`): "neighbours",
        "decay" and the gate's "weights"; None copies nothing.
    memory_source: "bank" reads `memory_values`; "soft_prompt" is the control that learns a table
        of k values instead and ignores what is retrieved.
    memory_optional: the model was trained with its memories dropped at random, so it can do without
        a bank: its placeholders stay, and every memory is absent.
    perceiver_config: sizes of the memory values (num_latents x d_latents) and of their encoder.
    vision_hash, perceiver_hash: what a bank has to agree with; None where not known yet.
    lm_head_bias: whether the LLM's output layer has a bias (Phi-2 has).
    token_rms: root mean square of the LLM's token embeddings, which the connectors start at.
    chat_template_name: the template the processor was given, for the record.
    """

    model_type = "tinyalign"
    attribute_map: ClassVar = {"image_token_index": "image_token_id"}
    sub_configs_defaults: ClassVar = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="llama"),
        "perceiver_config": SubConfigSpec(PerceiverNetworkConfig),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    perceiver_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    memory_token_id: int = 32001
    image_seq_length: int = 729
    vision_feature_layer: int | list[int] = -1
    vision_feature_select: Literal["patch", "full"] = "patch"
    connector: str = "mlp2x_gelu"
    connector_args: dict | None = None
    memory_k: int = 0
    memory_fusion: str = "width"
    memory_fusion_args: dict | None = None
    memory_latents_used: int = 32
    memory_hidden_size: int | None = None
    memory_linear_skip: bool = False
    memory_word_skip: bool = False
    memory_order: MemoryOrder = "similarity"
    memory_neighbours: int = 0
    memory_temperature: float = 10.0
    memory_copy: dict | None = None
    memory_source: Literal["bank", "soft_prompt"] = "bank"
    memory_optional: bool = False
    vision_hash: str | None = None
    perceiver_hash: str | None = None
    lm_head_bias: bool = False
    token_rms: float = 0.02
    chat_template_name: str | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.connector_args = dict(self.connector_args or {})
        self.memory_fusion_args = dict(self.memory_fusion_args or {})
        if getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True
        self._check_names()
        self._check_memory()

    def _check_names(self) -> None:
        IMAGE_CONNECTORS.check(self.connector)
        FUSIONS.check(self.memory_fusion)

    def _check_memory(self) -> None:
        if self.memory_k < 0:
            raise ConfigError(f"memory_k must be 0 (no memory) or more, found {self.memory_k}.")
        if self.memory_source == "soft_prompt" and self.memory_k == 0:
            raise ConfigError(
                'memory_source "soft_prompt" needs memory_k >= 1: the prompt is a table of '
                "memory_k learned values, run through the connector that memories would use."
            )
        num_latents = self.memory_shape[0]
        if not 0 < self.memory_latents_used <= num_latents:
            raise ConfigError(
                f"memory_latents_used must lie between 1 and {num_latents} (the latents of a "
                f"memory), found {self.memory_latents_used}."
            )

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As in the base class, and what loads it without `import tinyalign` (`model.remote`)."""
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        write_remote_module(save_directory)

    @property
    def memory_shape(self) -> tuple[int, int]:
        """(num_latents, d_latents) of one memory value: 32 x 96 in the paper."""
        perceiver: Any = self.perceiver_config
        return perceiver.num_latents, perceiver.d_latents

    @property
    def n_memory_tokens(self) -> int:
        """Tokens of H_R in the LLM's input: 0 without memory, 32 with width fusion."""
        return FUSIONS[self.memory_fusion].n_tokens(self) if self.memory_k else 0

    @property
    def n_tokens_without_bank(self) -> int:
        """Tokens of H_R that are there without a bank: a soft prompt's, or absent memories'."""
        stays = self.memory_source == "soft_prompt" or self.memory_optional
        return self.n_memory_tokens if stays else 0

    @property
    def vision_width(self) -> int:
        """Width D of the vision features that enter the connector."""
        vision: Any = self.vision_config
        return feature_width(vision, self.vision_feature_layer)

    @property
    def text_width(self) -> int:
        """Width of the LLM's token embeddings."""
        text: Any = self.text_config
        return text.hidden_size
