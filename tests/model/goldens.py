"""Runs a golden case through our decoder and compares every tensor the case holds, by name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM, ModelOutput, RouterOutput

LOCAL = Path(__file__).parent / "golden"
ATOL, RTOL = 1e-4, 1e-4
INPUTS = {"input_ids", "attention_mask", "position_ids", "prompt_ids", "full.input_ids", "chunked.cut"}

Tensors = dict[str, Tensor]


def load_goldens(folder: Path) -> Tensors:
    return load_file(folder / "goldens.safetensors")


@torch.inference_mode()
def run_case(model: BailingMoeV2ForCausalLM, goldens: Tensors) -> Tensors:
    """Our tensors, under the goldens' names."""
    return _run_decode(model, goldens) if "prompt_ids" in goldens else _run_plain(model, goldens)


def find_differences(ours: Tensors, goldens: Tensors) -> list[str]:
    """A line for each golden tensor that is missing from ours or differs by more than the tolerance."""
    differences = []
    is_real = goldens.get("attention_mask", torch.ones(1)).bool()
    for name in sorted(set(goldens) - INPUTS):
        if name not in ours:
            differences.append(f"{name}: not computed")
            continue
        mine, golden = ours[name], goldens[name]
        if name.endswith("topk_weights"):
            mine, golden = _by_expert(ours, name), _by_expert(goldens, name)
        if name.endswith("topk_ids"):
            mine, golden = mine.sort(-1).values, golden.sort(-1).values
        if mine.shape != golden.shape:
            differences.append(f"{name}: shape {tuple(mine.shape)} instead of {tuple(golden.shape)}")
            continue
        if golden.shape[:2] == is_real.shape and not is_real.all():
            mine, golden = mine[is_real], golden[is_real]  # what padding computes is meaningless
        exact = not golden.is_floating_point()
        if not torch.allclose(mine, golden, atol=0 if exact else ATOL, rtol=0 if exact else RTOL):
            differences.append(f"{name}: differs by {(mine - golden).abs().max():.2e}")
    return differences


def _by_expert(tensors: Tensors, name: str) -> Tensor:
    order = tensors[name.replace("topk_weights", "topk_ids")].argsort(-1)
    return tensors[name].gather(-1, order)


def _run_plain(model: BailingMoeV2ForCausalLM, goldens: Tensors) -> Tensors:
    ids, mask, positions = goldens["input_ids"], goldens["attention_mask"], goldens["position_ids"]
    ours: Tensors = {}
    hooks = _record_blocks(model, ours)
    cache = KVCache(model.config, len(ids))
    output = model(ids, mask, positions, cache, output_router=True, output_hidden=True, output_mtp=True)
    for hook in hooks:
        hook.remove()
    ours |= _name_output(output, len(ids))
    ours |= _name_rope(model, positions)
    if "decode.input_ids" in goldens:
        steps = goldens["decode.input_ids"]
        ours["decode.logits"] = _decode(model, cache, steps, mask, positions)
        ours["decode.input_ids"] = torch.cat((output.logits[:, -1:], ours["decode.logits"]), 1).argmax(-1)[:, :-1]
    return ours


def _decode(model: BailingMoeV2ForCausalLM, cache: KVCache, steps: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    logits = []
    for number in range(steps.shape[1]):
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        step = steps[:, number : number + 1]
        logits.append(model(step, mask, positions[:, -1:] + number + 1, cache).logits)
    return torch.cat(logits, 1)


def _run_decode(model: BailingMoeV2ForCausalLM, goldens: Tensors) -> Tensors:
    prompt, greedy = goldens["prompt_ids"], goldens["greedy_ids"]
    num_rows = len(prompt)
    # 1. prefill, then one step for each greedy token
    cache = KVCache(model.config, num_rows, capacity=1)
    output = model(prompt, cache=cache, output_router=True, output_hidden=True)
    ours = {f"prefill.{name}": tensor for name, tensor in _name_output(output, num_rows).items()}
    ours |= _name_cache("prefill", model, cache)
    token, tokens, steps = output.logits[:, -1:].argmax(-1), [], []
    for _ in range(greedy.shape[1] - 1):
        tokens.append(token)
        steps.append(model(token, cache=cache, output_router=True))
        token = steps[-1].logits.argmax(-1)
    ours["greedy_ids"] = torch.cat((*tokens, token), 1)
    named = [_name_output(step, num_rows) for step in steps]
    ours |= {f"decode.{name}": torch.cat([step[name] for step in named], 1) for name in named[0]}
    ours |= _name_cache("final", model, cache)
    # 2. the same in one pass, and the prompt in two chunks
    ours["full.logits"] = model(torch.cat((prompt, greedy[:, :-1]), 1)).logits
    cut = int(goldens["chunked.cut"])
    cache = KVCache(model.config, num_rows)
    model(prompt[:, :cut], cache=cache)
    ours["chunked.logits"] = model(prompt[:, cut:], cache=cache).logits
    return ours


def _name_output(output: ModelOutput, num_rows: int) -> Tensors:
    named = {"logits": output.logits, "hidden.final_norm": output.last_hidden}
    for number, hidden in enumerate(output.hidden):
        named["hidden.embed" if number == 0 else f"hidden.layer.{number - 1}"] = hidden
    for layer, router in (output.router or {}).items():
        named |= _name_router(f"router.{layer}", router, num_rows)
    if output.mtp_logits is not None and output.mtp_hidden is not None and output.mtp_router is not None:
        named |= {"mtp_logits.0": output.mtp_logits, "mtp_hidden.0": output.mtp_hidden}
        named |= _name_router("mtp_router.0", output.mtp_router, num_rows)
    return named


def _name_router(prefix: str, router: RouterOutput, num_rows: int) -> Tensors:
    parts = {"logits": router.logits, "topk_ids": router.topk_ids, "topk_weights": router.topk_weights}
    return {f"{prefix}.{name}": tensor.view(num_rows, -1, tensor.shape[-1]) for name, tensor in parts.items()}


def _name_cache(prefix: str, model: BailingMoeV2ForCausalLM, cache: KVCache) -> Tensors:
    named = {}
    for layer in range(model.config.num_hidden_layers):
        keys, values = cache.get(layer)
        named |= {f"{prefix}.cache_k.{layer}": keys.clone(), f"{prefix}.cache_v.{layer}": values.clone()}
    return named


def _name_rope(model: BailingMoeV2ForCausalLM, positions: Tensor) -> Tensors:
    cos, sin = model.rotary(positions[:1])
    return {
        "rope.inv_freq": model.rotary.inv_freq,
        "rope.attention_scaling": torch.tensor([model.rotary.attention_factor]),
        "rope.cos": cos[0, 0].repeat(1, 2),
        "rope.sin": sin[0, 0].repeat(1, 2),
    }


def _record_blocks(model: BailingMoeV2ForCausalLM, into: Tensors) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep what each attention and MLP block adds to the residual stream."""

    def record(name: str):
        def hook(module, args, output) -> None:
            into[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = []
    for index, layer in enumerate(model.model.layers):
        is_mtp = index >= model.config.num_hidden_layers
        prefix, number = ("mtp_", index - model.config.num_hidden_layers) if is_mtp else ("", index)
        hooks.append(layer.attention.register_forward_hook(record(f"{prefix}attn_out.{number}")))
        hooks.append(layer.mlp.register_forward_hook(record(f"{prefix}mlp_out.{number}")))
    return hooks
