"""Registers BailingMoeV2 with transformers: after `import model.hf`, `AutoModelForCausalLM.from_pretrained(folder)`
gives our decoder, without remote code, `generate()` included.

A thin shell: the mathematics are model.modeling's. Imports transformers, which takes seconds; the app does not need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.modeling_outputs import CausalLMOutputWithPast

from model import modeling
from model.checkpoint import load_model
from model.config import ARCHITECTURE, CheckpointError, ModelConfig


class BailingMoeV2Config(PreTrainedConfig):
    """config.json as transformers keeps it; `ModelConfig.from_hf` reads and checks its fields."""

    model_type = "bailing_moe_v2"
    keys_to_ignore_at_inference = ("past_key_values",)
    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: int = 32768
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False


class BailingMoeConfig(BailingMoeV2Config):
    """The same under the model_type of Ling-flash-2.0 and AntAngelMed."""

    model_type = "bailing_moe"


class BailingMoeV2ForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder in transformers' clothes: its weights' names, its caches, its outputs."""

    config_class = BailingMoeV2Config
    base_model_prefix = "model"
    _no_split_modules = ["DecoderLayer", "MTPLayer"]  # noqa: RUF012 - as transformers declares it
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["expert_bias"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: BailingMoeV2Config) -> None:
        super().__init__(config)
        decoder = modeling.BailingMoeV2ForCausalLM(_read_config(config))
        self._adopt(decoder)
        self.post_init()

    def _adopt(self, decoder: modeling.BailingMoeV2ForCausalLM) -> None:
        self.model = decoder.model
        self.lm_head = decoder.lm_head
        self._decoder = (decoder,)  # in a tuple, so that its modules are not registered a second time

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but missing or left-over tensors are an error here, not a warning; and a folder of
        quantized weights is read by model.checkpoint: transformers' quantizers know nothing of stacked experts."""
        config = kwargs.get("config") or cls.config_class.from_pretrained(args[0])
        if getattr(config, "quantization_config", None) is not None:
            return cls._from_quantized(Path(args[0]), config, kwargs.get("dtype"))
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        for kind in ("missing", "unexpected", "mismatched"):
            if names := sorted(map(str, info[f"{kind}_keys"])):
                raise CheckpointError(f"Tensor {names[0]} is {kind} in the checkpoint; copy it again.")
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_quantized(cls, folder: Path, config: BailingMoeV2Config, dtype: Any) -> BailingMoeV2ForCausalLM:
        decoder = load_model(folder, dtype if isinstance(dtype, torch.dtype) else None)
        with torch.device("meta"):
            model = cls(config)
        model._adopt(decoder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass, as transformers calls it. attention_mask [B,cached+S]; other keyword arguments are not used."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        output = self._decoder[0](
            input_ids,
            attention_mask,
            position_ids,
            None if past_key_values is None else _CacheAdapter(past_key_values),
            output_hidden=output_hidden_states,
            logits_to_keep=logits_to_keep,
        )
        loss = None if labels is None else self.loss_function(output.logits, labels, self.config.vocab_size)
        hidden = (*output.hidden[:-1], output.last_hidden) if output_hidden_states else None
        return CausalLMOutputWithPast(
            loss=loss, logits=output.logits, past_key_values=past_key_values, hidden_states=hidden
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New weights as the decoder's own: matrices from a normal distribution, norms 1, expert_bias 0."""
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=self._decoder[0].config.initializer_range)
            else:
                nn.init.ones_(parameter)
        for buffer in module.buffers(recurse=False):
            nn.init.zeros_(buffer)


class _CacheAdapter:
    """Any of transformers' caches behind the decoder's Cache protocol."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    @property
    def num_cached_tokens(self) -> int:
        return self._cache.get_seq_length()

    def append(self, layer: int, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        return self._cache.update(k_BGSC, v_BGSC, layer)

    def advance(self, num_tokens: int) -> None:
        """Nothing to do: transformers' caches count in `update`."""


def _read_config(config: BailingMoeV2Config) -> ModelConfig:
    """Our view of transformers' config; one made in code, not read from a folder, names no architecture yet."""
    data = config.to_dict()
    return ModelConfig.from_hf(data | {"architectures": data.get("architectures") or [ARCHITECTURE]})


def register() -> None:
    """Makes both model types known to the Auto classes and tells transformers how experts are stacked."""
    stack_experts: list[Any] = [
        WeightConverter(
            source_patterns=["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            target_patterns="mlp.experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns="mlp.experts.*.down_proj.weight",
            target_patterns="mlp.experts.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ]
    for config in (BailingMoeV2Config, BailingMoeConfig):
        # A class of the same name for each config: transformers asks for a match, and writes the name when it saves.
        model = type(ARCHITECTURE, (BailingMoeV2ForCausalLM,), {"config_class": config})
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        register_checkpoint_conversion_mapping(config.model_type, stack_experts, overwrite=True)


register()
