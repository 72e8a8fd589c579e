"""Every published precision: its dequantized weights and logits, against the reference's and against definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_model
from model.modeling import BailingMoeV2ForCausalLM
from tests.model.goldens import find_differences, load_goldens


def weight_of(model: BailingMoeV2ForCausalLM, name: str) -> Tensor:
    """The dequantized weight [O, I] of a checkpoint's matrix `...weight`, in float32."""
    module = name.removesuffix(".weight")
    if ".experts." not in module:
        return model.get_submodule(module).dequantize()  # type: ignore[operator]
    stack, expert, projection = module.rsplit(".", 2)
    return model.get_submodule(f"{stack}.{projection}").dequantize(int(expert))  # type: ignore[operator]


@pytest.mark.parametrize("case", ["q_ct_int4", "q_fp8_block", "q_gptq_int4", "q_nf4"])
def test_golden_weights_are_exact_and_logits_near(case: str, shared: Path) -> None:
    folder = shared / "golden" / case
    model, goldens = load_model(folder, torch.float32), load_goldens(folder)
    named = {name.removeprefix("dequant."): tensor for name, tensor in goldens.items() if name.startswith("dequant.")}
    assert len(named) == 4
    for name, golden in named.items():
        assert torch.equal(weight_of(model, name), golden), name
    with torch.inference_mode():
        logits = model(goldens["input_ids"]).logits
    assert find_differences({"logits": logits}, {"logits": goldens["logits"]}) == []
