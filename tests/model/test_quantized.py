"""Every published precision: its dequantized weights and logits, against the reference's and against definitions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import WEIGHTS, load_model, named_tensors, save_checkpoint
from model.config import CheckpointError
from model.modeling import BailingMoeV2ForCausalLM, Experts
from model.quantized import Int4Matrix, QuantizedExperts, count_parameters, name_quantization
from tests.model.conftest import make_model
from tests.model.goldens import LOCAL, find_differences, load_goldens
from tests.model.quantized_checkpoints import (
    Encode,
    Tensors,
    encode_fp8,
    encode_gptq,
    encode_int4,
    encode_nf4,
    is_expert,
    is_matrix,
    write_quantized,
)

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
EXPERT = "model.layers.2.mlp.experts.3.up_proj"
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def groups_of(size: int) -> dict[str, Any]:
    return CT | {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": size}}}}


def gptq(**fields: object) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32} | fields


def weight_of(model: BailingMoeV2ForCausalLM, name: str) -> Tensor:
    """The weight [O, I] of a checkpoint's matrix `...weight`, in float32, however the model holds it."""
    module = name.removesuffix(".weight")
    if not is_expert(name):
        held = model.get_submodule(module)
        return held.weight.float() if isinstance(held, torch.nn.Linear) else held.dequantize()  # type: ignore[operator]
    stack, expert, projection = module.rsplit(".", 2)
    return model.get_submodule(f"{stack}.{projection}").dequantize(int(expert))  # type: ignore[operator]


def logits_of(model: BailingMoeV2ForCausalLM) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def logits_meant(meant: Tensors) -> Tensor:
    """What a model of plain float32 weights says."""
    model = make_model()
    for name, target in named_tensors(model):
        target.copy_(meant[name])
    return logits_of(model)


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


VARIANTS: dict[str, tuple[Encode, dict[str, Any], str]] = {
    "int4 in groups": (encode_int4(16), groups_of(16), "int4 (group 16)"),
    "int4 by row": (encode_int4(0), CT, "int4 (per row)"),
    "int4 with a short last group": (encode_int4(40), groups_of(40), "int4 (group 40)"),
    "int4 asymmetric": (encode_int4(16, asymmetric=True), groups_of(16), "int4 (group 16)"),
    "int4 asymmetric by row": (encode_int4(0, asymmetric=True), CT, "int4 (per row)"),
    "int4 in activation order": (encode_int4(16, act_order=True), groups_of(16), "int4 (group 16)"),
    "gptq": (encode_gptq(32), gptq(), "int4 (group 32)"),
    "gptq in activation order": (encode_gptq(32, act_order=True), gptq(desc_act=True), "int4 (group 32)"),
    "gptq asymmetric": (encode_gptq(32, symmetric=False), gptq(sym=False), "int4 (group 32)"),
    "gptq v2": (encode_gptq(32, version=2), gptq(checkpoint_format="gptq_v2"), "int4 (group 32)"),
    "gptq v2 asymmetric": (
        encode_gptq(32, version=2, symmetric=False, act_order=True),
        gptq(checkpoint_format="gptq_v2", sym=False),
        "int4 (group 32)",
    ),
    "gptq v2 that calls itself v1": (encode_gptq(32, version=2), gptq(checkpoint_format="gptq"), "int4 (group 32)"),
    "fp8": (encode_fp8((32, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}, "fp8"),
    "fp8 with ragged blocks": (encode_fp8((24, 40)), {"quant_method": "fp8", "weight_block_size": [24, 40]}, "fp8"),
    "fp8 in blocks of 128": (encode_fp8((128, 128)), {"quant_method": "fp8"}, "fp8"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_what_the_format_means(variant: str, tmp_path: Path) -> None:
    encode, quantization, precision = VARIANTS[variant]
    meant = write_quantized(tmp_path, encode, quantization)
    model = load_model(tmp_path)
    assert name_quantization(model) == precision
    assert model.dtype is torch.float32
    for name in filter(is_matrix, meant):
        assert torch.equal(weight_of(model, name), meant[name]), name
    torch.testing.assert_close(logits_of(model), logits_meant(meant), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "chosen",
    [
        is_expert,
        lambda name: is_matrix(name) and not is_expert(name),
        lambda name: name.endswith("gate_proj.weight"),  # of each expert one projection packed, two plain
        lambda name: is_matrix(name) or name == "lm_head.weight",
    ],
)
def test_each_module_is_taken_as_it_is_stored(chosen: Callable[[str], bool], tmp_path: Path) -> None:
    meant = write_quantized(tmp_path, encode_int4(16), groups_of(16), chosen)
    model = load_model(tmp_path)
    torch.testing.assert_close(logits_of(model), logits_meant(meant), atol=1e-4, rtol=1e-4)
    experts = model.get_submodule("model.layers.1.mlp.experts")
    assert isinstance(experts, QuantizedExperts if chosen("x.mlp.experts.0.gate_proj.weight") else Experts)
    assert isinstance(model.lm_head, Int4Matrix) == chosen("lm_head.weight")


@pytest.mark.parametrize("double", [False, True])
def test_nf4_is_within_half_a_step_of_what_was_quantized(double: bool, tmp_path: Path) -> None:
    meant = write_quantized(tmp_path, encode_nf4(double), {"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert_near(load_model(tmp_path), meant, "nf4", slack=0.01 if double else 1e-6)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_plain_weights_are_quantized_on_the_fly(precision: str) -> None:
    model = load_model(LOCAL / "c_mtp", precision)
    meant = {name: tensor.float() for name, tensor in load_file(LOCAL / "c_mtp" / WEIGHTS).items()}
    assert_near(model, meant, precision)
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert logits_of(model).isfinite().all()


def assert_near(model: BailingMoeV2ForCausalLM, meant: Tensors, precision: str, slack: float = 1e-6) -> None:
    """Each weight is at most half the widest step from its original, as a share of its block's largest."""
    assert name_quantization(model) == precision
    names = list(filter(is_matrix, meant))
    assert names
    for name in names:
        got, was = weight_of(model, name), meant[name]
        block = 64 if precision == "nf4" else was.shape[1]
        half_step = 0.152 if precision == "nf4" else 0.5 / 127  # NF4's widest gap is 1 - 0.696
        error = (got - was).flatten().split(block)
        for wrong, values in zip(error, was.flatten().split(block), strict=True):
            assert wrong.abs().max() <= (half_step + slack) * values.abs().max() + 1e-6, name
        assert not torch.equal(got, was), name


def test_block_of_zeros_stays_zero(tmp_path: Path) -> None:
    shutil.copytree(LOCAL / "c_mtp", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors[f"{EXPERT}.weight"].zero_()
    save_file(tensors, tmp_path / WEIGHTS)
    for precision in ("nf4", "int8"):
        assert not weight_of(load_model(tmp_path, precision), f"{EXPERT}.weight").any()


def test_casting_the_model_spares_packed_weights(tmp_path: Path) -> None:
    for encode, quantization, _ in VARIANTS.values():
        meant = write_quantized(tmp_path, encode, quantization)
        model = load_model(tmp_path).to(torch.bfloat16).float()
        assert torch.equal(weight_of(model, f"{EXPERT}.weight"), meant[f"{EXPERT}.weight"])


def test_computing_in_bf16_rounds_each_weight_once(tmp_path: Path) -> None:
    meant = write_quantized(tmp_path, encode_int4(16), groups_of(16))
    model = load_model(tmp_path, "bf16")
    matrix = model.get_submodule("model.layers.1.attention.dense")
    assert isinstance(matrix, Int4Matrix)
    expected = meant["model.layers.1.attention.dense.weight"].bfloat16()
    assert torch.equal(matrix.dequantize(dtype=torch.bfloat16), expected)
    assert model.dtype is torch.bfloat16
    assert model.model.layers[1].mlp.gate.expert_bias.dtype is torch.float32
    assert logits_of(model).isfinite().all()


def test_parameters_are_counted_as_weights_not_as_words(tmp_path: Path) -> None:
    plain = count_parameters(make_model())
    for encode, quantization, _ in VARIANTS.values():
        write_quantized(tmp_path, encode, quantization)
        assert count_parameters(load_model(tmp_path)) == plain


def test_quantized_model_is_not_saved_as_if_it_were_plain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantized model cannot be saved"):
        save_checkpoint(load_model(LOCAL / "c_mtp", "int8"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_gptq_config_of_its_own_is_found(tmp_path: Path) -> None:
    meant = write_quantized(tmp_path, encode_gptq(32, version=2, symmetric=False), {})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = {"bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(own))
    assert torch.equal(weight_of(load_model(tmp_path), f"{EXPERT}.weight"), meant[f"{EXPERT}.weight"])


# --- bad input --------------------------------------------------------------------------------------------------


def spoil(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].view(-1)[-1].fill_(value)


def put(name: str, tensor: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def make_plain(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith(f"{EXPERT}.")]:
        tensors.pop(name)
    tensors[f"{EXPERT}.weight"] = torch.ones(32, 64)


INT4 = (encode_int4(16, act_order=True), groups_of(16))
GPTQ = (encode_gptq(32), gptq())
FP8 = (encode_fp8((32, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]})
NF4 = (encode_nf4, {"quant_method": "bitsandbytes"})
STATE = f"{EXPERT}.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("form", "change", "says"),
    [
        (INT4, spoil(f"{EXPERT}.weight_scale", float("nan")), rf"{EXPERT}.weight_scale holds a scale that is NaN"),
        (INT4, spoil(f"{EXPERT}.weight_scale", float("inf")), rf"{EXPERT}.weight_scale holds .* infinite"),
        (INT4, spoil(f"{EXPERT}.weight_scale", 0), rf"{EXPERT}.weight_scale holds .* zero"),
        (INT4, spoil(f"{EXPERT}.weight_g_idx", 4), rf"{EXPERT}.weight_g_idx points outside the 4 groups"),
        (INT4, spoil(f"{EXPERT}.weight_shape", 65), rf"{EXPERT}.weight_shape says \(32, 65\); .* \(32, 64\)"),
        (INT4, put(f"{EXPERT}.weight_packed", torch.zeros(32, 7).int()), rf"{EXPERT}.weight_packed has .* \(32, 8\)"),
        (INT4, put(f"{EXPERT}.weight_packed", torch.zeros(32, 8)), rf"{EXPERT}.weight_packed is stored as F32"),
        (INT4, put(f"{EXPERT}.weight_scale", torch.ones(32, 2)), rf"{EXPERT}.weight_scale has shape \(32, 2\)"),
        (INT4, drop(f"{EXPERT}.weight_packed"), rf"{EXPERT}.weight_packed is missing"),
        (INT4, drop(f"{EXPERT}.weight_scale"), rf"{EXPERT}.weight_scale is missing"),
        (INT4, drop(f"{EXPERT}.weight_g_idx"), rf"{EXPERT}.weight_g_idx is missing"),
        (INT4, put(f"{EXPERT}.weight_zero_point", torch.zeros(4, 4).int()), r"weight_zero_point has no place"),
        (INT4, make_plain, rf"{EXPERT}.weight is stored in another precision than other experts"),
        (GPTQ, spoil(f"{EXPERT}.scales", float("nan")), rf"{EXPERT}.scales holds a scale that is NaN"),
        (GPTQ, spoil(f"{EXPERT}.g_idx", 2), rf"{EXPERT}.g_idx points outside the 2 groups"),
        (GPTQ, put(f"{EXPERT}.qweight", torch.zeros(64, 4).int()), rf"{EXPERT}.qweight has shape .* \(8, 32\)"),
        (GPTQ, drop(f"{EXPERT}.qzeros"), rf"{EXPERT}.qzeros is missing"),
        (FP8, spoil(f"{EXPERT}.weight_scale_inv", float("nan")), rf"{EXPERT}.weight_scale_inv holds a scale"),
        (FP8, put(f"{EXPERT}.weight_scale_inv", torch.ones(1, 3)), rf"{EXPERT}.weight_scale_inv has .* \(1, 2\)"),
        (FP8, drop(f"{EXPERT}.weight_scale_inv"), rf"{EXPERT}.weight_scale_inv is missing"),
        (NF4, spoil(f"{EXPERT}.weight.nested_absmax", float("nan")), rf"{EXPERT}.weight.absmax gives a scale"),
        (NF4, spoil(STATE, 0), rf"{STATE} is damaged"),
        (NF4, drop(f"{EXPERT}.weight.absmax"), rf"{EXPERT}.weight.absmax is missing"),
        (NF4, drop(STATE), rf"{STATE} is missing"),
        (NF4, put(f"{EXPERT}.weight", torch.zeros(1000, 1).byte()), rf"{EXPERT}.weight has shape .* \(1024, 1\)"),
    ],
)
def test_wrong_tensor_is_named(form: tuple, change: Callable[[Tensors], object], says: str, tmp_path: Path) -> None:
    encode, quantization = form
    write_quantized(tmp_path, encode(True) if encode is encode_nf4 else encode, quantization)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=says):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "awq"}, "quantized by 'awq' are not supported"),
        ([1], r"quantized by \[1\] are not supported"),
        (CT | {"config_groups": {"a": {"weights": {"num_bits": 8}}}}, "compressed-tensors weights of 8 bits"),
        (gptq(bits=8), "GPTQ weights of 8 bits are not supported"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size is"),
        (groups_of(24), "has 4 groups, which do not fit 33 columns"),
    ],
)
def test_config_that_names_another_method_is_refused(quantization: dict, says: str, tmp_path: Path) -> None:
    write_quantized(tmp_path, encode_int4(16), quantization)
    if "fit" in says:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 33}))
    with pytest.raises(CheckpointError, match=says):
        load_model(tmp_path)


def test_precision_must_be_one_the_folder_can_give(tmp_path: Path) -> None:
    write_quantized(tmp_path, encode_int4(16), groups_of(16))
    assert name_quantization(load_model(tmp_path, "int4")) == "int4 (group 16)"
    with pytest.raises(CheckpointError, match=r"is stored as int4 \(group 16\), not as nf4"):
        load_model(tmp_path, "nf4")
    with pytest.raises(ValueError, match="Unknown precision 'int3'"):
        load_model(tmp_path, "int3")
