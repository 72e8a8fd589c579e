"""The routers' monitor: what it counts, when it sounds an alarm and when it must not."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path

import pytest
import torch

from contracts import Message, Role, SamplingParams
from model.backend import Slice
from model.checkpoint import save_checkpoint
from model.config import CheckpointError
from model.cpu_backend import CpuBackend
from model.engine import Engine
from model.generator import LocalGenerator
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import Threads
from model.modeling import BailingMoeV2ForCausalLM, Router
from model.router_health import (
    BASELINE_FILE,
    FOLD_TOKENS,
    WINDOW_TOKENS,
    LayerHealth,
    RouterHealth,
    RouterState,
    divergence,
    read_baseline,
    router_entropy,
    topk_margin,
    write_baseline,
)
from model.torch_backend import TorchBackend
from tests.model.conftest import make_model

ENOUGH = 256  # tokens: 64 choices for each of 8 experts, of which 2 are chosen


def router_of(model: BailingMoeV2ForCausalLM, layer: int) -> Router:
    return model.model.layers[layer].mlp.gate


def watch(model: BailingMoeV2ForCausalLM, num_tokens: int = ENOUGH, **options: object) -> RouterHealth:
    """The monitor after random tokens went through the model in the engine, as prompt and answer."""
    health = RouterHealth(model, **options)  # type: ignore[arg-type]
    model.router_observer = health.observe
    prompt = torch.randint(0, 400, (num_tokens - 4,), generator=torch.Generator().manual_seed(0)).tolist()
    # The last token written is never read.
    assert list(Engine(TorchBackend(model), []).stream(prompt, SamplingParams(max_tokens=5)))
    return health


def layers_of(health: RouterHealth) -> dict[int, LayerHealth]:
    return {layer.layer: layer for layer in health.snapshot().layers}


def note(health: RouterHealth, *ids: list[int]) -> None:
    """One pass of a model with one MoE layer of 8 experts: the experts of each of its tokens."""
    topk_ids = torch.tensor(ids)
    health.observe([topk_ids], [torch.zeros(len(ids), 8).scatter_(1, topk_ids, 1.0)], len(ids))


# --- counting ---------------------------------------------------------------------------------------------------


def test_every_token_of_prompt_and_answer_is_counted_in_each_moe_layer() -> None:
    model = make_model()
    health = watch(model, 300)
    model.router_observer = None
    snapshot = health.snapshot()
    assert [layer.layer for layer in snapshot.layers] == [1, 2]
    assert snapshot.num_routed == 300
    assert all(math.isclose(sum(layer.load), 1.0) for layer in snapshot.layers)


@torch.inference_mode()
def test_load_is_that_of_the_choices_made() -> None:
    model = make_model()
    health = RouterHealth(model)
    model.router_observer = health.observe
    ids = torch.arange(20, 120)[None]
    made = model(ids, output_router=True).router
    for layer in health.snapshot().layers:
        counts = torch.bincount(made[layer.layer].topk_ids.flatten(), minlength=8)
        assert layer.load == pytest.approx((counts / counts.sum()).tolist())


def test_window_forgets_and_lifetime_does_not() -> None:
    health = RouterHealth(make_model(num_hidden_layers=2))
    for _ in range(WINDOW_TOKENS // FOLD_TOKENS):
        note(health, *[[0, 1]] * FOLD_TOKENS)
    for _ in range(WINDOW_TOKENS // FOLD_TOKENS):
        note(health, *[[6, 7]] * FOLD_TOKENS)
    (window,), (lifetime,) = health.snapshot().layers, health.snapshot(lifetime=True).layers
    assert (window.tokens, lifetime.tokens) == (WINDOW_TOKENS, 2 * WINDOW_TOKENS)
    assert window.load == (0, 0, 0, 0, 0, 0, 0.5, 0.5)
    assert lifetime.load == (0.25, 0.25, 0, 0, 0, 0, 0.25, 0.25)


def test_a_look_between_steps_loses_no_token() -> None:
    health = RouterHealth(make_model(num_hidden_layers=2))
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            health.snapshot()

    watcher = threading.Thread(target=look)
    watcher.start()
    for n in range(2000):
        note(health, [n % 8, (n + 1) % 8])
    done.set()
    watcher.join()
    (layer,) = health.snapshot().layers
    assert layer.tokens == 2000
    assert layer.load == (0.125,) * 8


def test_layers_may_come_in_one_tensor() -> None:
    """As a kernel gives them that runs a whole pass at once, its ids in 32 bits."""
    one, other = RouterHealth(make_model()), RouterHealth(make_model())
    random = torch.Generator().manual_seed(2)
    for _ in range(3):
        logits = torch.randn(2, 5, 8, generator=random)
        topk_ids = logits.topk(2).indices
        one.observe(list(topk_ids), list(logits), 5)
        other.observe(topk_ids.int(), logits, 5)
    assert one.snapshot() == other.snapshot()
    assert one.snapshot().num_routed == 15


def test_the_kernels_of_our_own_are_watched_alike() -> None:
    try:
        threads = Threads(1)
    except KernelsUnavailableError as error:
        pytest.skip(f"needs the C++ kernels: {error}")
    model = make_model()
    seen = []
    for backend in (TorchBackend(model), CpuBackend(model, threads)):
        health = RouterHealth(model)
        model.router_observer = health.observe
        backend.forward([Slice(list(range(20, 80)), 0, [0, 1], 0), Slice(list(range(90, 120)), 0, [2], 1)])
        backend.forward([Slice([7], 60, [0, 1], 1), Slice([8], 30, [2], 1)])
        seen.append(health.snapshot())
    assert [snapshot.num_routed for snapshot in seen] == [92, 92]
    for plain, own in zip(seen[0].layers, seen[1].layers, strict=True):
        assert own.layer == plain.layer
        assert own.load == pytest.approx(plain.load, abs=2 / 184)  # rounding may turn a choice or two


def test_folding_never_waits_for_the_device() -> None:
    """Tensors of the meta device have no values: whatever would read one, and so wait for an accelerator, raises."""
    model = make_model(num_hidden_layers=2).to("meta")
    health = RouterHealth(model)
    ids, logits = torch.empty(300, 2, dtype=torch.int64, device="meta"), torch.empty(300, 8, device="meta")
    for _ in range(30):  # more than the window holds
        health.observe([ids], [logits], 300)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        health.snapshot()


def test_nothing_is_known_before_the_first_token() -> None:
    snapshot = RouterHealth(make_model()).snapshot()
    assert (snapshot.layers, snapshot.num_routed) == ((), 0)


def test_training_is_not_watched() -> None:
    assert make_model().router_observer is None


# --- the figures ------------------------------------------------------------------------------------------------


def test_entropy_is_one_for_uniform_and_none_for_the_same_experts() -> None:
    assert router_entropy([1 / 8] * 8, 2) == pytest.approx(1)
    assert router_entropy([0.5, 0.5, 0, 0, 0, 0, 0, 0], 2) == pytest.approx(0)
    assert router_entropy([0.25] * 4 + [0] * 4, 2) == pytest.approx(0.5)  # 4 is the geometric mean of 2 and 8
    assert router_entropy([0.5, 0.5], 2) == 1


def test_divergence_is_zero_for_equal_and_one_bit_for_disjoint_loads() -> None:
    assert divergence([0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]) == 0
    assert divergence([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]) == pytest.approx(1)
    # By hand: middle (3/4, 1/4); H = 0.8113, less half of H(1/2, 1/2) = 1.
    assert divergence([0.5, 0.5], [1.0, 0.0]) == pytest.approx(0.3113, abs=1e-4)


@torch.inference_mode()
def test_margin_is_how_far_the_scores_may_move_before_the_choice_changes() -> None:
    model = make_model()
    gate = router_of(model, 1)
    gate.expert_bias[:] = torch.linspace(-0.1, 0.1, 8)
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    margins = topk_margin(logits, gate.expert_bias, model.config)
    assert (margins > 0).all()
    biased = logits.sigmoid() + gate.expert_bias
    chosen = gate._choose(biased)
    kept = {token: {e // 2 for e in row} for token, row in enumerate(chosen.tolist())}  # groups of two experts
    for token, margin in enumerate(margins.tolist()):
        if len(kept[token]) < 2:
            continue  # both from one group: which other group was kept does not show
        rivals = [e for e in range(8) if e // 2 in kept[token] and e not in chosen[token].tolist()]
        expected = biased[token, chosen[token]].min() - biased[token, rivals].max()
        assert margin == pytest.approx(expected.item())


def test_no_margin_where_the_groups_leave_no_choice() -> None:
    health = watch(make_model(n_group=4, topk_group=1))
    assert [layer.margin for layer in health.snapshot().layers] == [None, None]


# --- alarms -----------------------------------------------------------------------------------------------------


def test_a_working_model_raises_no_alarm() -> None:
    assert [layer.state for layer in watch(make_model()).snapshot().layers] == [RouterState.HEALTHY] * 2


@pytest.mark.parametrize("layer", [1, 2])
def test_a_router_without_weights_alarms_with_its_own_number(layer: int) -> None:
    model = make_model()
    router_of(model, layer).weight.data.zero_()
    seen = layers_of(watch(model))
    assert [index for index, health in seen.items() if health.state is RouterState.COLLAPSED] == [layer]
    assert seen[layer].entropy == pytest.approx(0)
    assert seen[layer].dead == 0.75
    assert seen[layer].busiest == 1


def test_a_bias_that_forces_the_same_experts_alarms() -> None:
    model = make_model()
    router_of(model, 2).expert_bias[[3, 5]] = 10.0
    seen = layers_of(watch(model))
    assert (seen[1].state, seen[2].state) == (RouterState.HEALTHY, RouterState.COLLAPSED)
    assert {expert for expert, share in enumerate(seen[2].load) if share} == {3, 5}


def test_one_expert_in_every_token_alarms_though_the_rest_are_balanced() -> None:
    """A single broken bias among many experts: entropy and dead share alone would not show it."""
    model = make_model(num_experts=32, num_experts_per_tok=4, n_group=1, topk_group=1, max_position_embeddings=520)
    router_of(model, 1).expert_bias[7] = 10.0
    seen = layers_of(watch(model, 512))
    assert seen[1].entropy > 0.5
    assert seen[1].dead < 0.5
    assert (seen[1].state, seen[2].state) == (RouterState.COLLAPSED, RouterState.HEALTHY)


@pytest.mark.parametrize("num_tokens", [10, ENOUGH - 1])
def test_a_short_answer_never_alarms(num_tokens: int) -> None:
    model = make_model()
    for layer in (1, 2):
        router_of(model, layer).weight.data.zero_()
    baseline = {1: [0.125] * 8, 2: [0.125] * 8}
    health = watch(model, num_tokens, baseline=baseline)
    assert [layer.state for layer in health.snapshot().layers] == [RouterState.WAITING] * 2


def test_all_experts_for_every_token_is_no_collapse() -> None:
    model = make_model(num_experts=4, num_experts_per_tok=4, n_group=1, topk_group=1)
    assert [layer.state for layer in watch(model).snapshot().layers] == [RouterState.HEALTHY] * 2


def test_drift_is_told_from_the_baseline() -> None:
    usual = {layer.layer: layer.load for layer in watch(make_model()).snapshot().layers}
    same = layers_of(watch(make_model(), baseline=usual))
    assert [same[1].drift, same[2].drift] == pytest.approx([0, 0], abs=1e-9)
    other = layers_of(watch(make_model(), baseline={1: usual[1], 2: [0.5, 0.5, 0, 0, 0, 0, 0, 0]}))
    assert other[2].drift is not None
    assert other[2].drift > 0.25
    assert (other[1].state, other[2].state) == (RouterState.HEALTHY, RouterState.DRIFTED)


# --- the baseline and the generator -----------------------------------------------------------------------------


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    return tmp_path


def ask(generator: LocalGenerator, words: int) -> None:
    message = Message(Role.USER, "Take 5 mg of apixaban twice daily. " * words)
    assert list(generator.stream([message], SamplingParams(max_tokens=4)))


def test_baseline_comes_back_when_the_checkpoint_is_loaded(folder: Path) -> None:
    generator = LocalGenerator.load(folder)
    ask(generator, 30)
    assert not generator.router_health().has_baseline
    assert generator.router_health().layers[0].drift is None
    write_baseline(folder, generator.router_health(lifetime=True))
    again = LocalGenerator.load(folder)
    ask(again, 30)
    snapshot = again.router_health()
    assert snapshot.has_baseline
    assert [layer.drift for layer in snapshot.layers] == pytest.approx([0, 0], abs=1e-4)


def test_too_little_text_makes_no_baseline(folder: Path) -> None:
    generator = LocalGenerator.load(folder)
    ask(generator, 1)
    with pytest.raises(ValueError, match="a baseline needs 256"):
        write_baseline(folder, generator.router_health(lifetime=True))
    assert not (folder / BASELINE_FILE).exists()


def test_a_collapsed_router_makes_no_baseline(folder: Path) -> None:
    model = make_model()
    router_of(model, 1).weight.data.zero_()
    save_checkpoint(model, folder, torch.float32)
    generator = LocalGenerator.load(folder)
    ask(generator, 30)
    with pytest.raises(ValueError, match="layer 1 has collapsed"):
        write_baseline(folder, generator.router_health(lifetime=True))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"layers": {"1": [0.125] * 8}}, "not the model's MoE layers"),
        ({"tokens": 5}, "not the model's MoE layers"),
        ({"layers": {"1": [0.125] * 8, "2": [0.25] * 4}}, "layer 2 must hold 8 shares"),
        ({"layers": {"1": [0.5] * 8, "2": [0.125] * 8}}, "layer 1 must hold 8 shares"),
        ({"layers": {"1": [float("nan")] * 8, "2": [0.125] * 8}}, "layer 1 must hold 8 shares"),
    ],
)
def test_a_baseline_of_another_model_stops_the_start_by_name(tmp_path: Path, data: object, says: str) -> None:
    (tmp_path / BASELINE_FILE).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=says) as caught:
        read_baseline(tmp_path, make_model().config)
    assert BASELINE_FILE in str(caught.value)
