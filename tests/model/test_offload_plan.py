"""The planner: what goes where on cards of several sizes, and that its forecast follows from bytes and bandwidths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.synthetic import PRESETS, write_checkpoint
from model.checkpoint import list_shards, save_checkpoint
from model.modeling import BailingMoeV2ForCausalLM
from model.offload_plan import CARD_RESERVE, GIB, Machine, OffloadPlan, parse_card, plan_offload
from model.roofline import (
    FORMATS,
    count_bytes,
    count_distinct_experts,
    count_weights,
    decode_bytes,
    kv_bytes,
    measure_bytes,
    prefill_flop,
)

CONFIG = PRESETS["antangelmed"]
INT4 = count_bytes(CONFIG, FORMATS["int4"])
TINY = replace(
    CONFIG,
    vocab_size=64,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_experts=8,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
)


def plan(card: str, ram_gib: float = 128, context: int = 8192, **changes: object) -> OffloadPlan:
    found = parse_card(card)
    machine = Machine(found.name, found.num_bytes, found.bandwidth, found.pcie_bandwidth, ram_gib * GIB, 80e9)
    return plan_offload(CONFIG, INT4, machine, context, **changes)  # type: ignore[arg-type]


def test_the_counts_are_the_models() -> None:
    with torch.device("meta"):
        model = BailingMoeV2ForCausalLM(TINY)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert count_weights(TINY).total == matrices
    # by hand: 32 layers x 4 kv heads x 128 dims, keys and values, 2 bytes; the published total is 103 B parameters
    assert kv_bytes(CONFIG, 1) == 65536
    assert count_weights(CONFIG).total == pytest.approx(102.9e9, rel=1e-3)


@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_what_is_measured_of_files_is_what_is_counted(tmp_path: Path, form: str) -> None:
    write_checkpoint(TINY, tmp_path / "c", form)
    widths = FORMATS["bf16"] if form == "bf16" else replace(FORMATS["int4"], head=2.0)
    measured = measure_bytes([tmp_path / "c" / name for name in list_shards(tmp_path / "c")], TINY)
    counted = count_bytes(TINY, widths)
    for part in ("embedding", "head", "experts", "shared"):  # the others hold norms and biases too
        assert getattr(measured, part) == pytest.approx(getattr(counted, part), rel=0.02)
    assert measured.total >= counted.total


def test_an_mtp_layer_is_not_counted(tmp_path: Path) -> None:
    config = replace(TINY, num_nextn_predict_layers=1)
    sizes = []
    for number, each in enumerate((TINY, config)):
        save_checkpoint(BailingMoeV2ForCausalLM(each), tmp_path / str(number))
        sizes.append(measure_bytes([tmp_path / str(number) / "model.safetensors"], each).total)
    assert sizes[0] == sizes[1]


def test_a_step_reads_each_chosen_expert_once() -> None:
    assert count_distinct_experts(CONFIG, 1) == CONFIG.num_experts_per_tok
    assert count_distinct_experts(CONFIG, 10_000) == pytest.approx(CONFIG.num_experts)
    one, many = (decode_bytes(CONFIG, INT4, batch) for batch in (1, 32))
    assert 1 < many / one < 32
    # A token alone, at 4.3 TB/s: the limit of 1,455 tokens/s.
    assert 4.3e12 / decode_bytes(CONFIG, INT4, 1, 1024) == pytest.approx(1455, abs=1)
    assert prefill_flop(CONFIG, 131072) == pytest.approx(5779e12, rel=1e-3)


def test_a_large_card_holds_all_of_it_with_a_long_context() -> None:
    for card in ("80GB", "H20", "141GB"):
        found = plan(card, context=131072)
        assert found.is_whole
        assert not found.problem
        assert found.ram_bytes == 0
        assert found.card_bytes == pytest.approx(INT4.total + 8 * GIB + CARD_RESERVE)


@pytest.mark.parametrize("card", ["24GB", "48GB"])
def test_a_small_card_leaves_experts_in_memory(card: str) -> None:
    found = plan(card)
    assert 0 < found.hot_experts < 256
    assert found.card_bytes <= found.machine.card_bytes
    assert found.card_bytes + found.ram_bytes == pytest.approx(INT4.total + found.kv_bytes + CARD_RESERVE)
    one_more = found.card_bytes + INT4.experts / 256
    assert one_more > found.machine.card_bytes
    # The choices that fall into memory cannot come faster than memory gives them.
    missed = (1 - found.hit_rate) * INT4.experts * 8 / 256
    assert found.expected < found.limit < 80e9 / missed


def test_larger_cards_and_hotter_experts_make_it_faster() -> None:
    speeds = [plan(card).expected for card in ("16GB@1008", "24GB", "48GB@1008", "80GB")]
    assert speeds == sorted(speeds)
    favourites = [2**-n for n in range(1, 256)] + [2**-255]
    assert plan("24GB", shares=favourites).hit_rate == pytest.approx(1)
    assert plan("24GB", shares=favourites).expected > plan("24GB").expected


@pytest.mark.parametrize(
    ("card", "ram_gib", "context", "needle"),
    [("24GB", 16, 8192, "of experts are left"), ("24GB", 512, 524_288, "shorten the context")],
)
def test_what_cannot_be_says_why(card: str, ram_gib: float, context: int, needle: str) -> None:
    found = plan(card, ram_gib, context)
    assert found.problem.startswith("does not fit")
    assert needle in found.problem
    assert found.describe()[-1] == found.problem


def test_cards_are_read_from_names_and_sizes() -> None:
    assert parse_card("h100").name == "H100 80GB"
    assert parse_card("24gb").name == "RTX 4090"
    own = parse_card("24GB@900")
    assert (own.num_bytes, own.bandwidth) == (24 * GIB, 900e9)
    for text in ("", "7GB", "card", "24GB@fast", "-1GB@900", "H100@900"):
        with pytest.raises(ValueError, match="no card known here"):
            parse_card(text)
