"""What a record says of one thing is said of no other: of a list, a table, a form or a sentence that names several."""

from __future__ import annotations

import pytest

from contracts import Passage
from safety.binding import kinds_of
from safety.lexicon import ELIDED, rivals
from safety.support import check_support
from safety.words import read_words

RECORDS: list[tuple[str, list[str], list[str]]] = [  # a record, what stands in it, what it says of something else
    (
        "CT head: subdural haematoma. MRI spine: disc prolapse. Echocardiogram: mitral regurgitation.",
        ["CT head showed a subdural haematoma.", "The MRI spine showed disc prolapse."],
        ["CT head showed disc prolapse.", "The echocardiogram showed a subdural haematoma."],
    ),
    (
        "Urine culture grew E. coli. Blood culture grew Staphylococcus aureus.",
        ["Urine culture grew E. coli."],
        ["Blood culture grew E. coli.", "Urine culture grew Staphylococcus aureus."],
    ),
    (
        "CT head showed consolidation and oedema. MRI spine showed disc prolapse.",
        ["CT head showed consolidation and oedema."],
        ["CT head showed consolidation and disc prolapse.", "MRI spine, oedema."],
    ),
    (
        "Urine culture: E. coli, sensitive to nitrofurantoin and gentamicin, resistant to trimethoprim.",
        ["It is sensitive to gentamicin.", "It is resistant to trimethoprim."],
        ["It is resistant to gentamicin.", "It is sensitive to trimethoprim."],
    ),
    (
        "She takes levothyroxine for hypothyroidism, apixaban and bisoprolol for atrial fibrillation, and amlodipine "
        "for hypertension.",
        ["She takes apixaban for atrial fibrillation.", "She takes bisoprolol for atrial fibrillation."],
        ["She takes levothyroxine for atrial fibrillation.", "She takes apixaban for hypertension."],
    ),
    (
        "She was given intravenous ceftriaxone, oral metronidazole and subcutaneous morphine.",
        ["She was given oral metronidazole.", "Ceftriaxone IV."],
        ["She was given oral ceftriaxone.", "Morphine IV."],
    ),
    (
        "Medications\nMethotrexate 15 mg on Mondays\nFolic acid 5 mg on Fridays",
        ["Methotrexate 15 mg on Mondays."],
        ["Methotrexate 15 mg on Fridays.", "Folic acid on Mondays."],
    ),
    (
        "This retired welder has severe emphysema and mild bronchiectasis.",
        ["He has severe emphysema.", "His bronchiectasis is mild."],
        ["His bronchiectasis is severe.", "He has mild emphysema."],
    ),
    (
        "Coronary angiography showed a tight stenosis of the left anterior descending artery, which was treated with a "
        "stent, and mild disease of the right coronary artery, which was left alone.",
        ["The right coronary artery had mild disease."],
        ["The right coronary artery was treated with a stent."],
    ),
    (
        "His cough has been present for nine years; his breathlessness for six months.",
        ["His breathlessness has been present for six months."],
        ["His breathlessness has been present for nine years."],
    ),
    (
        "Sertraline was tried in 2020 and stopped because of nausea; mirtazapine was tried in 2021 and stopped because "
        "of weight gain.",
        ["Mirtazapine was stopped because of weight gain."],
        ["Sertraline was stopped because of weight gain.", "Mirtazapine was tried in 2020."],
    ),
    (
        "Ottilie needed a short stay for low blood sugar. Her brother, a boy called Rowan, needed phototherapy for "
        "jaundice. We shall see Ottilie in May and Rowan in June.",
        ["Rowan needed phototherapy for jaundice."],
        ["Ottilie needed phototherapy for jaundice.", "Rowan will be seen in May."],
    ),
    (
        "A 15 mm pedunculated polyp was removed by hot snare, and a 3 mm sessile polyp by cold snare.",
        ["The sessile polyp was removed by cold snare."],
        ["The sessile polyp was removed by hot snare.", "The pedunculated polyp measured 3 mm."],
    ),
    (
        "She will be seen in the fracture clinic on 2 December and in the bone health clinic on 14 January to discuss "
        "zoledronate.",
        ["She will be seen in the bone health clinic to discuss zoledronate."],
        ["She will be seen in the fracture clinic to discuss zoledronate.", "The fracture clinic is on 14 January."],
    ),
    (
        "Home oxygen was declined; pulmonary rehabilitation was accepted.",
        ["He accepted pulmonary rehabilitation."],
        ["He declined pulmonary rehabilitation."],
    ),
    (
        "Blood type of the mother: O positive. Twin A: blood type A positive, weight 2,410 g. Twin B: weight 2,065 g.",
        ["Twin B had a weight of 2,065 g."],
        ["Twin A had a weight of 2,065 g.", "The mother's blood type is A positive."],
    ),
    (
        "Clinic | Date\nCardiology | 3 May 2026\nDermatology | 9 July 2026",
        ["Dermatology is on 9 July 2026."],
        ["Dermatology is on 3 May 2026.", "Cardiology is on 9 July 2026."],
    ),
    (
        "Test | Right eye | Left eye\nPressure (mmHg) | 26 | 15\nCornea | clear | scarred",
        ["The pressure was 26 mmHg in the right eye."],
        ["The pressure was 15 mmHg in the right eye.", "The cornea of the left eye is clear."],
    ),
    (
        "Specimen | Sensitive to | Resistant to\nUrine | nitrofurantoin | trimethoprim\n"
        "Sputum | amikacin | ceftriaxone",
        ["The urine was sensitive to nitrofurantoin."],
        ["The urine was resistant to nitrofurantoin.", "The sputum was sensitive to ceftriaxone."],
    ),
    (
        "Stopped | Reason\nRamipril | cough\nAspirin | bleeding",
        ["Ramipril was stopped because of cough."],
        ["Ramipril was stopped because of bleeding."],
    ),
    (
        "Stopped: ramipril, metformin\nContinued: apixaban, bisoprolol",
        ["Metformin was stopped.", "Bisoprolol was continued."],
        ["Bisoprolol was stopped.", "Metformin was continued."],
    ),
    (
        "WOUND 1: sacral pressure injury\nDrainage: moderate\nDressing: alginate, changed by the nurse\n\n"
        "WOUND 2: venous ulcer, left ankle\nDrainage: scant\nDressing: zinc paste, changed every Tuesday",
        ["The dressing of the venous ulcer is zinc paste.", "The sacral pressure injury has an alginate dressing."],
        ["The dressing of the venous ulcer is alginate.", "The sacral pressure injury has a zinc paste dressing."],
    ),
    (
        "Family history: mother, breast cancer at 45; father, stroke at 60.",
        ["Her mother had breast cancer at 45.", "Her father had a stroke."],
        [
            "Her father had breast cancer.",
            "Her mother had a stroke at 60.",
            "She had a stroke.",
            "She has breast cancer.",
        ],
    ),
    (
        "Her left distal radius fracture was undisplaced. The nodule was unchanged.",
        ["The distal radius fracture was undisplaced."],
        ["The distal radius fracture was displaced.", "The nodule was changed."],
    ),
    (
        "父亲死于脑出血，母亲患冠心病；弟弟患肾结石。",
        ["母亲患冠心病。"],
        ["母亲死于脑出血。", "弟弟患冠心病。", "父亲患肾结石。"],
    ),
    (
        "姐姐：BRCA1基因检测阳性\n弟弟：BRCA1基因检测阴性",
        ["弟弟BRCA1基因检测阴性。"],
        ["弟弟BRCA1基因检测阳性。"],
    ),
    (
        "用药：甲氨蝶呤10mg，周一口服；叶酸5mg，周三口服。",
        ["叶酸5mg，周三口服。"],
        ["叶酸5mg，周一口服。", "甲氨蝶呤10mg，周三口服。"],
    ),
]
TRUE = [(record, claim) for record, true, _ in RECORDS for claim in true]
MIXED = [(record, claim) for record, _, mixed in RECORDS for claim in mixed]


def supported(record: str, claim: str) -> bool:
    return check_support(claim, (0,), [Passage("d:0", "d", "Letter.pdf", 1, 0, len(record), record)]).supported


@pytest.mark.parametrize(("record", "claim"), TRUE)
def test_what_a_record_says_of_a_thing_stands(record: str, claim: str) -> None:
    assert supported(record, claim)


@pytest.mark.parametrize(("record", "claim"), MIXED)
def test_what_it_says_of_another_does_not(record: str, claim: str) -> None:
    assert not supported(record, claim)


def test_prose_goes_on_from_sentence_to_sentence() -> None:
    record = "She had a CT of the head. It showed a subdural haematoma. The MRI of the spine was normal."
    assert supported(record, "The CT of the head showed a subdural haematoma.")


def test_a_noun_may_be_left_out_where_it_comes_again() -> None:
    record = "Visual acuity was 6/9 in the right eye and 6/36 in the left."
    assert not supported(record, "Visual acuity was 6/36 in the right eye.")
    assert supported(record, "Visual acuity was 6/9 in the right eye.")


@pytest.mark.parametrize("kind", [kind for kind, _ in rivals() if kind != ELIDED])
def test_every_word_of_the_list_is_read_and_tells_its_kind(kind: str) -> None:
    words = [word for name, listed in rivals() if name == kind for word in listed]
    unread = [word for word in words if not any(kind in kinds_of(found.key) for found in read_words(word, []))]
    assert not unread
