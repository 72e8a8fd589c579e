"""An EAGLE-3 head as it is published: read strictly, computed as the paper says, and without effect on the text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from contracts import Message, Role, SamplingParams, TextChunk
from model.checkpoint import weights_sha256
from model.config import CheckpointError
from model.cpu_backend import CpuBackend
from model.eagle3 import Eagle3Drafter, Eagle3Head, load_head
from model.engine import Engine
from model.generator import LocalGenerator
from model.kernels.build import load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, Threads
from model.modeling import BailingMoeV2ForCausalLM, DecoderLayer
from tests.model.conftest import make_model
from tests.model.speculation import (
    GREEDY,
    SAMPLED,
    Watched,
    check_a_crowd_that_cancels,
    check_reuse_changes_no_draft,
    list_variants,
    tokens_of,
)

VARIANTS = list_variants()
NUM_DRAFT_IDS = 300


def make_target(dtype: torch.dtype = torch.float32) -> BailingMoeV2ForCausalLM:
    """A random model that mostly says a fixed token after each: NEXT[i] after i."""
    model = make_model()
    with torch.no_grad():
        for layer in model.model.layers:
            assert isinstance(layer, DecoderLayer)
            layer.attention.dense.weight *= 0.01
            for name, weight in layer.mlp.named_parameters():
                if "down_proj" in name:
                    weight *= 0.01
        model.lm_head.weight[NEXT] = model.model.word_embeddings.weight
    return model.to(dtype)


NEXT = torch.randperm(400, generator=torch.Generator().manual_seed(8))
TARGET = make_target()


def make_tensors(target: BailingMoeV2ForCausalLM) -> dict[str, Tensor]:
    """A head of random weights but for what it foretells: from the state at i, the token two after i, if it has it."""
    random = torch.Generator().manual_seed(9)
    size, width, vocab_size = 64, 80, 400
    shapes = {
        "midlayer.self_attn.q_proj.weight": (6 * 16, 2 * size),
        "midlayer.self_attn.k_proj.weight": (2 * 16, 2 * size),
        "midlayer.self_attn.v_proj.weight": (2 * 16, 2 * size),
        "midlayer.self_attn.o_proj.weight": (size, 6 * 16),
        "midlayer.mlp.gate_proj.weight": (width, size),
        "midlayer.mlp.up_proj.weight": (width, size),
        "midlayer.mlp.down_proj.weight": (size, width),
        "fc.weight": (size, 3 * size),
    }
    tensors = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes.items()}
    for name in ("midlayer.self_attn.o_proj.weight", "midlayer.mlp.down_proj.weight", "fc.weight"):
        tensors[name] *= 0.2
    tensors["fc.weight"][:, :size] += torch.eye(size)
    for name in ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm"):
        tensors[f"{name}.weight"] = torch.rand(size, generator=random) / 2 + 0.75
    ids = torch.randperm(vocab_size, generator=random)[:NUM_DRAFT_IDS].sort().values
    tensors["d2t"] = ids - torch.arange(NUM_DRAFT_IDS)
    tensors["t2d"] = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    two_before = NEXT.argsort()[NEXT.argsort()[ids]]
    tensors["lm_head.weight"] = target.model.word_embeddings.weight.detach()[two_before].clone()
    return tensors


CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 400,
    "draft_vocab_size": NUM_DRAFT_IDS,
}


def write_head(folder: Path, tensors: Mapping[str, Tensor] | None = None, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    config = {name: value for name, value in (CONFIG | changes).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(make_tensors(TARGET) if tensors is None else tensors), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head"))


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_head_is_read_as_it_is_stored_and_its_hash_kept(folder: Path) -> None:
    loaded = load_head(folder, TARGET.config)
    stored = load_file(folder / "model.safetensors")
    state = loaded.head.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert loaded.sha256 == weights_sha256(folder)


def test_an_embedding_of_its_own_is_used(tmp_path: Path) -> None:
    own = torch.randn(400, 64)
    loaded = load_head(write_head(tmp_path, make_tensors(TARGET) | {"embed_tokens.weight": own}), TARGET.config)
    assert loaded.head.embed_tokens is not None
    assert torch.equal(loaded.head.embed_tokens.weight, own)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in make_tensors(TARGET).items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "changes", "says"),
    [
        (without("fc.weight"), {}, "fc.weight is missing"),
        (without("d2t"), {}, "d2t is missing"),
        (make_tensors(TARGET) | {"midlayer.self_attn.q_norm.weight": torch.ones(16)}, {}, "q_norm.weight has no place"),
        (make_tensors(TARGET) | {"fc.weight": torch.ones(64, 128)}, {}, r"fc.weight has shape \(64, 128\)"),
        (
            make_tensors(TARGET) | {"d2t": torch.zeros(NUM_DRAFT_IDS, dtype=torch.int64)},
            {},
            "d2t and t2d name different",
        ),
        (None, {"hidden_size": 128}, "hidden_size is 128, the model's 64"),
        (None, {"vocab_size": 32000}, "vocab_size is 32,000, the model's 400"),
        (None, {"draft_vocab_size": "absent"}, "draft_vocab_size is None"),
        (None, {"num_hidden_layers": 2}, "one layer"),
        (None, {"norm_before_residual": True}, "norm_before_residual is on"),
        (None, {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_scaling is not supported"),
        (None, {"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLMEagle3"),
        (None, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}}, "3 layers does not have"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: dict[str, Tensor] | None, changes: dict, says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_head(write_head(tmp_path, tensors, **changes), TARGET.config)


def test_a_head_of_another_file_format_is_named(tmp_path: Path) -> None:
    (write_head(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; .* must be converted"):
        load_head(tmp_path, TARGET.config)


@pytest.mark.parametrize(
    ("num_layers", "given", "wanted"),
    [(32, None, (2, 16, 29)), (20, None, (2, 10, 17)), (32, [1, 15, 28], (2, 16, 29)), (32, [2, 16, 29], (2, 16, 29))],
)
def test_the_layers_it_reads(tmp_path: Path, num_layers: int, given: list[int] | None, wanted: tuple[int, ...]) -> None:
    changes = {} if given is None else {"eagle_config": {"eagle_aux_hidden_state_layer_ids": given}}
    config = replace(TARGET.config, num_hidden_layers=num_layers)
    assert load_head(write_head(tmp_path, **changes), config).head.config.tap_layers == wanted


# --- drafting ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def expected_draft(head: Eagle3Head, token_ids: Sequence[int], num_draft: int) -> list[int]:
    """The definition, by the tensors' names: the whole text anew for each token."""
    w, eps = head.state_dict(), head.config.rms_norm_eps
    states = TARGET(torch.tensor([token_ids[:-1]]), output_hidden=True).hidden
    hidden = torch.cat([states[n][0] for n in head.config.tap_layers], dim=-1) @ w["fc.weight"].T
    next_ids, draft = list(token_ids[1:]), []

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * w[f"{name}.weight"]

    def turn(x: Tensor) -> Tensor:  # [heads, positions, 16]
        angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(8) / 8)
        a, b = x[..., :8], x[..., 8:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1)

    for _ in range(num_draft):
        embedded = TARGET.model.word_embeddings.weight[next_ids]
        x = torch.cat((norm(embedded, "midlayer.input_layernorm"), norm(hidden, "midlayer.hidden_norm")), dim=-1)
        q, k, v = (
            (x @ w[f"midlayer.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, 16)).transpose(0, 1)
            for name in "qkv"
        )
        k, v = turn(k).repeat_interleave(3, 0), v.repeat_interleave(3, 0)
        mixed = functional.scaled_dot_product_attention(turn(q), k, v, is_causal=True).transpose(0, 1).flatten(1)
        state = hidden + mixed @ w["midlayer.self_attn.o_proj.weight"].T
        y = norm(state, "midlayer.post_attention_layernorm")
        gate, up = (y @ w[f"midlayer.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        state = state + (functional.silu(gate) * up) @ w["midlayer.mlp.down_proj.weight"].T
        best = int((norm(state[-1], "norm") @ w["lm_head.weight"].T).argmax())
        draft.append(best + int(w["d2t"][best]))
        next_ids.append(draft[-1])
        hidden = torch.cat((hidden, state[-1:]))
    return draft


@pytest.fixture(params=VARIANTS)
def threads(request: pytest.FixtureRequest) -> Threads:
    return Threads(1, load_library(request.param))


def make_drafter(folder: Path, backend: CpuBackend, dtype: torch.dtype = torch.float32) -> Watched:
    drafter = Eagle3Drafter(load_head(folder, TARGET.config).head, backend, make_target(dtype))
    return Watched(drafter, drafter.cache)


def make_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 400, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_drafts_are_the_definitions(folder: Path) -> None:
    """Through chunks of the prompt, right drafts and wrong ones."""
    backend = CpuBackend(TARGET, Threads(1))
    drafter = make_drafter(folder, backend)
    engine = Engine(backend, [], prefill_chunk=32, max_draft=3, drafters=[drafter])
    tokens_of(engine.stream(make_prompt(70), replace(GREEDY, max_tokens=20)))
    head = load_head(folder, TARGET.config).head
    assert [draft for _, draft in drafter.drafts] == [
        expected_draft(head, text, len(draft)) for text, draft in drafter.drafts
    ]
    assert engine.load.num_drafted > engine.load.num_accepted > 5


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_is_the_same_with_and_without(
    folder: Path, threads: Threads, dtype: torch.dtype, params: SamplingParams
) -> None:
    backend = CpuBackend(make_target(dtype), threads)
    plain = Engine(backend, [])
    drafting = Engine(backend, [], max_draft=6, drafters=[make_drafter(folder, backend, dtype)])
    for seed in range(5):
        plain.forget_prefixes()  # the two share a cache
        expected = tokens_of(plain.stream(make_prompt(30, seed), params))
        drafting.forget_prefixes()
        assert tokens_of(drafting.stream(make_prompt(30, seed), params)) == expected
    assert drafting.load.num_drafted > drafting.load.num_accepted > 20
    assert drafting.check_integrity() == []


def test_chunks_and_reused_blocks_change_no_draft(folder: Path) -> None:
    backend = CpuBackend(TARGET, Threads(1))
    check_reuse_changes_no_draft(backend, make_drafter(folder, backend), make_prompt(3 * BLOCK_TOKENS - 5))


def test_clients_that_cancel_and_too_few_blocks_leave_books_and_text_in_order(folder: Path) -> None:
    backend = CpuBackend(TARGET, Threads(1))
    check_a_crowd_that_cancels(backend, make_drafter(folder, backend), [make_prompt(40, seed) for seed in range(3)])


def test_the_generator_drafts_by_it_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["hidden_size"] == 64
    head = write_head(tmp_path / "head", vocab_size=config["vocab_size"])
    plain = LocalGenerator.load(checkpoint)
    drafting = LocalGenerator.load(checkpoint, draft_head=head)
    texts = []
    for generator in (plain, drafting):
        events = generator.stream([Message(Role.USER, "Take 5 mg of apixaban.")], GREEDY)
        texts.append("".join(event.text for event in events if isinstance(event, TextChunk)))
    assert texts[0] == texts[1]
    assert [draft.source for draft in drafting.engine_load.drafts] == ["prompt lookup", "EAGLE-3 head"]
    assert drafting.info.details["draft head"] == f"head, sha256 {weights_sha256(head)}"
    with pytest.raises(CheckpointError, match="made for another model"):
        LocalGenerator.load(checkpoint, draft_head=write_head(tmp_path / "other", hidden_size=32))
