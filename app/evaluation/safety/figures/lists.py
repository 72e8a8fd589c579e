"""Lists of drugs and results, as records write them: what stands beside an item is said of no other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.evaluation.safety.figure import Bench, Error, Figure, Rate, alarms, recall
from contracts import Passage

SEED = 7
NUM_LISTS = 600  # of each kind
ITEMS = 4

Item = tuple[str, str, str]  # a name; a dose or a value; how often, or a unit
_DRUGS = (
    ("bisoprolol", ("2.5 mg", "5 mg")),
    ("apixaban", ("2.5 mg", "5 mg")),
    ("metformin", ("500 mg", "1000 mg")),
    ("atorvastatin", ("20 mg", "40 mg")),
    ("ramipril", ("10 mg",)),
    ("furosemide", ("40 mg",)),
    ("levothyroxine", ("100 mcg",)),
    ("allopurinol", ("300 mg",)),
    ("warfarin", ("3 mg",)),
)
_OFTEN = {
    "once daily": ("od", "once daily", "once a day", "OD", "qd", "1x/day"),
    "twice daily": ("bd", "twice daily", "BID", "b.i.d.", "two times a day"),
    "three times daily": ("tds", "three times a day", "TID"),
    "at night": ("nocte", "at night", "at bedtime"),
}
_DRUG_STYLES = (
    "{0} {1} {2}",
    "{0} {1} tablets, {2}",
    "{0}: {1} {2}",
    "{0} ({1}) {2}",
    "{0} {1} PO {2}",
    "{1} {0} {2}",
    "{0} - {1} - {2}",
    "{0} {1} oral tablet, take {2}",
)
_DRUGS_ZH = (
    ("比索洛尔", ("2.5mg", "5mg")),
    ("阿哌沙班", ("2.5mg", "5mg")),
    ("二甲双胍", ("500mg",)),
    ("阿托伐他汀", ("20mg",)),
    ("雷米普利", ("10mg",)),
    ("呋塞米", ("40mg",)),
    ("左甲状腺素", ("100mcg",)),
    ("氨氯地平", ("5mg",)),
)
_OFTEN_ZH = {
    "每日一次": ("每日一次", "qd", "一天一次", "每日1次"),
    "每日两次": ("每日两次", "bid", "每日2次", "一天两次"),
    "每日三次": ("每日三次", "tid", "每日3次"),
    "睡前": ("睡前", "每晚", "qn"),
}
_DRUG_STYLES_ZH = (
    "{0}{1}{2}",
    "{0} {1} {2}",
    "{0}片{1}，{2}",
    "{0}（{1}）{2}",
    "{0}：{1}，{2}",
    "口服{0}{1}{2}",
    "{0}{1}口服{2}",
)
_TESTS = (
    ("sodium", ("129", "138", "142"), "mmol/L"),
    ("potassium", ("3.1", "4.5", "5.9"), "mmol/L"),
    ("creatinine", ("88", "120", "245"), "umol/L"),
    ("haemoglobin", ("88", "102", "131"), "g/L"),
    ("CRP", ("3", "12", "145"), "mg/L"),
    ("troponin", ("14", "52", "900"), "ng/L"),
    ("heart rate", ("54", "72", "118"), "bpm"),
    ("temperature", ("36.9", "38.4"), "°C"),
    ("platelets", ("88", "250", "410"), ""),
    ("lactate", ("1.2", "2.1", "4.4"), "mmol/L"),
)
_DAYS = ("12 Mar 2026", "3 May 2026", "21 Aug 2026")
_SYMPTOMS = (
    "chest pain",
    "fever",
    "cough",
    "wheeze",
    "nausea",
    "vomiting",
    "headache",
    "rash",
    "dizziness",
    "palpitations",
)
_ILLNESSES = ("breast cancer", "myocardial infarction", "type 2 diabetes", "stroke", "asthma", "glaucoma")
_TEST_STYLES = ("{0} {1} {2}", "{0}: {1} {2}", "{0} was {1} {2}", "{0} {1}{2}", "{0} = {1} {2}")
_LAYOUTS: tuple[Callable[[str, list[str]], str], ...] = (
    lambda title, items: f"{title}: {', '.join(items)}.",
    lambda title, items: f"{title}: {'; '.join(items)}.",
    lambda title, items: f"{title}: {' '.join(items)}",
    lambda title, items: f"{title}: {' / '.join(items)}",
    lambda title, items: "\n".join([title, *items]),
    lambda title, items: "\n".join([title, *(f"- {item}" for item in items)]),
    lambda title, items: "\n".join([title, *(f"{number}. {item}" for number, item in enumerate(items, 1))]),
    lambda title, items: f"{', '.join(items[:-1])} and {items[-1]}.",
)
_LAYOUTS_ZH: tuple[Callable[[str, list[str]], str], ...] = (
    lambda title, items: f"{title}：{'，'.join(items)}。",
    lambda title, items: f"{title}：{'、'.join(items)}。",
    lambda title, items: f"{title}：{'；'.join(items)}。",
    lambda title, items: f"{title}：{' '.join(items)}",
    *_LAYOUTS[4:7],
)


def run(bench: Bench) -> Sequence[Rate]:
    chooser = random.Random(SEED)
    rates: list[Rate] = []
    for kind, cases in _KINDS.items():
        missed: list[Error] = []
        false: list[Error] = []
        num_wrong = num_true = 0
        for _ in range(NUM_LISTS):
            text, true, wrong = cases(chooser)
            passage = Passage("p", "d", "list", 1, 0, len(text), text)
            held = {
                claim: bench.checker.check_claim(claim, (0,), [passage]).verdict.withholds for claim in true + wrong
            }
            num_true, num_wrong = num_true + len(true), num_wrong + len(wrong)
            false += [Error(f"{text!r}: {claim}", "withheld") for claim in true if held[claim]]
            missed += [Error(f"{text!r}: {claim}", "shown") for claim in wrong if not held[claim]]
        rates.append(recall(f"{kind}: what is another item's found", num_wrong, missed, 0.98))
        if num_true:
            rates.append(alarms(f"{kind}: alarms on true claims", num_true, false, 0.02))
    return rates


_Case = tuple[str, list[str], list[str]]  # a list, claims that stand in it, claims of another item's


def choose_drugs(chooser: random.Random) -> list[Item]:
    """The items of a list of drugs."""
    return _items(chooser, _DRUGS, _OFTEN)


def write_drugs(chooser: random.Random, items: Sequence[Item]) -> str:
    """A list of drugs, in one of the styles and layouts."""
    return _written(chooser, items, "Medications", _DRUG_STYLES, _LAYOUTS, _OFTEN)


def _drugs(chooser: random.Random) -> _Case:
    items = choose_drugs(chooser)
    text = write_drugs(chooser, items)
    name, dose, often = chooser.choice(items)
    true = [f"She takes {name} {dose} {often}.", f"{name.capitalize()} {dose} {often}."]
    return text, true, [f"She takes {name} {a} {b}." for a, b in _mixed(items, name, dose, often)]


def _drugs_zh(chooser: random.Random) -> _Case:
    items = _items(chooser, _DRUGS_ZH, _OFTEN_ZH)
    text = _written(chooser, items, "目前用药", _DRUG_STYLES_ZH, _LAYOUTS_ZH, _OFTEN_ZH)
    name, dose, often = chooser.choice(items)
    true = [f"患者服用{name}{dose}{often}。", f"{name}{dose}，{often}。"]
    return text, true, [f"患者服用{name}{a}{b}。" for a, b in _mixed(items, name, dose, often)]


def _results(chooser: random.Random) -> _Case:
    items = [(name, chooser.choice(values), unit) for name, values, unit in chooser.sample(_TESTS, ITEMS)]
    text = _written(chooser, items, "Results", _TEST_STYLES, _LAYOUTS, {})
    name, value, _ = chooser.choice(items)
    return text, [f"{name} was {value}."], [f"{name} was {other}." for _, other, _ in items if other != value]


def _dated(chooser: random.Random) -> _Case:
    """The same test on three days: a line a day, a sentence, or a table with the days above or beside the values."""
    values = chooser.sample(("3.1", "3.6", "4.2", "4.9", "5.4", "5.9"), len(_DAYS))
    text = chooser.choice(
        (
            "Potassium " + ", ".join(f"{v} on {day}" for v, day in zip(values, _DAYS, strict=True)) + ".",
            "\n".join(f"{day}: potassium {v}" for v, day in zip(values, _DAYS, strict=True)),
            "\n".join(["Date | Potassium", *(f"{day} | {v}" for v, day in zip(values, _DAYS, strict=True))]),
            f"Test | {' | '.join(_DAYS)}\nPotassium | {' | '.join(values)}",
        )
    )
    own, day = chooser.choice([*zip(values, _DAYS, strict=True)])
    return text, [f"Potassium was {own} on {day}."], [f"Potassium was {v} on {day}." for v in values if v != own]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Things of which a list says one thing each. styles: how an item is written; claims: how an answer says it."""

    title: str
    names: tuple[str, ...]
    others: tuple[str, ...]
    styles: tuple[str, ...]
    claims: tuple[str, ...]
    lead: str = ""  # in the table's first row

    def __call__(self, chooser: random.Random) -> _Case:
        items = [*zip(chooser.sample(self.names, 3), chooser.sample(self.others, 3), strict=True)]
        (name, own), *rest = items
        style = chooser.choice(self.styles)
        written = [_capital(style.format(a, b)) for a, b in chooser.sample(items, len(items))]
        comma, semicolon, _, _, lines, marked, numbered, _ = _LAYOUTS
        layouts = [semicolon, lines, marked, numbered, lambda title, items: f"{title}: {'. '.join(items)}."]
        if style != "{0}, {1}":
            layouts.append(comma)
        if self.lead:
            written_rows = [f"{_capital(a)} | {b}" for a, b in chooser.sample(items, len(items))]
            layouts.append(lambda _, __: "\n".join([self.lead, *written_rows]))
        text = chooser.choice(layouts)(self.title, written)
        wrong = [claim.format(name, other) for _, other in rest for claim in self.claims]
        return text, [_capital(claim.format(name, own)) for claim in self.claims], [_capital(claim) for claim in wrong]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_COLONS = ("{0}: {1}", "{0} ({1})", "{0} - {1}")
_PAIRS = {
    "reactions": _Pairs(
        "Allergies",
        ("penicillin", "latex", "aspirin", "codeine", "trimethoprim", "peanuts"),
        ("rash", "anaphylaxis", "wheeze", "nausea", "hives", "itching"),
        (*_COLONS, "{0} causes {1}"),
        ("{0}: {1}.", "{0} causes {1}."),
    ),
    "procedures": _Pairs(
        "Past surgical history",
        ("appendicectomy", "hysterectomy", "coronary stent", "hip replacement", "cataract surgery", "hernia repair"),
        tuple(str(year) for year in range(1995, 2024)),
        ("{0} {1}", "{0} ({1})", "{0} in {1}", "{1}: {0}", "{0}, {1}"),
        ("She had a {0} in {1}.",),
        "Operation | Year",
    ),
    "relatives": _Pairs(
        "Family history",
        ("mother", "father", "brother", "sister"),
        ("breast cancer", "myocardial infarction", "type 2 diabetes", "stroke", "asthma", "glaucoma"),
        (*_COLONS, "{0} had {1}"),
        ("Her {0} had {1}.", "{0}: {1}."),
    ),
    "findings": _Pairs(
        "Investigations",
        ("CT head", "MRI spine", "chest X-ray", "echocardiogram", "abdominal ultrasound", "renal ultrasound"),
        (
            "subdural haematoma",
            "disc prolapse",
            "consolidation",
            "mitral regurgitation",
            "gallstones",
            "pleural effusion",
        ),
        ("{0}: {1}", "{0} - {1}", "{0} showed {1}", "{0} shows {1}"),
        ("{0} showed {1}.", "{0}: {1}."),
        "Investigation | Result",
    ),
    "cultures": _Pairs(
        "Microbiology",
        ("urine culture", "blood culture", "sputum culture", "wound swab"),
        ("Escherichia coli", "Staphylococcus aureus", "Klebsiella pneumoniae", "Pseudomonas aeruginosa"),
        ("{0}: {1}", "{0} - {1}", "{0} grew {1}"),
        ("{0}: {1}.",),
        "Specimen | Organism",
    ),
    "reasons": _Pairs(
        "Medications",
        ("amlodipine", "sertraline", "omeprazole", "levothyroxine", "apixaban", "allopurinol"),
        ("hypertension", "depression", "reflux", "hypothyroidism", "atrial fibrillation", "gout"),
        (*_COLONS, "{0} for {1}", "{1}: {0}"),
        ("She takes {0} for {1}.", "{0} for {1}."),
        "Drug | Indication",
    ),
    "reasons for stopping": _Pairs(
        "Stopped",
        ("ramipril", "metformin", "simvastatin", "aspirin", "ibuprofen"),
        ("cough", "acute kidney injury", "myalgia", "gastrointestinal bleeding", "hyperkalaemia"),
        (*_COLONS, "{0} because of {1}", "{0} due to {1}"),
        ("{0} was stopped because of {1}.",),
        "Stopped | Reason",
    ),
    "courses": _Pairs(
        "Plan",
        ("amoxicillin", "prednisolone", "doxycycline", "omeprazole", "enoxaparin"),
        ("7 days", "5 days", "6 weeks", "8 weeks", "3 months"),
        ("{0} for {1}", "{0} ({1})", "{0} x {1}", "{0}: {1}"),
        ("{0} for {1}.",),
        "Drug | Duration",
    ),
    "routes": _Pairs(
        "Treatment",
        ("ceftriaxone", "metronidazole", "furosemide", "morphine", "hydrocortisone"),
        ("IV", "oral", "SC", "IM"),
        ("{1} {0}", "{0} {1}", "{0} ({1})"),
        ("{0} {1}.", "She was given {1} {0}."),
        "Drug | Route",
    ),
    "days of the week": _Pairs(
        "Medications",
        ("methotrexate", "folic acid", "alendronate", "epoetin"),
        ("Mondays", "Tuesdays", "Fridays", "Sundays"),
        ("{0} on {1}", "{0}: {1}", "{0} ({1})"),
        ("{0} on {1}.", "She takes {0} on {1}."),
        "Drug | Day",
    ),
    "times of day": _Pairs(
        "Medications",
        ("ramipril", "simvastatin", "warfarin", "furosemide", "amitriptyline"),
        ("in the morning", "at night", "in the evening", "at lunchtime", "before breakfast"),
        ("{0} {1}", "{0}: {1}", "{0} ({1})"),
        ("{0} {1}.", "She takes {0} {1}."),
    ),
    "severities": _Pairs(
        "Problems",
        ("COPD", "asthma", "aortic stenosis", "heart failure", "depression", "psoriasis"),
        ("mild", "moderate", "severe"),
        ("{1} {0}", "{0} ({1})", "{0}: {1}"),
        ("She has {1} {0}.",),
        "Problem | Severity",
    ),
    "courses of illness": _Pairs(
        "Problems",
        ("asthma", "gout", "epilepsy", "migraine", "psoriasis", "eczema"),
        ("active", "in remission", "well controlled", "poorly controlled"),
        _COLONS,
        ("{0} is {1}.",),
        "Problem | Status",
    ),
    "examination": _Pairs(
        "Examination",
        ("chest", "abdomen", "calves", "throat", "neck"),
        ("wheeze", "distended", "swollen", "red", "stiff"),
        ("{0}: {1}", "{0} {1}"),
        ("{0}: {1}.",),
        "System | Finding",
    ),
    "tests to repeat": _Pairs(
        "Plan",
        ("U&E", "ECG", "echocardiogram", "HbA1c", "chest X-ray"),
        ("2 weeks", "3 months", "6 months", "1 year"),
        ("repeat {0} in {1}",),
        ("Repeat {0} in {1}.",),
    ),
    "appointments": _Pairs(
        "Appointments",
        ("cardiology", "renal clinic", "diabetes clinic", "physiotherapy", "dermatology"),
        ("3 May 2026", "12 June 2026", "9 July 2026", "21 August 2026"),
        ("{0} on {1}", "{0}: {1}", "{0} ({1})", "{1}: {0}"),
        ("{0} on {1}.",),
        "Clinic | Date",
    ),
    "vaccines": _Pairs(
        "Immunisations",
        ("influenza", "pneumococcal", "tetanus", "hepatitis B", "shingles"),
        ("12 Oct 2024", "3 May 2022", "9 July 2019", "2015"),
        ("{0} {1}", "{0}: {1}", "{0} ({1})"),
        ("{0} {1}.",),
        "Vaccine | Given",
    ),
    "scores": _Pairs(
        "Scores",
        ("GCS", "NEWS", "CHA2DS2-VASc", "HAS-BLED", "MMSE", "Waterlow"),
        tuple(str(number) for number in range(1, 15)),
        ("{0} {1}", "{0}: {1}", "{0} score {1}", "{0} = {1}"),
        ("{0} was {1}.",),
        "Score | Value",
    ),
}


def _answers(chooser: random.Random) -> _Case:
    """Symptoms of which a form says that they are there or not."""
    first, second, *others = chooser.sample(_SYMPTOMS, ITEMS)
    answers = [(name, name in (first, second)) for name in chooser.sample((first, second, *others), ITEMS)]
    yes, no = chooser.choice((("yes", "no"), ("Yes", "No"), ("present", "none"), ("yes", "nil")))
    text = chooser.choice(
        (
            "\n".join(f"{name.capitalize()}: {yes if has else no}" for name, has in answers),
            "\n".join(f"- {name.capitalize()}: {yes if has else no}" for name, has in answers),
            "\n".join(["Symptom | Answer", *(f"{name.capitalize()} | {yes if has else no}" for name, has in answers)]),
            "; ".join(f"{name.capitalize()}: {yes if has else no}" for name, has in answers) + ".",
            ", ".join(f"{name} {'+' if has else '-'}" for name, has in answers),
        )
    )
    return text, [f"She has {first}."], [f"She has {others[0]}.", f"She has {others[1]}.", f"She has no {second}."]


def _items(
    chooser: random.Random, drugs: Sequence[tuple[str, tuple[str, ...]]], often: dict[str, tuple[str, ...]]
) -> list[Item]:
    return [(name, chooser.choice(doses), chooser.choice([*often])) for name, doses in chooser.sample(drugs, ITEMS)]


def _written(
    chooser: random.Random,
    items: Sequence[Item],
    title: str,
    styles: Sequence[str],
    layouts: Sequence[Callable[[str, list[str]], str]],
    often: dict[str, tuple[str, ...]],
) -> str:
    """The list in a style and a layout by chance, or as a table."""
    words = [(name, what, chooser.choice(often[how]) if how in often else how) for name, what, how in items]
    if chooser.random() < 1 / (1 + len(layouts)):
        return "\n".join([f"{title} | 1 | 2", *(" | ".join(item).rstrip(" |") for item in words)])
    style = chooser.choice(styles)
    return chooser.choice(layouts)(title, [style.format(*item).strip() for item in words])


def _mixed(items: Sequence[Item], name: str, dose: str, often: str) -> Iterator[tuple[str, str]]:
    """(dose, how often), one of them another item's."""
    for other, its_dose, its_often in items:
        if other != name:
            yield from ((a, b) for a, b in ((its_dose, often), (dose, its_often)) if (a, b) != (dose, often))


_KINDS: dict[str, Callable[[random.Random], _Case]] = {
    "drugs": _drugs,
    "drugs, Chinese": _drugs_zh,
    "results": _results,
    "results of days": _dated,
    "answers of a form": _answers,
    **_PAIRS,
}

FIGURE = Figure(
    name="lists",
    title="Lists of drugs and results",
    data=(
        "Lists of drugs, results, answers and of eighteen kinds of pairs (reactions, findings, routes, days, reasons "
        "…) in several styles and layouts, with commas and without, made by chance; a claim takes the dose, the value, "
        "the day, the finding or the answer of its own item, or of another. Errors were looked at."
    ),
    peer="none published",
    run=run,
)
