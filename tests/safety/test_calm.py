"""What takes the alarm out of alarming words, and for which rules."""

from __future__ import annotations

import pytest

from contracts import Direction
from safety.assertion import is_exam_question
from safety.calm import Calm, reasons
from safety.matcher import Matcher
from safety.rule_files import load_rules

MATCHER = Matcher(load_rules().rules)


@pytest.mark.parametrize(
    ("sentence", "words", "reason"),
    [
        ("i nearly had a heart attack when i saw the bill", "heart attack", Calm.FIGURE),
        ("this spreadsheet is giving me a stroke", "stroke", Calm.FIGURE),
        ("他笑得喘不过气", "喘不过气", Calm.FIGURE),
        ("the novel's hero gets stabbed", "stabbed", Calm.STORY),
        ("in the film he is choking on a fish bone", "choking", Calm.STORY),
        ("模拟演练里病人突然倒地", "倒地", Calm.STORY),
        ("please proofread the sepsis leaflet", "sepsis", Calm.ERRAND),
        ("脓毒症的讲座在几楼", "脓毒症", Calm.ERRAND),
        ("traduzco un folleto sobre el ictus", "ictus", Calm.ERRAND),
        ("the printer choked on the labels", "choked", Calm.THING),
        ("he choked on water at dinner, fine now", "choked", Calm.OVER),
        ("the spot has been there for years, bit bigger maybe", "spot", Calm.LASTING),
        ("a bit wheezy with the cat, as ever", "wheezy", Calm.LASTING),
        ("she has a mild rash", "rash", Calm.SLIGHT),
    ],
)
def test_reason(sentence: str, words: str, reason: Calm) -> None:
    start = sentence.index(words)
    assert reason in reasons(sentence, start, start + len(words))


@pytest.mark.parametrize(
    "sentence",
    [
        "he is having a heart attack",
        "our dog mauled my son and the blood keeps pouring out",
        "he has had asthma for years, now he can't breathe",
        "my chest is tight and i can't breathe, it was fine before",
        "她突然倒地没有呼吸",
    ],
)
def test_nothing_calms_what_is_so(sentence: str) -> None:
    calm = {Calm.FIGURE, Calm.STORY, Calm.ERRAND}
    assert not any(reasons(sentence, place, place + 1) & calm for place in range(len(sentence)))
    assert MATCHER.find(sentence, Direction.INPUT)


@pytest.mark.parametrize(
    "sentence",
    [
        "i was proofreading the sepsis leaflet, a man collapsed and has no pulse",
        "she collapsed during the journal club",
        "while i typed the quiz for the staff, he stopped breathing",
        "i was translating a leaflet into polish when my tongue swelled up",
        "期末考试时他突然倒地没有呼吸",
        "the rota is done, and bed 4 is not breathing",
        "he had a stroke years ago and is a teacher now, but now his face droops",
        "海报还没贴好，病人突然没有呼吸了",
        "while i typed the poster the bloke in bay two slumped",
        "as we watched the film about sharks the porter fainted",
        "during the mock case a student fainted",
        "the porter collapsed while we did the drill",
        "in the film he dies, and my chest is tight",
        "the film line is cut, blood pressure unrecordable post spinal",
        "the printer won't print, he's hypotensive with flank pain",
        "last year's rota is done, chest pain and sweating",
        "mientras corregía el cartel el celador se ha desplomado",
        "我们正在排练，护士突然倒地",
        # nor a lesson, a relative or the past
        "She has crushing chest pain, 10 marks on her back.",
        "The textbook says wait, my husband has crushing chest pain and is grey.",
        "Practice ECG shows ST elevation, he is sweating.",
        "He was late for class, collapsed and is not breathing.",
        "Nursing student here, my flatmate is not breathing.",
        "At the tutorial a student collapsed and has no pulse.",
        "I am in labour with my first baby and the cord is hanging out.",
        "Past few hours crushing chest pain and sweating.",
        "My wife's mother can't speak and her face has dropped.",
        "My cousin-brother has collapsed and is not breathing.",
        "Crushing chest pain in my dad, he is sweating.",
        "A friend of mine took 40 paracetamol an hour ago.",
        "Mum: baby not breathing",
        "陈旧性心梗，胸口压榨样疼，大汗",
        "奶奶昏迷过两次，叫不醒",
        "术后两周，伤口大出血",
        "请教各位老师，患者室颤，叫不醒",
        "爷爷昏倒了怎么背下楼",
        "从不体检，胸口压榨样疼，大汗",
        "失眠已经半年，不想活了",
        "我想过跳楼",
        "Give the adrenaline, he has no pulse.",
        "A patient on the ward has collapsed with no pulse. What is the dose of adrenaline?",
        "高考生,母亲诉其把书烧了,说要卧轨",
    ],
)
def test_no_cue_hides_who_is_in_danger(sentence: str) -> None:
    assert MATCHER.find(sentence, Direction.INPUT)


def test_what_has_passed_silences_only_the_rules_that_say_so() -> None:
    for text, rule in (
        ("He choked on a crisp, fine now.", None),
        ("Her face drooped for ten minutes, fine now.", "emergency.stroke"),
        ("She took forty paracetamol tablets, feels fine.", "emergency.poisoning"),
    ):
        found = {finding.rule for finding in MATCHER.find(text, Direction.INPUT)}
        assert (rule in found) if rule else not found


@pytest.mark.parametrize(
    "text",
    [
        "Change “he stopped breathing” to the passive.",
        '"She can\'t breathe" appears twice in the transcript.',
        "Saddle embolus for the jury, two lines.",
        "The clothes in here smell of wet dog now.",
    ],
)
def test_a_quotation_or_a_mere_name_is_no_alarm(text: str) -> None:
    assert not MATCHER.find(text, Direction.INPUT)


@pytest.mark.parametrize(
    "text", ["She said “I can't breathe” and slumped.", "We're lifting a visitor out of the pool. Not breathing."]
)
def test_what_somebody_says_and_who_was_named_before_is(text: str) -> None:
    assert MATCHER.find(text, Direction.INPUT)


@pytest.mark.parametrize(
    "text",
    [
        "In this station the patient has taken an overdose of paracetamol. Assess the timing.",
        "A farmer is found sweating with pinpoint pupils. Name the toxin and antidote.",
        "A 70-year-old has a painful, pulseless, pale leg. What are the six Ps of acute limb ischaemia?",
        "MRCGP AKT style item: a man with sudden floaters and a curtain across his vision. When should he be seen?",
        "State three causes of hypoglycaemic coma and the immediate nursing action in each.",
        "A2型题：患者青霉素注射后呼吸困难、血压下降，护士应立即？",
    ],
)
def test_an_examination_is_known_by_its_stem_or_its_station(text: str) -> None:
    assert is_exam_question(text)
    assert not MATCHER.find(text, Direction.INPUT)


@pytest.mark.parametrize(
    "text",
    [
        "¿Por qué sigo viva si lo único que quiero es morirme?",
        "Le saltó cal viva a los ojos en la obra y no los puede abrir",
        "PHQ-9第9题选“几乎每天”，追问已买好绳子",
        "Boy having a fit in the exam hall, lips blue, invigilator speaking.",
        "Runner down at mile 24, temp 41.6, confused, no ice left at this station",
    ],
)
def test_words_that_examinations_use_too_make_none(text: str) -> None:
    assert not is_exam_question(text)
