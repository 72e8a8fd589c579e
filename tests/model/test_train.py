"""The training pipeline: true examples, exact packing, runs that learn and resume, a strict configuration."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from model.modeling import BailingMoeV2ForCausalLM
from model.quantization import dequantize_int4
from model.quantize.rtn import quantize_rtn
from model.train.branches import decode
from model.train.config import ConfigError, load_config, parse_config
from model.train.corpora import Text, split_held_out, split_sentences
from model.train.examples import ABSTENTION, Claim, ExampleMaker, Group, Item, cite, of_gone
from model.train.export import EMBEDDED, FILES, MAX_BYTES, ExportError, export
from model.train.losses import losses
from model.train.optimizer import orthogonalize
from model.train.packing import ANSWER, DECISION, Packer, make_batches
from model.train.records import Person
from model.train.rounding import GROUP_SIZE, rounded
from model.train.score import split_claims
from model.train.sft import SftRun
from model.train.topics import chinese_slots, english_slots, fill, load_topics
from model.train.wording import INJECTIONS
from tests.model.training import TEXTS, TINY, make_config, render

CONFIGS = Path(__file__).resolve().parents[2] / "model" / "train" / "configs"


@pytest.fixture(scope="module")
def texts() -> dict[str, list[Text]]:
    return TEXTS


@pytest.fixture(scope="module")
def maker(texts: dict[str, list[Text]]) -> ExampleMaker:
    return ExampleMaker(texts)


@pytest.fixture(scope="module")
def groups(maker: ExampleMaker) -> list[Group]:
    return [maker.make(f"test/{i}", 0.2 + (i % 5) / 4, 8) for i in range(150)]


def plain(text: str) -> str:
    return " ".join(text.split())


# --- examples ---------------------------------------------------------------------------------------------------


def test_every_claim_stands_word_for_word_in_the_passage_it_cites(groups: list[Group]) -> None:
    claims = [(group, claim) for group in groups for item in group.items for claim in item.claims]
    assert len(claims) > 500
    for group, claim in claims:
        assert plain(claim.text) in plain(group.passages[claim.passage].text)


def test_an_unanswerable_question_asks_for_a_drug_or_test_that_no_passage_names(maker: ExampleMaker) -> None:
    asked = 0
    for index in range(600):
        group = maker.make(f"abstain/{index}", 1.0, 8, "record")
        whole = " ".join(p.text for p in group.passages).casefold()
        for item in group.items:
            if item.question.startswith("What is the dose of ") and not item.claims:
                asked += 1
                assert item.question.removeprefix("What is the dose of ").rstrip("?").casefold() not in whole
    assert asked >= 2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_topic_is_stated_and_asked_in_whole_words(language: str) -> None:
    rng = random.Random(0)
    person = Person(rng)
    slots = {"en": english_slots(rng, person.words, lambda: person.write(person.day())), "zh": chinese_slots(rng)}
    topics = load_topics(language)
    assert len(topics) > 100
    for template in (template for topic in topics for template in topic.say):
        said = {fill(template, rng, slots[language]) for _ in range(8)}
        assert not any(mark in text for text in said for mark in "{}|")
    asked = [question for topic in topics for question in topic.ask]
    assert len(asked) - len(set(asked)) < 3  # a question belongs to one topic


def test_a_question_whose_page_is_not_shown_is_not_answered_by_another() -> None:
    facts = {("lab", "Sodium"): [Claim("Sodium 131", 0)]}
    gone = {**facts, ("lab", "Urea"): [Claim("Urea 4", 0)], ("dose", "ibuprofen"): [Claim("Ibuprofen 200 mg", 0)]}
    drawn = {
        item.question
        for i in range(20)
        if (item := of_gone(gone, facts, "No ibuprofen.", random.Random(i), str)) is not None
    }
    assert drawn == {"('lab', 'Urea')"}


def test_about_a_fifth_of_the_questions_cannot_be_answered(groups: list[Group]) -> None:
    items = [item for group in groups for item in group.items]
    share = sum(not item.claims for item in items) / len(items)
    assert 0.1 < share < 0.3


def test_some_questions_follow_others_and_some_patients_are_described(groups: list[Group]) -> None:
    assert any(item.history for group in groups for item in group.items)
    assert any(group.patient is not None for group in groups)


def test_an_instruction_inside_a_passage_is_never_the_answer(maker: ExampleMaker) -> None:
    groups = [maker.make(f"inject/{i}", 0.8, 6) for i in range(300)]
    assert any(forged in p.text for forged in INJECTIONS for g in groups for p in g.passages)
    for group in groups:
        for item in group.items:
            if "instruction" not in item.question.casefold():
                assert item.answer != "OK."


def test_the_same_seed_makes_the_same_group(maker: ExampleMaker) -> None:
    assert maker.make("same", 1.0, 8) == maker.make("same", 1.0, 8)
    assert maker.make("same", 1.0, 8) != maker.make("other", 1.0, 8)


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("He smokes.", "He smokes [2]."),
        ("Sodium 131 mmol/L (133–146)", "Sodium 131 mmol/L (133–146) [2]."),
        ("病人对青霉素过敏。", "病人对青霉素过敏 [2]。"),
    ],
)
def test_a_sentence_ends_with_the_number_of_its_passage(text: str, cited: str) -> None:
    assert cite(text, 2) == cited


def test_without_claims_the_answer_is_the_fixed_abstention() -> None:
    from app import prompt

    assert Item("Why?", ()).answer == ABSTENTION == prompt.ABSTENTION


def test_sentences_end_at_full_stops_but_not_after_titles() -> None:
    found = split_sentences("She saw Dr. Moss on Monday. The rash had gone.\n\n- Stop **amoxicillin**")
    assert found == ["She saw Dr. Moss on Monday.", "The rash had gone.", "- Stop amoxicillin"]


def test_a_document_is_held_out_as_a_whole_and_never_trained_on() -> None:
    texts = {"notes": [Text("mts", f"note {i // 2}", (f"Sentence {i}.",)) for i in range(400)]}
    train, held = split_held_out(texts)
    assert held["notes"]
    assert not {t.group for t in train["notes"]} & {t.group for t in held["notes"]}
    assert len(train["notes"]) + len(held["notes"]) == 400


# --- packing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, list[Text]]) -> SftRun:
    return make_run(tmp_path_factory.mktemp("run"), texts)


def make_run(folder: Path, texts: dict[str, list[Text]], **changes: object) -> SftRun:
    return SftRun(make_config(folder, **changes), render, texts)


def test_a_packed_group_reads_as_each_prompt_alone(run: SftRun) -> None:
    group = run.maker.make("packed", 0.3, 4)
    packed = run.packer.pack(group, 900)
    assert packed is not None
    for number, item in enumerate(group.items, 1):
        mine = [i for i, branch in enumerate(packed.branches) if branch in (0, number)]
        alone = run.packer.template.encode(run.packer.messages(group, item))
        assert [packed.ids[i] for i in mine][: len(alone)] == alone
        assert [packed.positions[i] for i in mine] == list(range(len(mine)))
        answer = [packed.ids[i] for i in mine if packed.kinds[i] in (ANSWER, DECISION)]
        assert run.packer.tokenizer.decode(answer) == item.answer
        assert answer[-1] in run.packer.tokenizer.stop_ids


def test_a_branch_is_computed_as_if_it_stood_alone(run: SftRun) -> None:
    group = run.maker.make("alone", 0.1, 4)
    whole = run.packer.pack(group, 4000)
    assert whole is not None
    kept = [i for i, branch in enumerate(whole.branches) if branch in (0, len(group.items))]
    expected = run.model(torch.tensor([[whole.ids[i] for i in kept]])).last_hidden[0, -5:]
    longer = run.packer.pack(run.maker.make("longer", 0.3, 1), 4000)
    assert longer is not None
    batch = make_batches([whole, longer], 9999, 1, random.Random(0))[0]
    shared = [sequence.branches.count(0) for sequence in (whole, longer)]
    row = 0 if shared[0] <= shared[1] else 1  # rows stand in order of what their branches share
    x = run.model.model.norm(decode(run.model, batch)[0])
    places = [place + batch.num_shared - shared[0] for place in kept[-5:]]
    torch.testing.assert_close(x[row, places], expected, atol=1e-5, rtol=1e-4)


def test_all_experts_at_once_compute_what_the_chosen_ones_do(run: SftRun) -> None:
    torch.manual_seed(0)
    moe, x = run.model.model.layers[1].mlp, torch.randn(2, 20, 64)
    nn.init.normal_(moe.experts.down_proj)
    expected, _ = moe(x)
    moe.experts.all_at_once = True
    torch.testing.assert_close(moe(x)[0], expected, atol=1e-5, rtol=1e-4)
    moe.experts.all_at_once = False
    nn.init.zeros_(moe.experts.down_proj)


def test_rounded_weights_are_those_of_int4_and_the_update_is_of_whole_ones(run: SftRun) -> None:
    """Inside, what `bedside quantize` would leave; outside, the weights as they were, with a gradient."""
    mlp = run.model.model.layers[1].mlp
    weight = mlp.experts.gate_up_proj
    whole = weight.detach().clone()
    with rounded(run.model):
        packed = quantize_rtn(whole[2], GROUP_SIZE, torch.bfloat16)
        expected = dequantize_int4(packed.packed, packed.scales, whole.shape[-1])
        torch.testing.assert_close(weight[2].detach(), expected)
        assert not torch.equal(weight, whole)
        losses(run.model, run.work(0)[0], run.config, 0).loss.backward()
    assert torch.equal(weight, whole)
    assert bool(mlp.experts.down_proj.grad.any())
    run.model.zero_grad()


def test_a_group_too_long_is_left_out_and_a_branch_too_long_is_cut_off(run: SftRun) -> None:
    group = run.maker.make("long one", 0.3, 4)
    packed = run.packer.pack(group, 900)
    assert packed is not None
    shared = packed.branches.count(0)
    assert run.packer.pack(group, shared) is None
    shorter = run.packer.pack(group, len(packed.ids) - 1)
    assert shorter is not None
    assert max(shorter.branches) == max(packed.branches) - 1


# --- runs -------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_every_expert_is_used(tmp_path: Path, texts: dict[str, list[Text]]) -> None:
    run = make_run(tmp_path, texts, num_pools=6)
    run.go()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    prose = [entry for entry in log if "answer_loss" in entry]
    assert prose[-1]["answer_loss"] < 0.8 * prose[0]["answer_loss"]
    assert prose[-1]["language_loss"] < prose[0]["language_loss"]
    assert all(bool(layer.mlp.gate.expert_bias.any()) for layer in run.model.model.layers if hasattr(layer.mlp, "gate"))


def test_a_run_interrupted_and_resumed_ends_with_the_same_weights(tmp_path: Path, texts: dict[str, list[Text]]) -> None:
    whole = make_run(tmp_path / "whole", texts)
    whole.go()
    make_run(tmp_path / "parts", texts).go(max_steps=2)
    resumed = make_run(tmp_path / "parts", texts)
    assert resumed.progress.steps == 2
    resumed.go()
    assert resumed.progress == whole.progress
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_finished_folder_is_a_checkpoint_that_the_product_reads(
    tmp_path: Path, texts: dict[str, list[Text]]
) -> None:
    from model.checkpoint import load_model

    run = make_run(tmp_path, texts, num_pools=1)
    folder = run.go()
    model, packer = load_model(folder, torch.float32), Packer(folder, render)
    batch = run.work(0)[0]
    ours, stored = (float(losses(m, batch, run.config, 0).figures["answer_loss"]) for m in (run.model, model))
    assert stored == pytest.approx(ours, abs=0.05)  # stored in bfloat16
    assert packer.tokenizer.stop_ids == (1, 4)


def test_a_prompt_token_cannot_see_the_answer(run: SftRun) -> None:
    """The loss of one branch must not change with the words of another."""
    group = run.maker.make("leak", 0.3, 4)
    other = replace(group, items=(*group.items[:-1], replace(group.items[-1], claims=(Claim("Nothing at all.", 0),))))
    first = [run.packer.pack(g, 900) for g in (group, other)]
    outs = []
    for packed in first:
        assert packed is not None
        batch = make_batches([packed], 2048, 1, random.Random(0))[0]
        keep = [i for i, branch in enumerate(packed.branches) if branch < len(group.items)]
        outs.append(decode(run.model, batch)[0][0, keep])
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)


def test_muon_makes_every_direction_count_alike() -> None:
    torch.manual_seed(0)
    stretched = torch.randn(3, 24, 8) * torch.logspace(-2, 2, 8)
    values = torch.linalg.svdvals(orthogonalize(stretched))
    assert values.shape == (3, 8)
    assert bool((values < 1.4).all())
    assert values[:, 0].min() > 0.6


# --- figures ----------------------------------------------------------------------------------------------------


def test_words_without_a_citation_count_as_cited_to_nothing() -> None:
    assert split_claims("Sodium was low [3]. It rose.") == [("Sodium was low", 3), ("It rose.", 0)]


# --- configuration ----------------------------------------------------------------------------------------------


def test_the_shipped_configuration_is_valid_and_fits_its_limit() -> None:
    config = load_config(CONFIGS / "sft.yaml")
    with torch.device("meta"):
        model = BailingMoeV2ForCausalLM(config.model)
    assert 2 * sum(p.numel() for p in model.parameters()) < MAX_BYTES
    assert config.lr_factor_at(1.0) == 0.0
    assert config.size_at(1.0) >= config.size_at(0.5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"num_pools": 0}, "num_pools"),
        ({"num_pools": "ten"}, "num_pools"),
        ({"precision": "int8"}, "precision"),
        ({"sizes": [[1.0, 1.0], [0.0, 1.0]]}, "sizes"),
        ({"model": {**TINY, "n_group": 3}}, "n_group"),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_names_it(change: dict[str, object], named: str) -> None:
    valid = {"model": TINY, "output_dir": "x", "data_dir": "y", "num_pools": 3}
    assert parse_config(valid).num_pools == 3
    with pytest.raises(ConfigError, match=named):
        parse_config({**valid, **change})


def test_a_missing_key_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match="data_dir"):
        parse_config({"model": TINY, "output_dir": "x", "num_pools": 3})


# --- the shipped checkpoint -------------------------------------------------------------------------------------


def test_an_export_takes_the_checkpoint_alone_and_refuses_one_too_large(tmp_path: Path) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / "embedded"
    run_dir.mkdir()
    for name in (*FILES, "state.pt"):
        (run_dir / name).write_bytes(b"x")
    assert sorted(path.name for path in export(run_dir, folder).iterdir()) == sorted(FILES)
    (run_dir / "model.safetensors").write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(ExportError, match="smaller"):
        export(run_dir, folder)
    assert (folder / "model.safetensors").stat().st_size == 1
    (run_dir / "config.json").unlink()
    with pytest.raises(ExportError, match=r"config\.json"):
        export(run_dir, folder)


def test_the_shipped_checkpoint_fits_its_limit_and_is_what_the_configuration_describes() -> None:
    from model.checkpoint import load_model

    assert sum(path.stat().st_size for path in EMBEDDED.iterdir() if path.is_file()) <= MAX_BYTES
    assert load_model(EMBEDDED).config == load_config(CONFIGS / "reader.yaml").model
