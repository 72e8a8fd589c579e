"""Whether what a text would have given is wrong for the dose, the other drugs or the patient, as far as is known.

A drug, a pair or a condition that `knowledge/` does not name is not judged: silence here is no clearance. Sources stand
in each finding. Knows nothing of passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from contracts import Finding, Patient, Verdict
from safety.knowledge_files import Caution, DoseRange, Interaction, Knowledge
from safety.medication import Dose, Mention, find_doses, find_mentions

# A dose outside its range is a notice, and withheld from these factors on: a factor of ten is never missed.
FAR_ABOVE, FAR_BELOW, TOLERANCE = 2.0, 4.0, 1.01
# rule, or its beginning -> what is said of it, in English and Chinese
_TEXTS = {
    "dose.child": (
        "{amount} {unit}/kg of {drug} is more than the {limit:g} that a child is given at once.",
        "{drug} {amount} {unit}/kg，超过儿童单次上限（{limit:g}）。",
    ),
    "dose.unit": (
        "{drug} is dosed in {unit}, not in {amount}. Check the unit.",
        "{drug}的剂量单位应为{unit}，请核对。",
    ),
    "dose.weekly": (
        "{drug} by mouth is given once a week outside oncology; daily doses have killed. Check how often.",
        "{drug}非肿瘤适应证应每周一次，每日给药可致死，请核对频次。",
    ),
    "dose.high": (
        "{amount} of {drug} is more than the usual most, {limit:g} {unit}. Check for a factor of ten or a wrong unit.",
        "{drug} {amount}，超过常用最大量（{limit:g} {unit}），请核对十倍或单位错误。",
    ),
    "dose.low": (
        "{amount} of {drug} is less than the usual least, {limit:g} {unit}. Check for a factor of ten or a wrong unit.",
        "{drug} {amount}，低于常用最小量（{limit:g} {unit}），请核对十倍或单位错误。",
    ),
    "interaction": (
        "{drug} with {other}: {why}. Look for another choice before both are given.",
        "{drug}与{other}合用：{why_zh}。请另选药物或核对。",
    ),
    "duplicate": (
        "{drug} and {other} are both of one kind ({name}). Check whether one replaces the other.",
        "{drug}与{other}属同类药物（{name}），请核对是否重复用药。",
    ),
    "look-alike": (
        "The patient takes {other}; {drug} is often mistaken for it. Check which one is meant.",
        "患者在用{other}，与{drug}名称易混淆，请核对。",
    ),
    "allergy": (
        "The patient's allergies are given as {other}; {drug} may cause the same reaction.",
        "患者过敏史：{other}；{drug}可能引起同样反应。",
    ),
    "caution": ("{drug}: {why} ({name}).", "{drug}：{why_zh}。"),
    "route": (
        "{drug} by the intrathecal route is fatal; it is for intravenous use only.",
        "{drug}鞘内注射可致死，仅限静脉使用。",
    ),
}
_CJK = re.compile(r"[\u3400-\u9fff]")
_INTRATHECAL = re.compile(r"\bintrathecal|鞘内", re.IGNORECASE)
_INTRATHECAL_SOURCE = "ISMP Targeted Medication Safety Best Practices, 2024"
_FATAL_INTRATHECAL = "vinca alkaloid"
# What a text itself says of the patient, where nothing else is known; of a text in lower case, since without regard to
# case they are searched at less than half the speed.
_SAYS = {
    "pregnant": re.compile(
        r"(?<!prevent )(?<!avoid )(?<!not )\bpregnan(?:t|cy)\b|\b\d{1,2} weeks' gestation|怀孕|妊娠|孕妇"
    ),
    "lactating": re.compile(r"\b(?:breast-?\s?feed\w*|lactati\w+|nursing mother)\b|哺乳"),
    "hepatic": re.compile(
        r"\b(?:cirrhosis|hepatic (?:impairment|failure)|liver failure|child-pugh [bc])\b|肝硬化|肝衰竭"
    ),
}
_EGFR = re.compile(r"\begfr (?:is |of |was |= ?|: ?){0,3}(\d{1,3})")
_AGE = re.compile(r"\b(\d{1,3})[- ]year[- ]old\b")
_HINTS = {  # without one of these its pattern, which reads slowly, has nothing to find
    _SAYS["pregnant"]: ("pregnan", "gestation", "怀孕", "妊娠", "孕妇"),
    _SAYS["lactating"]: ("feed", "lactati", "nursing", "哺乳"),
    _SAYS["hepatic"]: ("cirrhosis", "hepatic", "liver", "child-pugh", "肝"),
    _EGFR: ("egfr",),
    _AGE: ("year-old", "year old"),
}


def check_prescribing(text: str, patient: Patient | None, known: Knowledge) -> list[Finding]:
    """Findings with their place in the text; each names the drug, what is wrong, and the source."""
    mentions = find_mentions(text, known.names)
    if not mentions:
        return []
    found = _Prescription(text, mentions, patient or Patient(), known).findings()
    return sorted(found, key=lambda finding: (-finding.severity.rank, finding.start))


@dataclass(frozen=True)
class _Prescription:
    """The drugs that a text has given, with the patient they are for."""

    text: str
    mentions: Sequence[Mention]
    patient: Patient
    known: Knowledge

    def findings(self) -> Iterator[Finding]:
        taken = [drug for drug in self._drugs_of(self.patient.medications) if not self._is_stopped(drug)]
        yield from self._doses()
        yield from self._interactions(taken)
        yield from self._duplicates(taken)
        yield from self._look_alikes(taken)
        yield from self._allergies()
        yield from self._cautions()
        yield from self._routes()

    def _is_stopped(self, drug: str) -> bool:
        """Whether the text names a drug and nowhere gives it."""
        named = [mention for mention in self.mentions if mention.drug == drug]
        return bool(named) and not any(mention.is_active for mention in named)

    def _finding(
        self, rule: str, severity: Verdict, mention: Mention, source: str, dose: Dose | None = None, **words: Any
    ) -> Finding:
        english, chinese = _TEXTS.get(rule) or _TEXTS[rule.partition(".")[0]]
        message = (chinese if _CJK.search(self.text) else english).format(drug=mention.drug, **words)
        place = dose or mention
        return Finding(rule, severity, place.start, place.end, message, source, self.text[place.start : place.end])

    def _drugs_of(self, items: Iterable[str]) -> list[str]:
        """The drugs of a patient's list, whatever doses stand beside them."""
        found = (mention.drug for item in items for mention in find_mentions(item, self.known.names))
        return list(dict.fromkeys(found))

    # --- dose ---

    def _doses(self) -> Iterator[Finding]:
        for dose in find_doses(self.text, self.mentions):
            drug = dose.mention.drug
            if drug in self.known.doses:
                yield from self._outside(dose, self.known.doses[drug])
            if drug in self.known.doses_per_kg:
                yield from self._too_much_for_a_child(dose, self.known.doses_per_kg[drug])

    def _outside(self, dose: Dose, limits: DoseRange) -> Iterator[Finding]:
        if "/" in dose.unit:
            return  # by weight or time: how much that is in all cannot be told
        amount = self._convert(dose.amount, dose.unit, limits.unit)
        if amount is None:
            if _is_mass(dose.unit) != _is_mass(limits.unit) and "ml" not in (dose.unit, limits.unit):
                yield self._dose_finding("dose.unit", Verdict.HOLD, dose, unit=limits.unit, amount=dose.unit)
            return
        times = dose.times_a_day
        if limits.is_weekly and times is not None and times >= 1:
            yield self._dose_finding("dose.weekly", Verdict.HOLD, dose)
            return
        words: dict[str, Any] = {"amount": f"{dose.amount:g} {dose.unit}", "unit": limits.unit}
        most = limits.most_a_day if dose.is_total else limits.most
        factor = amount / most
        if times and times > 1 and not dose.is_total:
            factor = max(factor, amount * times / limits.most_a_day)
        if factor > TOLERANCE:
            severity = Verdict.HOLD if factor >= FAR_ABOVE else Verdict.NOTICE
            yield self._dose_finding("dose.high", severity, dose, limit=most, **words)
        elif amount * TOLERANCE < limits.least and not self._is_child:
            severity = Verdict.HOLD if limits.least >= amount * FAR_BELOW else Verdict.NOTICE
            yield self._dose_finding("dose.low", severity, dose, limit=limits.least, **words)

    def _too_much_for_a_child(self, dose: Dose, limits: DoseRange) -> Iterator[Finding]:
        """A child's dose by kilogram, as it is written or by the patient's weight."""
        unit, _, per = dose.unit.partition("/")
        amount = self._convert(dose.amount, unit, limits.unit)
        weight = 1.0 if per == "kg" else self.patient.weight_kg
        if amount is None or per not in ("", "kg") or not self._is_child or not weight or dose.is_total:
            return
        if amount > limits.most * weight * 1.05:
            severity = Verdict.HOLD if amount > limits.most * weight * 1.5 else Verdict.NOTICE
            words: dict[str, Any] = {"amount": f"{amount / weight:.3g}", "unit": limits.unit, "limit": limits.most}
            yield self._dose_finding("dose.child", severity, dose, **words)

    def _dose_finding(self, rule: str, severity: Verdict, dose: Dose, **words: Any) -> Finding:
        return self._finding(rule, severity, dose.mention, self.known.sources["doses"], dose, **words)

    def _convert(self, amount: float, unit: str, to: str) -> float | None:
        down, up = self.known.factor(unit, to), self.known.factor(to, unit)
        if down is not None:
            return amount * down
        return amount / up if up else None

    @property
    def _is_child(self) -> bool:
        return self.patient.age_years is not None and self.patient.age_years < 18

    # --- other drugs ---

    def _interactions(self, taken: Sequence[str]) -> Iterator[Finding]:
        """One finding a pair. Of two drugs that the patient takes both, one of which the text names, it is a notice:
        nothing new is proposed."""
        seen: set[frozenset[str]] = set()
        drugs = {mention.drug for mention in self.mentions}.union(taken)
        known = [i for i in self.known.interactions if not (drugs.isdisjoint(i.first) or drugs.isdisjoint(i.second))]
        concerned = frozenset[str]().union(*(i.first | i.second for i in known))
        active = [mention for mention in self.mentions if mention.drug in concerned and mention.is_active]
        named = {mention.drug: mention for mention in reversed(active)}  # where each stands first
        for mention in sorted(named.values(), key=lambda mention: mention.start):
            for other, is_named in (*((drug, True) for drug in named), *((drug, False) for drug in taken)):
                pair = frozenset({mention.drug, other})
                met = [i for i in known if _joins(i, mention.drug, other)]
                if len(pair) < 2 or pair in seen or not met:
                    continue
                seen.add(pair)
                worst = max(met, key=lambda interaction: interaction.effect.rank)
                severity = Verdict.NOTICE if mention.drug in taken and not is_named else worst.effect
                words: dict[str, Any] = {"other": other, "why": worst.why, "why_zh": worst.why_zh}
                yield self._finding(f"interaction.{worst.id}", severity, mention, worst.source, **words)

    def _duplicates(self, taken: Sequence[str]) -> Iterator[Finding]:
        source = self.known.sources["duplicates"]
        for name in self.known.one_at_a_time:
            members = self.known.classes[name]
            before = [drug for drug in taken if drug in members]
            named = [mention for mention in self.mentions if mention.drug in members]
            if len({mention.drug for mention in named}.union(before)) < 2:
                continue
            for mention in (m for m in named if m.is_active):
                other = next((drug for drug in before if drug != mention.drug), None)
                if other and mention.drug not in before:
                    yield self._finding("duplicate", Verdict.NOTICE, mention, source, other=other, name=name)
                    break
                before.append(mention.drug)

    def _look_alikes(self, taken: Sequence[str]) -> Iterator[Finding]:
        for mention in self.mentions:
            other = next((drug for drug in taken if drug in self.known.look_alikes.get(mention.drug, ())), None)
            if other and mention.drug not in taken and mention.is_active:
                yield self._finding(
                    "look-alike", Verdict.NOTICE, mention, self.known.sources["look_alikes"], other=other
                )

    # --- the patient ---

    def _allergies(self) -> Iterator[Finding]:
        if not self.patient.allergies:
            return
        listed = ", ".join(self.patient.allergies)
        drugs = set(self._drugs_of(self.patient.allergies))
        for word, name in self.known.allergy_words.items():
            if re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", listed.lower()):
                drugs |= self.known.classes[name]
        for mention in self.mentions:
            effects = [c.effect for c in self.known.cross_reactions if mention.drug in c.concerns and c.allergy & drugs]
            if mention.drug in drugs:
                effects.append(Verdict.HOLD)
            if effects and mention.is_active:
                yield self._finding(
                    "allergy", Verdict.worst(effects), mention, self.known.sources["allergies"], other=listed
                )

    def _cautions(self) -> Iterator[Finding]:
        named = {mention.drug for mention in self.mentions}
        applying = [c for c in self.known.cautions if not named.isdisjoint(c.drugs) and self._applies(c)]
        for mention in self.mentions:
            met = [c for c in applying if mention.drug in c.drugs]
            if met and mention.is_active:
                worst = max(met, key=lambda caution: caution.effect.rank)
                name = worst.condition.replace("_", " ") + (f" {worst.limit:g}" if worst.limit else "")
                words: dict[str, Any] = {"why": worst.why, "why_zh": worst.why_zh, "name": name}
                source = self.known.sources["cautions"]
                yield self._finding(f"caution.{worst.id}", worst.effect, mention, source, **words)

    def _applies(self, caution: Caution) -> bool:
        value, limit = self._condition[caution.condition], caution.limit
        if value is None:
            return False
        if caution.condition in ("age_from", "qtc_from"):
            return value >= limit
        return value < limit if caution.condition in ("egfr_below", "age_below") else bool(value)

    @cached_property
    def _condition(self) -> dict[str, float | None]:
        """The patient's data by the names of CONDITIONS; what the text itself says where they are silent."""
        patient = self.patient
        age = self._value(patient.age_years, _AGE)
        return {
            "pregnant": self._flag(patient.pregnant, "pregnant"),
            "lactating": self._flag(patient.lactating, "lactating"),
            "hepatic": self._flag(patient.hepatic_impairment, "hepatic"),
            "egfr_below": self._value(patient.egfr_ml_min, _EGFR),
            "qtc_from": patient.qtc_ms,
            "age_from": age,
            "age_below": age,
        }

    @cached_property
    def _lowered(self) -> str:
        return self.text.lower()

    def _flag(self, given: bool | None, name: str) -> bool:
        if given is not None:
            return given
        return bool(self._search(_SAYS[name]))

    def _value(self, given: float | None, pattern: re.Pattern[str]) -> float | None:
        match = None if given is not None else self._search(pattern)
        return float(match.group(1)) if match else given

    def _search(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return pattern.search(self._lowered) if any(hint in self._lowered for hint in _HINTS[pattern]) else None

    def _routes(self) -> Iterator[Finding]:
        for mention in self.mentions:
            is_fatal = mention.drug in self.known.classes.get(_FATAL_INTRATHECAL, ())
            if is_fatal and _INTRATHECAL.search(self.text, *mention.sentence) and mention.is_active:
                yield self._finding("route.intrathecal", Verdict.BLOCK, mention, _INTRATHECAL_SOURCE)


def _joins(interaction: Interaction, one: str, other: str) -> bool:
    return (one in interaction.first and other in interaction.second) or (
        other in interaction.first and one in interaction.second
    )


def _is_mass(unit: str) -> bool:
    return unit in ("g", "mg", "mcg", "ng", "kg")
