"""The three stages end to end at toy size: they learn, go on to the bit where they were cut off, and keep what they
promise about citing, the token after next, the long context and rewards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts import Passage
from model.checkpoint import load_model
from model.config import YarnScaling
from model.generator import EMBEDDED
from model.modeling import BailingMoeV2ForCausalLM
from model.train import situations
from model.train.branches import decode, decode_mtp
from model.train.config import ConfigError, parse_config
from model.train.cpt import CptRun
from model.train.examples import ABSTENTION, Claim, ExampleMaker, Group, Item
from model.train.grow import GrowthError, grow
from model.train.grpo import HELD, GrpoRun, draw, find_hacking, relative
from model.train.packing import ANSWER, DECISION, PackedSequence, answer_kinds, make_batch
from model.train.rewards import REWARDS, agreement, total
from model.train.run import Run, set_context
from model.train.sft import SftRun
from model.train.state import MAX_FILE_BYTES, StateError, has_state, load_state, save_state
from tests.model.training import TEXTS, TINY, make_config, make_model_config, render

WITH_MTP = {"num_nextn_predict_layers": 1}


def read_log(run: Run[Any], name: str) -> list[float]:
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- the three stages, one after the other ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> CptRun:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    config = make_config(
        tmp_path_factory.mktemp("cpt"), model={**WITH_MTP, "rope_scaling": yarn}, num_pools=5, groups_per_pool=24,
        max_sequence_tokens=128, long_sequence_tokens=512, yarn_from=0.8, tokens_per_batch=512,
    )  # fmt: skip
    run = CptRun(config, render, TEXTS)
    run.go()
    return run


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pretrained: CptRun) -> SftRun:
    config = replace(
        make_config(tmp_path_factory.mktemp("sft"), num_pools=6), model=pretrained.config.model,
        init_from=pretrained.folder, decision_weight=2.0,
    )  # fmt: skip
    run = SftRun(config, render, TEXTS)
    run.go()
    return run


def make_grpo(tuned: SftRun, folder: Path, **changes: Any) -> GrpoRun:
    settings: dict[str, Any] = {
        "num_pools": 7, "groups_per_pool": 4, "items_per_group": 2, "samples_per_item": 6, "max_answer_tokens": 48,
        "temperature": 2.5, "rewards": {"length": 1.0, "structure": 0.5}, "matrix_lr": 0.02, "kl_weight": 0.001,
        "warmup": 0.0,
    }  # fmt: skip
    config = replace(tuned.config, output_dir=folder, init_from=tuned.folder, **(settings | changes))
    return GrpoRun(config, render, TEXTS)


def test_pre_training_lowers_the_loss_and_ends_in_the_long_context(pretrained: CptRun) -> None:
    losses = read_log(pretrained, "answer_loss")
    assert mean(losses[-3:]) < 0.8 * mean(losses[:3])
    assert pretrained.work(0)[0].ids.shape == (4, 128)
    assert pretrained.work(4)[0].ids.shape == (1, 512)
    assert load_model(pretrained.folder).config.context_length == 1024


def test_fine_tuning_goes_on_from_it_and_lowers_the_losses_of_answers_and_of_drafts(tuned: SftRun) -> None:
    for name in ("answer_loss", "mtp_loss"):
        losses = read_log(tuned, name)
        assert mean(losses[-5:]) < 0.9 * mean(losses[:5]), name
    layers = load_model(tuned.folder).model.layers
    assert all(bool(layer.mlp.gate.expert_bias.any()) for layer in layers[1:])


def test_grpo_raises_its_reward(tuned: SftRun, tmp_path: Path) -> None:
    run = make_grpo(tuned, tmp_path)
    run.go()
    rewards = read_log(run, "reward")
    assert mean(rewards[-8:]) > mean(rewards[:4]) + 0.05, rewards
    assert len(read_log(run, HELD)) == len(rewards)
    assert mean(read_log(run, "kl")[-8:]) > 0


@pytest.mark.parametrize("stage", ["cpt", "grpo"])
def test_a_stage_cut_off_and_resumed_ends_with_the_same_weights(
    stage: str, pretrained: CptRun, tuned: SftRun, tmp_path: Path
) -> None:
    def make(folder: Path) -> Run[Any]:
        if stage == "grpo":
            return make_grpo(tuned, folder, num_pools=2, groups_per_pool=2)
        return CptRun(replace(pretrained.config, output_dir=folder, num_pools=2, groups_per_pool=8), render, TEXTS)

    whole = make(tmp_path / "whole")
    whole.go()
    make(tmp_path / "parts").go(max_steps=1)
    resumed = make(tmp_path / "parts")
    assert resumed.progress.steps == 1
    resumed.go()
    assert resumed.progress == whole.progress
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_grpo_says_what_it_lacks(tuned: SftRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rewards"):
        make_grpo(tuned, tmp_path, rewards={})
    with pytest.raises(ConfigError, match="init_from"):
        GrpoRun(replace(tuned.config, init_from=None), render, TEXTS)


# --- parts of the stages ------------------------------------------------------------------------------------------


def test_the_mtp_layer_is_trained_on_what_it_is_asked_at_run_time(tuned: SftRun) -> None:
    ids = torch.arange(5, 45)[None] % 512
    zeros = torch.zeros_like(ids)
    packed = [tuple(row[0].tolist()) for row in (ids, torch.arange(40)[None], zeros, zeros + ANSWER)]
    batch = make_batch([PackedSequence(*packed)], 1)
    with torch.no_grad():
        hidden = tuned.model.model.norm(decode(tuned.model, batch)[0])
        ours, _ = decode_mtp(tuned.model, batch, hidden)
        theirs = tuned.model(ids, output_mtp=True).mtp_hidden
    assert theirs is not None
    torch.testing.assert_close(ours[0, :-1], theirs[0, :-1], atol=1e-4, rtol=1e-3)


def test_yarn_holds_from_its_moment_on(tuned: SftRun) -> None:
    config = replace(tuned.config, yarn_from=0.5)
    model = BailingMoeV2ForCausalLM(config.model)
    set_context(model, config, 0.0)
    before = model.rotary.inv_freq.clone()
    set_context(model, config, 0.5)
    assert model.rotary.attention_factor > 1
    assert not torch.equal(model.rotary.inv_freq, before)
    assert isinstance(model.config.rope_scaling, YarnScaling)


def test_drawn_answers_end_at_their_stop_token_and_the_same_seed_draws_the_same(tuned: SftRun) -> None:
    texts = ("Question: Why?", "Question: And why does the shorter prompt stand behind padding?")
    prompts = [tuned.packer.encode(f"<role>HUMAN</role>{text}<|role_end|><role>ASSISTANT</role>") for text in texts]
    stops = tuned.packer.tokenizer.stop_ids
    runs = [draw(tuned.model, prompts, 3, 12, 1.0, stops, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert [len(answers) for answers in runs[0]] == [3, 3]
    for ids in (ids for answers in runs[0] for ids in answers):
        assert all(id_ not in stops for id_ in ids[:-1])
        assert len(ids) == 12 or ids[-1] in stops


def test_answers_drawn_together_are_those_drawn_alone(tuned: SftRun) -> None:
    """At a temperature near 0, where chance has no say: padding must not change what is said."""
    prompts = [list(range(20, 60)), list(range(100, 112))]
    together = draw(tuned.model, prompts, 1, 8, 1e-4, (), torch.Generator().manual_seed(0))
    alone = [draw(tuned.model, [prompt], 1, 8, 1e-4, (), torch.Generator().manual_seed(0))[0] for prompt in prompts]
    assert together == alone


def test_advantages_are_relative_to_the_questions_own_mean() -> None:
    advantages = relative(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    assert advantages.tolist() == [[-0.5, 0.5], [0.0, 0.0]]


def test_a_reward_that_rises_while_the_held_one_falls_is_told() -> None:
    hacked = [{"reward": i / 10, HELD: 1 - i / 10} for i in range(8)]
    honest = [{"reward": i / 10, HELD: i / 10} for i in range(8)]
    assert "held reward fell" in find_hacking(hacked)
    assert find_hacking(honest) == find_hacking([]) == ""


def test_where_an_answer_could_go_another_way_is_marked() -> None:
    tokens = [
        b"He",
        b" sm",
        b"okes",
        b" ten",
        b" [",
        b"2",
        b"].",
        b" No",
        b" dr",
        b"ugs",
        b" now",
        b" [",
        b"1",
        b"].",
        b"",
    ]
    decisions = {0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14}  # 6 and 13: the number could go on
    assert answer_kinds(tokens) == [DECISION if i in decisions else ANSWER for i in range(len(tokens))]


# --- the state ----------------------------------------------------------------------------------------------------


def test_a_state_comes_back_whole_from_files_that_stay_small(tmp_path: Path) -> None:
    tensors = {"large": torch.randn(1000, 9000), "small": torch.arange(3), "steps": torch.tensor(7.0)}
    save_state(tmp_path, tensors, {"steps": 7})
    assert all(path.stat().st_size <= MAX_FILE_BYTES for path in (tmp_path / "state").iterdir())
    assert len(list((tmp_path / "state").iterdir())) > 3
    found, numbers = load_state(tmp_path)
    assert numbers == {"steps": 7}
    assert torch.equal(found["large"], tensors["large"])
    assert found["steps"].tolist() == [7.0]


def test_a_state_half_written_leaves_the_old_one_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert not has_state(tmp_path)
    save_state(tmp_path, {"a": torch.ones(2)}, {})
    (tmp_path / "state.new").mkdir()
    (tmp_path / "state").rename(tmp_path / "state.old")  # a kill between the two renames
    assert load_state(tmp_path)[0]["a"].tolist() == [1, 1]
    save_state(tmp_path, {"a": torch.zeros(2)}, {})
    next((tmp_path / "state").glob("*.safetensors")).write_bytes(b"x")
    with pytest.raises(StateError, match="damaged"):
        load_state(tmp_path)


# --- growing and citing -------------------------------------------------------------------------------------------


def test_a_grown_model_computes_what_it_computed() -> None:
    torch.manual_seed(0)
    small = BailingMoeV2ForCausalLM(make_model_config())
    large = grow(small, make_model_config(hidden_size=96, num_attention_heads=4, num_key_value_heads=2, **WITH_MTP))
    ids = torch.randint(0, 512, (2, 30))
    torch.testing.assert_close(large(ids).logits, small(ids).logits, atol=2e-3, rtol=0)  # the norms' eps weighs more


def test_a_new_model_may_begin_with_the_meanings_of_words_that_the_reader_knows(tmp_path: Path) -> None:
    config = make_config(tmp_path, model={"vocab_size": 9216, "hidden_size": 96}, meanings_from=EMBEDDED)
    run = SftRun(config, render, TEXTS)
    assert (tmp_path / "tokenizer.json").read_bytes() == (EMBEDDED / "tokenizer.json").read_bytes()
    ids = [run.packer.encode(word)[0] for word in (" kidney", " renal", " daily")]
    kidney, renal, daily = torch.nn.functional.normalize(run.model.model.word_embeddings.weight[ids].detach())
    assert kidney @ renal > kidney @ daily + 0.2


@pytest.mark.parametrize("change", [{"num_experts": 8}, {"hidden_size": 32}, {"num_attention_heads": 4}])
def test_what_is_no_larger_sibling_is_refused(change: dict[str, int]) -> None:
    small = BailingMoeV2ForCausalLM(make_model_config())
    with pytest.raises(GrowthError, match=next(iter(change))):
        grow(small, make_model_config(**change))


# --- situations and rewards ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    shares = {"conflict": 0.5, "follow_up": 0.2, "no_question": 0.1, "to_patient": 0.3}
    return [ExampleMaker({}, shares).make(f"situation/{i}", 0.5, 6) for i in range(120)]


def test_documents_that_disagree_are_both_told(groups: list[Group]) -> None:
    assert sum(len({c.passage for c in item.claims}) > 1 for group in groups for item in group.items) > 20


def test_emergencies_and_unsafe_requests_get_their_sentence_and_patients_a_kind_word(groups: list[Group]) -> None:
    items = [item for group in groups for item in group.items]
    said = {item.said for item in items}
    assert {situations.EMERGENCY, situations.REFUSAL, situations.EMERGENCY_ZH, situations.REFUSAL_ZH} <= said
    assert any(item.answer.startswith(f"{situations.COMFORT} ") and item.claims for item in items)


def test_a_follow_up_names_only_what_is_new(groups: list[Group]) -> None:
    starts = ("And ", "and ", "What about ", "How about ")
    follow_ups = [i for g in groups for i in g.items if i.history and i.question.startswith(starts) and i.claims]
    assert follow_ups
    assert all(item.history[0][1] != ABSTENTION for item in follow_ups if len(item.history) == 1)


def test_chinese_records_are_asked_about_in_chinese(groups: list[Group]) -> None:
    chinese = [g for g in groups if any("\u4e00" <= c <= "\u9fff" for c in g.items[0].question)]
    assert len(chinese) > 3
    assert any(not item.claims and not item.said for g in chinese for item in g.items)


PASSAGES = tuple(
    Passage(str(i), str(i), "labs.pdf", 1, 0, len(t), t)
    for i, t in enumerate(("Sodium was 131 mmol/L.", "Apixaban 5 mg twice daily."))
)
ASKED = Item("What was the sodium?", (Claim("Sodium was 131 mmol/L.", 0),))
UNKNOWN = Item("What was the urea?", ())
URGENT = Item("My chest hurts!", (), said=situations.EMERGENCY)
KIND = replace(ASKED, opening=situations.COMFORT)


@pytest.mark.parametrize(
    ("name", "item", "good", "bad"),
    [
        ("citation_precision", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [2]."),
        ("citation_precision", UNKNOWN, ABSTENTION, "Sodium was 131 mmol/L [1]."),
        ("citation_recall", ASKED, "Sodium was 131 mmol/L [1].", ABSTENTION),
        ("citation_recall", UNKNOWN, ABSTENTION, "Sodium was 131 mmol/L [1]."),
        ("coverage", ASKED, "The sodium was 131 mmol/L [1].", "Sodium was [1]."),
        ("coverage", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [2]."),
        ("coverage", UNKNOWN, ABSTENTION, "Sodium was 131 mmol/L [1]."),
        ("support", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 141 mmol/L [1]."),
        ("support", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mg [1]."),
        ("support", ASKED, "Sodium was 131 mmol/L [1].", "Apixaban 10 mg twice daily [2]."),
        ("support", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [7]."),
        ("answerability", ASKED, "Sodium was 131 mmol/L [1].", ABSTENTION),
        ("answerability", UNKNOWN, ABSTENTION, "Sodium was 131 mmol/L [1]."),
        ("answerability", ASKED, "Sodium was 131 mmol/L [1].", ""),
        ("structure", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [1]. Sodium was 131 mmol/L [1]."),
        ("structure", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [1"),
        ("structure", URGENT, situations.EMERGENCY, ABSTENTION),
        ("empathy", KIND, f"{situations.COMFORT} Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [1]."),
        ("empathy", ASKED, "Sodium was 131 mmol/L [1].", f"{situations.COMFORT} Sodium was 131 mmol/L [1]."),
        ("safety", URGENT, situations.EMERGENCY, "Sodium was 131 mmol/L [1]."),
        ("safety", ASKED, "Sodium was 131 mmol/L [1].", situations.REFUSAL),
        ("length", ASKED, "Sodium was 131 mmol/L [1].", "Sodium was 131 mmol/L [1]. " * 4),
    ],
)
def test_a_reward_tells_good_from_bad(name: str, item: Item, good: str, bad: str) -> None:
    group = Group(PASSAGES, (item,))
    assert REWARDS[name](group, item, good) == 1.0
    assert REWARDS[name](group, item, bad) < 1.0


def test_every_reward_stays_between_0_and_1_whatever_is_said() -> None:
    odd = ("", " ", "[", "[1]", "[999].", ABSTENTION * 3, "\n\n[1]. [2].", "。【1】", "a" * 500)
    for item in (ASKED, UNKNOWN, URGENT, KIND):
        for said in (*odd, item.answer):
            values = {name: reward(Group(PASSAGES, (item,)), item, said) for name, reward in REWARDS.items()}
            assert all(0 <= value <= 1 for value in values.values()), (said, values)
        assert total(dict.fromkeys(REWARDS, 1.0), {"length": 2.0, "safety": 1.0}) == 1.0
        assert agreement(Group(PASSAGES, (item,)), item, item.answer) == 1.0


def test_the_held_reward_cannot_be_trained_on() -> None:
    valid = {"model": TINY, "output_dir": "x", "data_dir": "y", "num_pools": 3}
    assert parse_config({**valid, "rewards": {"support": 1}}).rewards == {"support": 1.0}
    with pytest.raises(ConfigError, match="agreement"):
        parse_config({**valid, "rewards": {"agreement": 1.0}})
