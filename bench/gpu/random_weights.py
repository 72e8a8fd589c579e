"""A model of any shape with random INT4 weights, drawn on the card itself: 103 B of them in seconds, no host copy."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.gpu.layout import SCALE_RUN, SLAB_ROWS, Int4Weight
from model.kernels.gpu.weights import DecoderWeights, LayerWeights, MlpWeights, MoeWeights, MtpWeights, make_rotary

GROUP = 128
NIBBLE_STD = 4.3  # of whole numbers from -7 to 7


class RandomWeights:
    """Draws from one seed; values have the config's initializer_range. Nibbles stand for -7 to 7: with a mean other
    than zero all tokens would choose the same experts."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        self._config, self._device = config, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw_model(self, has_mtp: bool = False) -> DecoderWeights:
        config = self._config
        layers = tuple(self._draw_layer(index) for index in range(config.num_hidden_layers))
        cos, sin = make_rotary(config, self._device)
        embedding = self.draw_plain(config.vocab_size, config.hidden_size)
        head = self.draw_int4(config.vocab_size, config.hidden_size)
        mtp = self._draw_mtp() if has_mtp else None
        return DecoderWeights(embedding, layers, self._ones(config.hidden_size), head, cos, sin, mtp)

    def _draw_mtp(self) -> MtpWeights:
        config, width = self._config, self._config.hidden_size
        norms = [self._ones(width) for _ in range(3)]
        return MtpWeights(
            self._draw_layer(config.num_hidden_layers), *norms[:2], self.draw_int4(width, 2 * width), norms[2]
        )

    def draw_moe(self) -> MoeWeights:
        config = self._config
        stack, width = config.num_experts + config.num_shared_experts, config.moe_intermediate_size
        return MoeWeights(
            self.draw_plain(config.num_experts, config.hidden_size),
            torch.zeros(config.num_experts, device=self._device),
            self.draw_int4(stack, 2 * width, config.hidden_size),
            self.draw_int4(stack, config.hidden_size, width),
            config.num_shared_experts,
            None,
        )

    def draw_int4(self, *shape: int) -> Int4Weight:
        *lead, rows, columns = shape
        group = GROUP if columns % GROUP == 0 else GROUP // 2
        slabs, groups, words = -(-rows // SLAB_ROWS), -(-columns // group), SLAB_ROWS * group // 4
        held = torch.empty(*lead, slabs, groups, words, dtype=torch.int16, device=self._device)
        for part in held if lead else [held]:  # an expert at a time: scratch stays small
            low, high = (self._draw_nibbles((slabs, groups, 2 * words)) for _ in range(2))
            part.copy_((low | (high << 4)).view(torch.int16))
        runs = -(-groups // SCALE_RUN) * SLAB_ROWS * SCALE_RUN
        scales = torch.rand(*lead, slabs, runs, device=self._device, generator=self._generator)
        scale = self._config.initializer_range / NIBBLE_STD
        return Int4Weight(held, ((scales + 0.5) * scale).to(torch.bfloat16), rows, columns, group)

    def draw_plain(self, *shape: int) -> Tensor:
        drawn = torch.empty(shape, dtype=torch.bfloat16, device=self._device)
        return drawn.normal_(std=self._config.initializer_range, generator=self._generator)

    def _draw_layer(self, index: int) -> LayerWeights:
        config = self._config
        width, dims = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        return LayerWeights(
            self._ones(width),
            self.draw_int4((heads + 2 * kv_heads) * dims, width),
            self._ones(dims),
            self._ones(dims),
            self.draw_int4(width, heads * dims),
            self._ones(width),
            self.draw_moe() if config.is_moe_layer(index) else self._draw_dense(),
        )

    def _draw_dense(self) -> MlpWeights:
        config = self._config
        gate_up = self.draw_int4(1, 2 * config.intermediate_size, config.hidden_size)
        return MlpWeights(gate_up, self.draw_int4(1, config.hidden_size, config.intermediate_size))

    def _draw_nibbles(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(1, 16, shape, dtype=torch.uint8, device=self._device, generator=self._generator)

    def _ones(self, size: int) -> Tensor:
        return torch.ones(size, dtype=torch.bfloat16, device=self._device)
