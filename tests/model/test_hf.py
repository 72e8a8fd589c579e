"""The transformers route: Auto classes, no remote code, the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import model.hf  # noqa: F401 - registers
from model.checkpoint import load_model
from model.config import CheckpointError
from tests.model.goldens import LOCAL, find_differences, load_goldens


def load(folder: Path, **options: object):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **({"dtype": torch.float32} | options))


@pytest.mark.parametrize("case", ["a_tiny", "b_yarn", "c_mtp", "d_bias_sharded", "e_leftpad"])
@pytest.mark.parametrize("trust", [False, None])
def test_auto_model_gives_the_golden_logits(case: str, trust: bool | None, shared: Path) -> None:
    folder = shared / "golden" / case  # its auto_map names Python files that are not there
    goldens = load_goldens(folder)
    inputs = {name: goldens[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.inference_mode():
        logits = load(folder, trust_remote_code=trust)(**inputs).logits
    kept = {name: goldens[name] for name in ("logits", "attention_mask")}
    assert find_differences({"logits": logits}, kept) == []


def test_both_routes_give_the_same_logits() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        theirs = load(LOCAL / "c_mtp")(ids, output_hidden_states=True)
        ours = load_model(LOCAL / "c_mtp", torch.float32)(ids)
    assert torch.equal(theirs.logits, ours.logits)
    assert len(theirs.hidden_states) == 5
    assert torch.equal(theirs.hidden_states[-1], ours.last_hidden)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_gives_the_golden_tokens(use_cache: bool) -> None:
    goldens = load_goldens(LOCAL / "f_decode")
    prompt, greedy = goldens["prompt_ids"], goldens["greedy_ids"]
    ids = load(LOCAL / "f_decode").generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=greedy.shape[1],
        do_sample=False,
        eos_token_id=None,
        use_cache=use_cache,
    )
    assert torch.equal(ids[:, prompt.shape[1] :], greedy)


@pytest.mark.parametrize("case", ["q_ct_int4", "q_gptq_int4", "q_fp8_block", "q_nf4"])
def test_quantized_folder_gives_the_golden_logits_and_generates(case: str, shared: Path) -> None:
    folder = shared / "golden" / case
    goldens = load_goldens(folder)
    loaded = load(folder)
    with torch.inference_mode():
        logits = loaded(goldens["input_ids"]).logits
    assert find_differences({"logits": logits}, {"logits": goldens["logits"]}) == []
    ids = loaded.generate(goldens["input_ids"][:, :4], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert ids.shape[1] == 7


def test_generate_continues_left_padded_rows(shared: Path) -> None:
    folder = shared / "golden" / "e_leftpad"
    goldens = load_goldens(folder)
    steps = goldens["decode.input_ids"]
    ids = load(folder).generate(
        goldens["input_ids"],
        attention_mask=goldens["attention_mask"],
        max_new_tokens=steps.shape[1],
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(ids[:, -steps.shape[1] :], steps)


def test_bf16_keeps_the_expert_bias_exact() -> None:
    loaded = load(LOCAL / "c_mtp", dtype="auto")
    stored = load_file(LOCAL / "c_mtp" / "model.safetensors")["model.layers.1.mlp.gate.expert_bias"]
    assert loaded.dtype is torch.bfloat16
    assert torch.equal(loaded.model.layers[1].mlp.gate.expert_bias, stored)


def test_what_transformers_saves_we_load(tmp_path: Path) -> None:
    load(LOCAL / "c_mtp").save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(load_file(LOCAL / "c_mtp" / "model.safetensors"))
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        logits = load_model(tmp_path)(ids).logits
        assert torch.equal(logits, load_model(LOCAL / "c_mtp", torch.float32)(ids).logits)
        assert torch.equal(logits, load(tmp_path)(ids).logits)


def test_loss_of_given_labels_trains() -> None:
    loaded = load(LOCAL / "c_mtp")
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    loaded(ids, labels=ids).loss.backward()
    assert loaded.model.layers[2].mlp.experts.down_proj.grad.any()


def test_new_model_from_a_config_is_random_and_finite() -> None:
    config = transformers.AutoConfig.from_pretrained(LOCAL / "c_mtp")
    logits = transformers.AutoModelForCausalLM.from_config(config)(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(1)}), r"model\.extra is unexpected"),
    ],
)
def test_wrong_tensors_are_an_error_not_a_warning(change: Callable, says: str, tmp_path: Path) -> None:
    shutil.copytree(LOCAL / "c_mtp", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path)
