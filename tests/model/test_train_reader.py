"""The reader: what its rules see, what its written weights say, and that it learns which line a question asks for."""

from __future__ import annotations

import random

import pytest
import torch

from app.prompt import render
from contracts import Passage, SamplingParams, TextChunk
from model.generator import EMBEDDED, LocalGenerator
from model.modeling import BailingMoeV2ForCausalLM
from model.train.config import ROOT, load_config
from model.train.evaluate import answer
from model.train.examples import ExampleMaker, Group, Item
from model.train.lines import bare, split_lines
from model.train.matching import Matcher, ask, calibrate, distil, learn, score_lines
from model.train.packing import Packer
from model.train.reader import init_reader
from model.train.reading import to_asked

CONFIG = load_config(ROOT / "model/train/configs/reader.yaml")
TEXTS = (
    "Blood for Dr. Hale on 3 May. Sodium 129 mmol/L, then 131 mmol/L, then 129 mmol/L again.\nHaemoglobin 4.6 g/dL",
    "- Metformin 500 mg twice daily with meals and with\nplenty of water\n- Losartan 25 mg at night",
    "# Metformin\n糖尿病史25年，已服药。血压132/84 mmHg，指脉氧98%。建议复查",
)
PASSAGES = tuple(Passage(f"p{i}", f"d{i}", f"letter_{i}.pdf", 1, 0, len(t), t) for i, t in enumerate(TEXTS, 1))


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(EMBEDDED, render)


@pytest.fixture(scope="module")
def tokens(packer: Packer) -> list[str]:
    return packer.name_tokens(CONFIG.model.vocab_size)


@pytest.fixture(scope="module")
def reader(tokens: list[str]) -> BailingMoeV2ForCausalLM:
    """Nothing learned: words mean themselves, whatever their case, and those that are not telling mean little."""
    torch.manual_seed(0)
    matcher = Matcher(len(tokens))
    words = [bare(text).casefold() for text in tokens]
    first = {word: words.index(word) for word in set(words)}
    with torch.no_grad():
        matcher.embedding.copy_(matcher.embedding[[first[word] for word in words]])
        is_short = [word.isascii() and len(word) < 4 for word in words]
        is_filler = [short or word in ("question", "what", "does") for short, word in zip(is_short, words, strict=True)]
        matcher.embedding[is_filler] *= 0.05
        matcher.embedding *= 3
        matcher.before.zero_()
        matcher.limit.fill_(torch.tensor(0.2).logit())
    model = BailingMoeV2ForCausalLM(CONFIG.model)
    init_reader(model, tokens, matcher)
    return model


def say(model: BailingMoeV2ForCausalLM, packer: Packer, question: str) -> str:
    return answer(model, packer, Group(PASSAGES, ()), Item(question, ()), 60).strip()


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Sodium mmol?", "Sodium 129 mmol/L, then 131 mmol/L, then 129 mmol/L again [1]."),
        ("Blood for Hale?", "Blood for Dr. Hale on 3 May [1]."),
        ("Metformin with meals?", "Metformin 500 mg twice daily with meals and with plenty of water [2]."),
        ("Losartan at night?", "Losartan 25 mg at night [2]."),
        ("糖尿病史？", "糖尿病史25年，已服药 [3]."),
        ("血压指脉？", "血压132/84 mmHg，指脉氧98% [3]."),
        ("What cholesterol?", "The passages do not say."),
    ],
)
def test_it_copies_the_line_to_its_end_and_cites_it(
    reader: BailingMoeV2ForCausalLM, packer: Packer, question: str, wanted: str
) -> None:
    assert say(reader, packer, question) == wanted


def test_it_finds_a_line_among_eight_thousand_tokens() -> None:
    """In the weights that ship, by YaRN: positions are counted from the prompt's first turn to its last."""
    generator = LocalGenerator.load(EMBEDDED)
    lines = [f"Visit {number}: dressing changed, wound {number % 9 + 1} cm." for number in range(450)]
    lines.insert(40, "Apixaban 5 mg twice daily.")
    passages = [Passage(f"p{i}", "d", "notes.pdf", i, 0, 0, "\n".join(lines[i::9])) for i in range(9)]
    messages = render("What is the apixaban dose?", passages)
    assert 7500 < generator.count_prompt_tokens(messages) < 8100
    said = "".join(
        e.text for e in generator.stream(messages, SamplingParams(max_tokens=40)) if isinstance(e, TextChunk)
    )
    assert said.strip() == "Apixaban 5 mg twice daily [5]."


def test_lines_end_where_a_reader_would_end_them(packer: Packer, tokens: list[str]) -> None:
    ids = packer.template.encode(render("And now?", PASSAGES))
    lines = split_lines([tokens[id_] for id_ in ids])
    found: dict[int, list[int]] = {}
    for id_, line, passage, is_heading in zip(ids, lines.line, lines.passage, lines.is_heading, strict=True):
        if passage and not is_heading:
            found.setdefault(line, []).append(id_)
    texts = [packer.tokenizer.decode(part).strip() for part in found.values()]
    assert texts == [
        "Blood for Dr. Hale on 3 May.",
        "Sodium 129 mmol/L, then 131 mmol/L, then 129 mmol/L again.",
        "Haemoglobin 4.6 g/dL",
        "-",
        "Metformin 500 mg twice daily with meals and with\nplenty of water",
        "-",
        "Losartan 25 mg at night",
        "糖尿病史25年，已服药",
        "。血压132/84 mmHg，指脉氧98%。",
        "建议复查",
    ]


@torch.no_grad()
def test_the_mtp_layer_says_what_the_decoder_says_one_token_later(
    reader: BailingMoeV2ForCausalLM, packer: Packer
) -> None:
    question = "Metformin with meals?"
    prompt = packer.template.encode(render(question, PASSAGES))
    ids = [*prompt, *packer.encode(say(reader, packer, question))]
    output = reader(torch.tensor([ids]), output_mtp=True)
    assert output.mtp_logits is not None
    here = slice(len(prompt), len(ids) - 1)
    said, drafted = output.logits[0].argmax(-1)[here.start + 1 : here.stop + 1], output.mtp_logits[0].argmax(-1)[here]
    assert (said == drafted).float().mean() > 0.9


def test_it_learns_which_line_is_asked_for(packer: Packer, tokens: list[str]) -> None:
    torch.manual_seed(0)
    matcher, maker, losses = Matcher(len(tokens)), ExampleMaker({}), []
    groups = [maker.make(f"reader/{i}", 0.1, 6, "record") for i in range(24)]
    asked = [found for group in groups if (found := to_asked(packer, tokens, group))]
    learn(matcher, tokens, lambda step: asked[step % 6 :: 6], 100, random.Random(0), lambda r: losses.append(r["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        found = list(score_lines(*ask(matcher, tokens, asked, random.Random(0), 0.0)))
    assert found.count("right") > 2 * found.count("wrong")
    calibrate(matcher, tokens, asked, 0.9)
    with torch.no_grad():
        found = list(score_lines(*ask(matcher, tokens, asked, random.Random(0), 1.0)))
    assert found.count("abstains") == pytest.approx(0.9 * len(found), abs=0.05 * len(found))


def test_what_a_teacher_knows_of_words_is_taken_over() -> None:
    torch.manual_seed(0)
    ids, vectors = [[number] for number in range(300)], torch.randn(300, 96)
    matcher = Matcher(300)
    first = distil(matcher, ids, vectors, 1, random.Random(0))
    assert distil(matcher, ids, vectors, 30, random.Random(0)) < 0.5 * first
