"""Invents a patient's record: documents of many layouts, line by line, each line with the facts that it states.

A fact is a key (kind, entity), e.g. ("dose", "apixaban"); `asks.py` has its questions. Every person and value is
made up from a seeded generator. Knows nothing of prompts, tokens or files.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from model.train import topics
from model.train import wording as w

Key = tuple[str, str]
CANONICAL = {"Hemoglobin": "Haemoglobin", "Hemoglobin A1c": "HbA1c", "Pulse": "Heart rate"}
_AS_IS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
_SYLLABLE_LIST = (
    "ba be bi co da de di fo ga ke la le lo ma me mi na ne no pa pe ra re ri sa se so ta te ti to va ve xa zo"
)
_SYLLABLES = tuple(_SYLLABLE_LIST.split())
_ENDINGS = ("pril", "sartan", "mab", "tinib", "statin", "olol", "azole", "cillin", "gliptin", "amide", "oxin", "ine")


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence, list item or table row as it stands in the document, and the facts it states."""

    text: str
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """A stretch of one document page: what becomes a passage. joiner stands between its lines."""

    document: str
    page: int
    lines: tuple[Line, ...]
    joiner: str
    width: int = 0  # columns at which the page wraps its lines; 0: it does not

    @property
    def text(self) -> str:
        text = self.joiner.join(line.text for line in self.lines)
        return "\n".join(textwrap.fill(part, self.width, **_AS_IS) for part in text.split("\n")) if self.width else text


@dataclass(slots=True)
class Person:
    """An invented patient and the words that stand for them in a template."""

    rng: random.Random
    sex: str = ""
    name: str = ""
    words: dict[str, str] = field(default_factory=dict)
    today: date = date(2025, 1, 1)
    date_style: int = 0

    def __post_init__(self) -> None:
        rng = self.rng
        self.sex = rng.choice(("female", "male"))
        he, him, his, himself = (
            ("she", "her", "her", "herself") if self.sex == "female" else ("he", "him", "his", "himself")
        )
        self.words = {"he": he, "him": him, "his": his, "himself": himself, "He": he.title(), "His": his.title()}
        first, last = rng.choice(w.FIRST_NAMES), rng.choice(w.LAST_NAMES)
        self.name = rng.choice(
            (f"{'Mrs' if self.sex == 'female' else 'Mr'} {last}", f"{first} {last}", "The patient", self.words["He"])
        )
        self.today = date(rng.randint(2015, 2027), 1, 1) + timedelta(rng.randrange(365))
        self.date_style = rng.randrange(7)

    def day(self, max_days_ago: int = 400) -> date:
        return self.today - timedelta(self.rng.randrange(max_days_ago))

    def write(self, day: date) -> str:
        """A date as this record writes it."""
        return (
            f"{day.day} {day:%B %Y}", day.isoformat(), f"{day:%d/%m/%Y}", f"{day.day} {day:%b %Y}",
            f"{day.day} {day:%B}",
            f"{day:%B} {day.day}, {day.year}", f"{day:%d-%b-%Y}",
        )[self.date_style]  # fmt: skip

    def fill(self, template: str, **values: object) -> str:
        return template.format(**self.words, **values)


def invent_drug(rng: random.Random) -> tuple[str, str, str]:
    """A drug, its dose and what it is for; one in four is a name that no pharmacy knows, so that it must be copied."""
    if rng.random() < 0.25:
        name = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3))) + rng.choice(_ENDINGS)
        amount = rng.choice((1, 2, 3, 5, 7.5, 12, 15, 35, 45, 60, 120, 240, 350))
        dose = f"{amount:g} {rng.choice(('mg', 'micrograms', 'units', 'mg'))}"
        return name, dose, rng.choice(w.PROBLEMS)
    name, doses, uses = rng.choice(w.DRUGS)
    return name, rng.choice(doses), rng.choice(uses)


def number(rng: random.Random, low: float, high: float, decimals: int) -> str:
    value = rng.uniform(low, high)
    text = f"{value:.{decimals}f}"
    return f"{int(text):,}" if decimals == 0 and len(text) > 3 and rng.random() < 0.6 else text


# --- lines about one fact ---------------------------------------------------------------------------------------


def lab_lines(person: Person, is_prose: bool) -> list[Line]:
    """One test, measured once or a few times."""
    rng = person.rng
    name, unit, low, high, decimals, _ = rng.choice(w.LABS)
    key = CANONICAL.get(name, name)
    days = sorted(person.day() for _ in range(rng.choice((1, 1, 1, 2, 3))))
    style, has_range = rng.randrange(7), rng.random() < 0.6
    lines = []
    for day in days:
        value, when = number(rng, low, high, decimals), person.write(day)
        span = f"{low:g}–{high / 2:g}"
        keys = (("lab", key), (f"lab_on {when}", key), (f"lab_month {day:%B %Y}", key))
        if is_prose:
            text = (
                f"{name} was {value} {unit} on {when}.", f"On {when} the {name_in_sentence(name)} was {value} {unit}.",
                f"{person.words['His']} {name_in_sentence(name)} was {value} {unit} on {when}.",
                f"The {name_in_sentence(name)} of {when} came back at {value} {unit}.",
                f"{name} {value} {unit} ({when}).",
                f"Blood tests on {when} showed a {name_in_sentence(name)} of {value} {unit}.",
                f"{name_in_sentence(name).capitalize() if name.islower() else name} rose to {value} {unit} on {when}.",
            )[style]  # fmt: skip
        else:
            reference = (
                rng.choice((f" ({span})", f" (reference {span} {unit})", f" [{span}]", f" ref {span}"))
                if has_range
                else ""
            )
            text = (
                f"{when} {name} {value} {unit}{reference}", f"{name} {value} {unit}{reference} {when}",
                f"{name}: {value} {unit}{reference}, {when}", f"{name} | {value} {unit} | {when}",
                f"{name} = {value} {unit}{reference} on {when}",
                f"Observation: {name}, {value} {unit}{reference}, {when}, final",
                f"| {when} | {name} | {value} | {unit} |",
            )[style]  # fmt: skip
        lines.append(Line(text, keys))
    return lines


def name_in_sentence(name: str) -> str:
    """ "Creatinine" -> "creatinine", but "HbA1c", "INR" and "Free T4" as they are."""
    return name[0].lower() + name[1:] if name[1:].islower() or (" " in name and name.split()[0][1:].islower()) else name


def undated_lab_line(person: Person, is_prose: bool) -> Line:
    rng = person.rng
    name, unit, low, high, decimals, _ = rng.choice(w.LABS)
    value, key = number(rng, low, high, decimals), ("lab", CANONICAL.get(name, name))
    if is_prose:
        when = rng.choice(("on admission", "at discharge", "today", "in clinic", "last week"))
        return Line(
            rng.choice(
                (f"{name} was {value} {unit} {when}.", f"The {name_in_sentence(name)} was {value} {unit} {when}.")
            ),
            (key,),
        )
    reference = rng.choice(
        ("", f" ({low:g}–{high / 2:g})", f" ({low:g} - {high / 2:g}) H", " H", " (low)", f" ref {low:g}-{high / 2:g}")
    )
    return Line(
        rng.choice(
            (f"{name} {value} {unit}{reference}", f"{name}: {value} {unit}{reference}", f"{name} | {value} | {unit}")
        ),
        (key,),
    )


def lab_series_line(person: Person) -> Line:
    """One test at several times in one sentence."""
    rng = person.rng
    name, unit, low, high, decimals, _ = rng.choice(w.LABS)
    times = ["on admission", f"on {person.write(person.day())}", "at discharge", "three hours later"]
    parts = [f"{number(rng, low, high, decimals)} {unit} {when}" for when in rng.sample(times, rng.choice((2, 2, 3)))]
    text = f"{name} was {', '.join(parts[:-1])} and {parts[-1]}."
    return Line(text, (("lab", CANONICAL.get(name, name)),))


def lab_panel_line(person: Person) -> Line:
    """Several tests in one sentence."""
    rng = person.rng
    rows = rng.sample(w.LABS, rng.randint(2, 4))
    parts = [f"{name} {number(rng, low, high, decimals)} {unit}" for name, unit, low, high, decimals, _ in rows]
    text = rng.choice(("{}.", "Bloods: {}.", "Results: {}.", "Investigations: {}.")).format(", ".join(parts))
    return Line(text, tuple(("lab", CANONICAL.get(row[0], row[0])) for row in rows))


def vital_panel_line(person: Person) -> Line:
    lines = {
        line.keys[0]: line.text.rstrip(".")
        for line in (vital_line(person, False) for _ in range(4))
        if "|" not in line.text
    }
    bare = [text.lstrip("- ").replace(":", "") for text in lines.values()]
    bare = [bare[0], *(name_in_sentence(text) for text in bare[1:])] if bare else []
    return Line(f"{', '.join(bare)}.", tuple(lines)) if bare else vital_line(person, True)


def table_drug_line(person: Person) -> Line:
    """A row of a table of medicines with what was done and why."""
    rng = person.rng
    name, dose, use = invent_drug(rng)
    often, why, bar = rng.choice(w.FREQUENCIES), rng.choice(w.STOP_REASONS), rng.choice((" | ", " "))
    title, row = name[0].upper() + name[1:], [f"{dose} {often}"]
    done = rng.choice(("Continued", "Continued", "Started", "Stopped", "Withheld", "Increased", "Reduced"))
    keys: list[Key] = [("dose", name)]
    if done in ("Stopped", "Withheld"):
        keys += [("stopped", name), ("changes", "")]
        row += [done, why[0].upper() + why[1:]]
    elif done == "Started":
        keys += [("started", name), ("indication", name), ("changes", ""), ("medications", "")]
        row += [done, use[0].upper() + use[1:]]
    elif done == "Continued":
        keys += [("medications", "")]
        row += [done]
    else:
        keys += [("changed", name), ("changes", ""), ("medications", "")]
        row += [done, f"From {invent_drug(rng)[1]}"]
    return Line(bar.join((title, *row)), tuple(keys))


def resource_lines(person: Person) -> list[Line]:
    """What a FHIR resource reads like: its fields in a row."""
    rng = person.rng
    draw = rng.random()
    day = person.day().isoformat()
    if draw < 0.6:
        name, unit, low, high, decimals, _ = rng.choice(w.LABS)
        key, lines = CANONICAL.get(name, name), []
        for day in sorted({person.day().isoformat() for _ in range(rng.choice((1, 1, 2, 3)))}):
            mark = rng.choice(("interpretation: High; ", "interpretation: Normal; ", "interpretation: Low; ", ""))
            span = rng.choice(
                (f"{low:g} {unit} to {high / 2:g} {unit}", f"at most {high / 2:g} {unit}", f"at least {low:g} {unit}")
            )
            span = rng.choice((f"reference range: {span}; ", f"reference range: {span}; ", ""))
            value = number(rng, low, high, decimals)
            text = f"Observation: {name}; {value} {unit}; {mark}{span}effective: {day}; status: final"
            month = f"{date.fromisoformat(day):%B %Y}"
            written = person.write(date.fromisoformat(day))
            lines.append(
                Line(
                    text,
                    (("lab", key), (f"lab_on {day}", key), (f"lab_on {written}", key), (f"lab_month {month}", key)),
                )
            )
        return lines
    if draw < 0.75:
        name, dose, use = invent_drug(rng)
        title, often = name[0].upper() + name[1:], rng.choice(w.FREQUENCIES)
        kind = rng.choice(("Medication statement", "Medication request"))
        reason = rng.choice(("", f"; reason: {use}"))
        keys = (("dose", name), ("medications", "")) + ((("indication", name),) if reason else ())
        return [
            Line(f"{kind}: {title} {dose}; status: active; dosage: {dose} {often}{reason}; authored on: {day}", keys)
        ]
    if draw < 0.88:
        problem = rng.choice(w.PROBLEMS)
        title = problem[0].upper() + problem[1:]
        return [
            Line(f"Condition: {title}; clinical status: active; onset: {day}", (("problems", ""), ("problem", problem)))
        ]
    allergen, reaction = rng.choice(w.ALLERGENS), rng.choice(w.REACTIONS)
    title = allergen[0].upper() + allergen[1:]
    text = rng.choice(
        (
            f"Allergy intolerance: {title}; reaction: manifestation: {reaction}",
            f"Allergy intolerance: {title}; reaction: {reaction}; status: active",
        )
    )
    return [Line(text, (("allergies", ""), ("reaction", allergen)))]


def vital_line(person: Person, is_prose: bool) -> Line:
    rng = person.rng
    name, template, _ = rng.choice(w.VITALS)
    values = {
        "sys": rng.randint(88, 196), "dia": rng.randint(48, 108), "pulse": rng.randint(42, 138),
        "resp": rng.randint(11, 34),
        "sat": rng.randint(84, 99), "temp": f"{rng.uniform(35.8, 39.9):.1f}", "weight": f"{rng.uniform(44, 128):.1f}",
        "height": rng.randint(148, 196), "bmi": f"{rng.uniform(17, 44):.1f}", "qtc": rng.randint(380, 520),
        "score": rng.randint(0, 26), "pain": rng.randint(0, 10), "ef": rng.randint(18, 68),
    }  # fmt: skip
    value, key = template.format(**values), ("vital", CANONICAL.get(name, name))
    lower = name_in_sentence(name)
    if not is_prose:
        return Line(
            rng.choice((f"{name}: {value}", f"{name} {value}", f"- {name} {value}", f"{name} | {value}")), (key,)
        )
    when = rng.choice(("on arrival", "at discharge", "today", "in clinic", f"on {person.write(person.day())}"))
    return Line(
        rng.choice(
            (
                f"{name} was {value}.",
                f"The {lower} was {value} {when}.",
                f"{person.words['His']} {lower} was {value}.",
                f"{name} {value}.",
            )
        ),
        (key,),
    )


def drug_line(person: Person, is_prose: bool) -> Line:
    rng = person.rng
    name, dose, use = invent_drug(rng)
    often, form, route = rng.choice(w.FREQUENCIES), rng.choice(w.FORMS), rng.choice(w.ROUTES)
    title, route = name[0].upper() + name[1:], f" {route}" if route else ""
    keys: list[Key] = [("dose", name), ("medications", "")]
    plain: tuple[str, ...]
    with_use: tuple[str, ...]
    if is_prose:
        plain = (
            f"{person.words['He']} takes {name} {dose}{route} {often}.", f"{title} {dose} {often} was continued.",
            f"{person.name} is on {name} {dose} {often}.", f"{title} was prescribed at {dose} {often}.",
            f"{person.words['He']} remains on {name} {dose}{route} {often}.",
        )  # fmt: skip
        with_use = (
            f"{person.words['He']} takes {name} {dose} {often} for {use}.",
            f"{title} {dose}{route} {often} is given for {use}.",
        )
    else:
        form = f" {form}" if form else ""
        plain = (
            f"{title} {dose}{form} {often}", f"- {title} {dose} {often}", f"{title} {dose}{form}, {often}",
            f"{title} | {dose} | {often}",
            f"MedicationStatement: {title} {dose}, {often}, active", f"• {title} {dose}{form}{route} {often}",
            f"{title} {dose} {often} Continued",
        )  # fmt: skip
        with_use = (
            f"{title} {dose} {often} for {use}",
            f"{title} {dose}{form} | {often} | {use}",
            f"{title} {dose} {often} ({use})",
        )
    text = rng.choice(plain + with_use)
    if text in with_use:
        keys.append(("indication", name))
    return Line(text, tuple(keys))


def drug_paragraph(person: Person) -> Line:
    """Several drugs in one sentence."""
    drugs = {name: dose for name, dose, _ in (invent_drug(person.rng) for _ in range(person.rng.randint(3, 5)))}
    listed = [f"{name} {dose} {person.rng.choice(w.FREQUENCIES)}" for name, dose in drugs.items()]
    joined = person.rng.choice((", ".join(listed), f"{', '.join(listed[:-1])} and {listed[-1]}", "; ".join(listed)))
    lead = person.rng.choice(
        (
            "Current medication: {}.",
            "Medications on discharge: {}.",
            "{}.",
            "Medicines: {}.",
            "The regular medicines are {}.",
        )
    )
    text = lead.format(joined)
    return Line(text[0].upper() + text[1:], (("medications", ""), *(("dose", name) for name in drugs)))


def change_line(person: Person, is_prose: bool) -> Line:
    """A drug started, stopped, withheld or changed."""
    rng = person.rng
    name, dose, use = invent_drug(rng)
    title, when, why, often = (
        name[0].upper() + name[1:],
        person.write(person.day()),
        rng.choice(w.STOP_REASONS),
        rng.choice(w.FREQUENCIES),
    )
    action = rng.choice(("started", "stopped", "stopped", "changed"))
    if action == "started":
        keys: tuple[Key, ...] = (("started", name), ("dose", name), ("indication", name), ("changes", ""))
        text = rng.choice((
            f"{title} {dose} {often} was started on {when} for {use}.",
            f"On {when} we started {name} {dose} {often} for {use}.",
            f"{title} was started at {dose} {often} on {when} because of {use}.",
        ))  # fmt: skip
    elif action == "stopped":
        keys = (("stopped", name), ("changes", ""))
        verb = rng.choice(("stopped", "withheld", "discontinued"))
        text = rng.choice((
            f"{title} was {verb} on {when} because of {why}.", f"{title} {dose} was {verb} because of {why}.",
            f"{title} was {verb} in {rng.randint(2012, 2027)} because of {why}.",
            f"Because of {why}, {name} was {verb} on {when}.",
            f"We {verb} {name} on {when} due to {why}.",
        ))  # fmt: skip
    else:
        _, other, _ = invent_drug(rng)
        keys = (("changed", name), ("dose", name), ("changes", ""))
        verb = rng.choice(("increased", "reduced", "changed"))
        text = rng.choice((
            f"{title} was {verb} from {dose} to {other} {often} on {when}.",
            f"The dose of {name} was {verb} from {dose} to {other} because of {why}.",
            f"{title} was {verb} to {other} {often} on {when}.",
        ))  # fmt: skip
    return Line(text if is_prose else text.rstrip("."), keys)


def allergy_lines(person: Person, is_prose: bool) -> list[Line]:
    rng = person.rng
    if rng.random() < 0.15:
        return [
            Line(
                rng.choice(("No known drug allergies.", "Allergies: none known.", "NKDA.", "No known allergies.")),
                (("allergies", ""),),
            )
        ]
    lines = []
    for allergen in rng.sample(w.ALLERGENS, rng.choice((1, 1, 2))):
        reaction, year = rng.choice(w.REACTIONS), rng.randint(1990, 2026)
        keys = (("allergies", ""), ("reaction", allergen))
        title = allergen[0].upper() + allergen[1:]
        prose = (
            f"{person.words['He']} is allergic to {allergen}, which caused {reaction}.",
            f"{title} caused {reaction} in {year}.",
            f"{title}: {reaction} in {year}.", f"Allergies: {allergen} ({reaction}).",
            f"{person.words['He']} has an allergy to {allergen} ({reaction}).",
        )  # fmt: skip
        rows = (
            f"Allergy: {allergen} ({reaction}, {year})", f"{title} - {reaction}",
            f"AllergyIntolerance: {title}, reaction {reaction}, active",
            f"{title} | {reaction} | {year}", f"Allergies: {title} ({reaction})", f"- {title}: {reaction}",
        )  # fmt: skip
        lines.append(Line(rng.choice(prose if is_prose else rows), keys))
    return lines


def problem_lines(person: Person, is_prose: bool) -> list[Line]:
    rng = person.rng
    lines = []
    problems = rng.sample(w.PROBLEMS, rng.randint(1, 4))
    if is_prose and rng.random() < 0.4:
        lead = rng.choice(
            ("{He} has a history of {}.", "Past medical history: {}.", "Background: {}.", "{He} is known to have {}.")
        )
        joined = ", ".join(problems[:-1]) + (" and " if problems[:-1] else "") + problems[-1]
        return [Line(lead.format(joined, **person.words), (("problems", ""), *(("problem", p) for p in problems)))]
    for index, problem in enumerate(problems, 1):
        year, title = rng.randint(1985, 2026), problem[0].upper() + problem[1:]
        keys = (("problems", ""), ("problem", problem))
        prose = (
            f"{title} was diagnosed in {year}.",
            f"{person.words['He']} has had {problem} since {year}.",
            f"There is a history of {problem} since {year}.",
        )
        rows = (
            f"{index}. {title}, since {year}", f"{title} ({year})", f"- {title}",
            f"Condition: {title}, onset {year}, active", f"{title} | {year} | active",
        )  # fmt: skip
        lines.append(Line(rng.choice(prose if is_prose else rows), keys))
    return lines


def admission_lines(person: Person) -> list[Line]:
    rng = person.rng
    start = person.day()
    arrived, left = person.write(start), person.write(start + timedelta(rng.randint(1, 14)))
    complaint, diagnosis = rng.choice(w.COMPLAINTS), rng.choice(w.DIAGNOSES)
    ward, hospital = rng.choice(w.WARDS), rng.choice(w.HOSPITALS)
    both: tuple[Key, ...] = (("admission", ""), ("admission_date", ""))
    lines = [
        rng.choice((
            Line(f"{person.name} was admitted on {arrived} with {complaint}.", both),
            Line(f"{person.name} was admitted to {hospital} with {complaint}.", (("admission", ""),)),
            Line(f"{person.name} presented on {arrived} with {complaint} and was admitted to {ward}.", both),
            Line(f"Reason for admission: {complaint}.", (("admission", ""),)),
            Line(f"Presenting complaint: {complaint}.", (("admission", ""),)),
            Line(f"{person.words['He']} came to the emergency department with {complaint}.", (("admission", ""),)),
        )),
        rng.choice((
            Line(f"The diagnosis was {diagnosis}.", (("diagnosis", ""),)), Line(f"Main diagnosis: {diagnosis}.",
            (("diagnosis", ""),)),
            Line(f"{person.words['He']} was found to have {diagnosis}.", (("diagnosis", ""),)),
            Line(f"Discharge diagnosis: {diagnosis}.", (("diagnosis", ""),)), Line(f"This was due to {diagnosis}.",
                (("diagnosis", ""),)),
        )),
    ]  # fmt: skip
    if rng.random() < 0.6:
        lines.append(
            Line(
                rng.choice(
                    (
                        f"{person.words['He']} was discharged home on {left}.",
                        f"Discharged: {left}.",
                        f"{person.words['He']} went home on {left}.",
                    )
                ),
                (("discharge_date", ""),),
            )
        )
    return lines


def imaging_line(person: Person) -> Line:
    rng = person.rng
    name, findings = rng.choice(w.IMAGING)
    finding, when = rng.choice(findings), person.write(person.day())
    lower = name_in_sentence(name)
    text = rng.choice((
        f"{name} on {when} showed {finding}.", f"{name}: {finding}.", f"The {lower} showed {finding}.",
        f"{name} ({when}): {finding}.",
        f"A {lower} was done on {when} and showed {finding}.",
    ))  # fmt: skip
    return Line(text, (("imaging", name),))


def procedure_line(person: Person) -> Line:
    rng = person.rng
    name, year = rng.choice(w.PROCEDURES), rng.choice((str(rng.randint(1980, 2026)), person.write(person.day())))
    text = rng.choice(
        (
            f"{person.words['He']} had a {name} in {year}.",
            f"Past surgery: {name} ({year}).",
            f"{name[0].upper() + name[1:]} in {year}.",
            f"Status post {name}, {year}.",
        )
    )
    return Line(text, (("procedure", name), ("surgery", "")))


def followup_line(person: Person) -> Line:
    rng = person.rng
    clinic, when, weeks = (
        rng.choice(w.CLINICS),
        person.write(person.today + timedelta(rng.randint(7, 120))),
        rng.randint(1, 12),
    )
    clock = f"{rng.randint(8, 16):02d}:{rng.choice((0, 15, 30, 45)):02d}"
    text = rng.choice((
        f"Follow-up in {clinic} in {weeks} weeks.", f"{person.words['He']} will be seen in {clinic} on {when}.",
        f"Review by {clinic} on {when} at {clock}.",
        f"Next appointment: {clinic}, {when} at {clock}.", f"An appointment with {clinic} has been made for {when}.",
    ))  # fmt: skip
    return Line(text.replace("by the GP surgery", "at the GP surgery"), (("followup", ""),))


def plan_line(person: Person) -> Line:
    rng = person.rng
    name, dose, _ = invent_drug(rng)
    action = rng.choice(w.ACTIONS).format(n=rng.randint(2, 9), drug=name, dose=dose)
    text = rng.choice(
        ("Please {}.", "GP to {}.", "The GP is asked to {}.", "Plan: {}.", "Action for the practice: {}.")
    ).format(action)
    return Line(text, (("plan", ""),))


def advice_line(person: Person) -> Line:
    rng = person.rng
    advice = person.fill(rng.choice(w.ADVICE), n=rng.randint(2, 9), drug=invent_drug(rng)[0])
    return Line(
        person.fill(rng.choice(("{He} was advised {a}.", "{He} was told {a}.", "We advised {him} {a}.")), a=advice),
        (("advice", ""),),
    )


def background_line(person: Person) -> Line:
    rng = person.rng
    relative = rng.choice(w.RELATIVES)
    kind, templates = rng.choice(
        (("smoking", w.SMOKING), ("alcohol", w.ALCOHOL), ("social", w.LIVING), ("family", w.FAMILY))
    )
    text = person.fill(
        rng.choice(templates), n=rng.randint(2, 40), year=rng.randint(1980, 2024), age=rng.randint(38, 82),
        relative=relative,
        disease=rng.choice(w.PROBLEMS), job=rng.choice(w.JOBS), aid=rng.choice(w.AIDS),
    )  # fmt: skip
    return Line(text[0].upper() + text[1:], ((kind, ""),))


def vaccine_line(person: Person) -> Line:
    name, when = person.rng.choice(w.VACCINES), person.write(person.day(2000))
    text = person.rng.choice(
        (
            f"The {name} vaccine was given on {when}.",
            f"Immunisation: {name}, {when}.",
            f"{name[0].upper() + name[1:]} vaccine {when}.",
        )
    )
    return Line(text, (("vaccine", name),))


def identity_line(person: Person) -> Line:
    rng = person.rng
    month = rng.choice(("January", "March", "May", "July", "September", "November"))
    born = f"{rng.randint(1, 28)} {month} {rng.randint(1930, 2005)}"
    doctor = f"Dr {rng.choice(w.FIRST_NAMES)} {rng.choice(w.LAST_NAMES)}"
    return rng.choice((
        Line(f"Date of birth: {born}.", (("born", ""),)),
            Line(f"Born {born}, record number {rng.randint(10000, 999999)}.", (("born", ""),)),
        Line(f"Consultant: {doctor}.", (("consultant", ""),)), Line(f"Seen by {doctor} at {rng.choice(w.HOSPITALS)}.",
            (("consultant", ""),)),
    ))  # fmt: skip


def status_line(person: Person) -> Line:
    rng = person.rng
    return rng.choice((
        Line(person.fill("{He} wishes for full active treatment, including resuscitation."), (("resuscitation", ""),)),
        Line(f"A do-not-resuscitate order was signed on {person.write(person.day())}.", (("resuscitation", ""),)),
        Line(person.fill("{He} has a pacemaker since {year}.", year=rng.randint(2005, 2025)), (("device", ""),)),
        Line(person.fill("{He} follows a low-potassium diet."), (("diet", ""),)),
        Line(f"Blood group {rng.choice(('A positive', 'O negative', 'B positive', 'AB positive', 'O positive'))}.",
        (("bloodgroup", ""),)),
        Line(person.fill("{He} has lost {n} kg in {m} months.", n=rng.randint(3, 18), m=rng.randint(2, 8)),
        (("weightloss", ""),)),
        Line(person.fill("{He} returned from {place} {n} days ago.", place=rng.choice(("Kenya", "Thailand", "Brazil",
        "Spain", "India")), n=rng.randint(3, 30)), (("travel", ""),)),
        Line(person.fill("{He} sleeps {n} hours a night.", n=rng.randint(3, 9)), (("sleep", ""),)),
    ))  # fmt: skip


def topic_line(person: Person) -> Line:
    """A line on one of the topics."""
    return write_topic(person, person.rng.randrange(len(topics.load_topics("en"))))


def write_topic(person: Person, number: int) -> Line:
    slots = topics.english_slots(person.rng, person.words, lambda: person.write(person.day()))
    text = topics.fill(person.rng.choice(topics.load_topics("en")[number].say), person.rng, slots)
    return Line(text[0].upper() + text[1:], (topics.key_of(number),))


# --- stretches of documents -------------------------------------------------------------------------------------


def write_sheet(person: Person, max_lines: int) -> Sheet:
    """A stretch of an invented document, of at most about max_lines lines."""
    rng = person.rng
    kind = rng.choices(list(_LAYOUTS), weights=(4, 4, 3, 3, 2, 2, 2, 3))[0]
    name = rng.choice(w.DOCUMENTS[kind]) + rng.choice(
        ("", "", f"-{person.today.year}", f" {person.write(person.today)}", "_2")
    )
    document = name.replace("/", "-") + rng.choice(w.EXTENSIONS[kind])
    lines, joiner = _LAYOUTS[kind](person, max_lines)
    is_wrapped = kind in ("letter", "note", "imaging") and rng.random() < 0.5
    width = rng.randint(60, 130) if is_wrapped else 0
    return Sheet(document, rng.choice((1, 1, 1, 2, 2, 3, 4, 7, 12)), tuple(lines), joiner, width)


Maker = Callable[[Person], Line]
PROSE: tuple[Maker, ...] = (
    lambda p: undated_lab_line(p, True), lambda p: vital_line(p, True), lambda p: drug_line(p, True), drug_paragraph,
    lambda p: change_line(p, True), lambda p: change_line(p, True),
        imaging_line, procedure_line, followup_line, plan_line,
    advice_line, background_line, background_line, vaccine_line, identity_line, status_line,
)  # fmt: skip


def _letter(person: Person, max_lines: int) -> tuple[list[Line], str]:
    rng = person.rng
    lines: list[Line] = []
    if rng.random() < 0.5:
        lines += admission_lines(person)
    while len(lines) < max_lines:
        draw = rng.random()
        if draw < 0.12:
            lines += lab_lines(person, True)
        elif draw < 0.15:
            lines.append(rng.choice((lab_series_line, lab_panel_line, vital_panel_line))(person))
        elif draw < 0.25:
            lines += problem_lines(person, True)
        elif draw < 0.32:
            lines += allergy_lines(person, True)
        elif draw < 0.45:
            lines.append(Line(rng.choice(w.FILLERS)))
        elif draw < 0.75:
            lines.append(topic_line(person))
        else:
            lines.append(rng.choice(PROSE)(person))
    return join_some(rng, lines[: max_lines + 2], 0.12), " "


def join_some(rng: random.Random, lines: Sequence[Line], share: float) -> list[Line]:
    """Some neighbours made one sentence that states what both did, as people write."""
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if last is not None and line.keys and last.text.endswith(".") and len(last.text) < 90 and rng.random() < share:
            link = rng.choice(("; ", ", and ", ", "))
            joined[-1] = Line(last.text[:-1] + link + name_in_sentence(line.text), (*last.keys, *line.keys))
        else:
            joined.append(line)
    return joined


def _note(person: Person, max_lines: int) -> tuple[list[Line], str]:
    """Prose under headings, a line each."""
    lines, _ = _letter(person, max_lines)
    headings = (
        "History",
        "Examination",
        "Assessment",
        "Plan",
        "Background",
        "Investigations",
        "PLAN",
        "HISTORY OF PRESENT ILLNESS",
    )
    mark = person.rng.choice(("", "", "# ", "## "))
    for heading in person.rng.sample(headings, min(len(lines), person.rng.randint(1, 3))):
        lines.insert(person.rng.randrange(len(lines)), Line(mark + heading))
    return lines, "\n"


def _labs(person: Person, max_lines: int) -> tuple[list[Line], str]:
    lines = [
        Line(
            person.rng.choice(
                (
                    "Laboratory results",
                    "Biochemistry",
                    f"Blood results, collected {person.write(person.day())}",
                    "Test Result Unit Reference",
                )
            )
        )
    ]
    while len(lines) < max_lines:
        lines += lab_lines(person, False) if person.rng.random() < 0.5 else [undated_lab_line(person, False)]
    return lines, "\n"


def _medications(person: Person, max_lines: int) -> tuple[list[Line], str]:
    rng = person.rng
    lines = [
        Line(
            rng.choice(
                (
                    "Medication list",
                    "Current medications",
                    "Medicine Dose Frequency",
                    "Repeat medicines",
                    "Medicines on discharge",
                )
            )
        )
    ]
    maker = table_drug_line if rng.random() < 0.4 else lambda p: drug_line(p, False)
    lines += [maker(person) for _ in range(rng.randint(2, max(3, min(6, max_lines))))]
    if rng.random() < 0.5:
        lines += allergy_lines(person, False)
    if rng.random() < 0.5:
        lines.append(change_line(person, False))
    return lines, "\n"


def _fhir(person: Person, max_lines: int) -> tuple[list[Line], str]:
    rows: list[Line] = [Line("# Observations")] if person.rng.random() < 0.3 else []
    is_export = person.rng.random() < 0.6
    while len(rows) < max_lines:
        if is_export:
            rows += resource_lines(person)
            continue
        rows += person.rng.choice((lambda: lab_lines(person, False), lambda: [drug_line(person, False)],
            lambda: problem_lines(person, False),
                                   lambda: allergy_lines(person, False),
                                       lambda: [vital_line(person, False)]))()  # fmt: skip
    return rows, "\n"


def _summary(person: Person, max_lines: int) -> tuple[list[Line], str]:
    lines = [Line("Problems"), *problem_lines(person, False), Line("Allergies"), *allergy_lines(person, False)]
    while len(lines) < max_lines:
        lines.append(
            person.rng.choice((vaccine_line, procedure_line, identity_line, background_line, topic_line, topic_line))(
                person
            )
        )
    return lines, "\n"


def _imaging(person: Person, max_lines: int) -> tuple[list[Line], str]:
    lines = [identity_line(person), *(imaging_line(person) for _ in range(person.rng.randint(1, 3)))]
    return lines, person.rng.choice(("\n", " "))


def _nursing(person: Person, max_lines: int) -> tuple[list[Line], str]:
    lines = [vital_line(person, person.rng.random() < 0.5) for _ in range(person.rng.randint(2, 5))]
    lines += [topic_line(person) for _ in range(person.rng.randint(1, max(1, min(6, max_lines))))]
    person.rng.shuffle(lines)
    return [*lines, person.rng.choice((advice_line, status_line, background_line))(person)], "\n"


_LAYOUTS: dict[str, Callable[[Person, int], tuple[list[Line], str]]] = {
    "letter": _letter, "note": _note, "labs": _labs, "medications": _medications, "fhir": _fhir, "summary": _summary,
    "imaging": _imaging, "nursing": _nursing,
}  # fmt: skip


def synonyms(kind: str, entity: str) -> Sequence[str]:
    """Words that a question may use for an entity."""
    table = w.LABS if kind.startswith("lab") else w.VITALS if kind == "vital" else ()
    also = [alias for row in table if CANONICAL.get(row[0], row[0]) == entity for alias in row[-1]]
    plain = name_in_sentence(entity) if entity else entity
    return (plain, plain, entity, *also)
