"""How clinicians ask for each kind of fact: question templates by kind, for facts that are there and that are not.

`{x}` is what is asked about (a drug, a test, a date's test), `{he}` `{his}` the patient. Data only.
"""

from __future__ import annotations

ASKS: dict[str, tuple[str, ...]] = {
    "lab": (
        "What was the {x}?", "What is the {x}?", "{x}?", "What was {his} {x}?", "Tell me the {x}.", "{x} result?",
        "How high is the {x}?", "What are the {x} values?", "Show me the {x} results.", "Do we have a {x}?",
        "what is {his} {x}", "How has the {x} changed?", "What does the record say about {x}?", "latest {x}",
        "What is the latest {x}?", "What was the most recent {x}?", "Was the {x} abnormal?",
    ),
    "lab_on": (
        "What was the {x} on {date}?", "{x} on {date}?", "What was {his} {x} on {date}?",
        "How much was the {x} on {date}?",
        "Which {x} was measured on {date}?", "Give the {x} of {date}.",
    ),
    "lab_month": ("What was the {x} in {month}?", "{x} in {month}?", "How was the {x} in {month}?"),
    "vital": (
        "What was the {x}?", "What is {his} {x}?", "{x}?", "What was the {x} in clinic?", "Tell me the {x}.",
        "What was {his} {x} at the visit?", "Was the {x} recorded?", "How was the {x}?",
    ),
    "dose": (
        "What is the dose of {x}?", "What dose of {x} does {he} take?", "How much {x} does the patient take?",
        "{x} dose?", "How often is {x} taken?", "Which dose of {x} was prescribed?", "What is the {x} dose?",
        "How should {x} be taken?", "How is {x} prescribed?", "What {x} dose is {he} on?", "dose of {x}",
        "Is the patient on {x}?", "Does {he} take {x}?", "Is {he} taking {x}?",
    ),
    "medications": (
        "What medications is the patient taking?", "List the medications.", "Which medicines does {he} take?",
        "What is {he} taking?", "Current medications?", "What drugs is the patient on?",
        "List {his} current medicines.",
        "What are the discharge medications?", "Which tablets does {he} take?", "medication list",
        "What treatment is {he} on?", "What does {he} take at home?",
    ),
    "started": (
        "When was {x} started?", "Was {x} started?", "Which date was {x} begun?", "When did {he} start {x}?",
        "Who started {x} and when?", "Why was {x} started?",
    ),
    "stopped": (
        "Why was {x} stopped?", "When was {x} stopped?", "Was {x} stopped?", "What happened to {x}?",
        "What was the reason for stopping {x}?", "Why did {he} stop {x}?", "Why is {he} no longer on {x}?",
        "Why was {x} withheld?", "Why was {x} discontinued?",
    ),
    "changed": (
        "How was {x} changed?", "Was the dose of {x} changed?", "What change was made to {x}?", "Why was {x} changed?",
        "When was the {x} dose changed?",
    ),
    "changes": (
        "Which medicines were changed?", "What medication changes were made?", "What changed in the treatment?",
        "Were any medicines started or stopped?", "Which drugs were stopped?", "What was stopped?",
    ),
    "indication": ("What is {x} for?", "Why does {he} take {x}?", "What is the indication for {x}?",
    "Why is {he} on {x}?"),
    "allergies": (
        "Any allergies?", "What is the patient allergic to?", "Does {he} have any allergies?", "List the allergies.",
        "What are {his} allergies?", "Allergies?", "Is {he} allergic to anything?", "Which drugs must {he} avoid?",
        "drug allergies", "Are there any known drug allergies?",
    ),
    "reaction": (
        "What reaction did {he} have to {x}?", "What happened with {x}?", "Is {he} allergic to {x}?",
        "How did {he} react to {x}?",
        "What is the reaction to {x}?", "Can {he} have {x}?",
    ),
    "problems": (
        "What are the diagnoses?", "List the problems.", "What conditions does {he} have?", "Past medical history?",
        "What is {his} medical history?", "Which illnesses does the patient have?", "problem list",
        "What is in the history?",
    ),
    "problem": (
        "Does {he} have {x}?", "When was {x} diagnosed?", "Is there a history of {x}?", "Since when has {he} had {x}?",
        "What is known about {his} {x}?",
    ),
    "admission": (
        "Why was the patient admitted?", "What was the reason for admission?", "What brought {him} to hospital?",
        "Why did {he} come in?", "What were the presenting symptoms?", "Why was {he} admitted?",
        "Presenting complaint?",
        "Reason for admission", "What was the presenting complaint?",
    ),
    "admission_date": ("When was {he} admitted?", "What was the admission date?",
    "On which date was the patient admitted?",
                       "Date of admission?"),
    "discharge_date": ("When was {he} discharged?", "What was the discharge date?", "On which day did {he} go home?",
                       "Date of discharge?"),
    "diagnosis": (
        "What was the diagnosis?", "What was the main diagnosis?", "What did {he} have?",
        "What was the discharge diagnosis?",
        "Diagnosis?", "What was found to be the cause?",
    ),
    "imaging": (
        "What did the {x} show?", "{x} result?", "What were the findings of the {x}?", "What was seen on the {x}?",
        "Was a {x} done?", "{x} findings", "When was the {x} done?", "Describe the {x}.",
    ),
    "procedure": ("When did {he} have the {x}?", "Has {he} had a {x}?", "Was a {x} done?", "When was the {x}?",
                  "What is known about the {x}?"),
    "surgery": ("What operations has {he} had?", "Past surgical history?", "Which procedures were done?",
    "Any surgery?"),
    "followup": (
        "When is the follow-up?", "What follow-up is planned?", "When is the next appointment?",
        "Where will {he} be seen next?",
        "What is the follow-up plan?", "When will {he} be reviewed?", "Follow-up?", "Who will see {him} next?",
    ),
    "plan": (
        "What should the GP do?", "What is the plan?", "What actions are requested?", "What needs to be done next?",
        "What tests are to be repeated?", "Which actions are for primary care?", "Plan?", "What are the next steps?",
    ),
    "advice": (
        "What advice was given?", "What was the patient told?", "What should {he} avoid?", "What was {he} advised?",
        "What did we tell the patient?", "What instructions did {he} get?",
    ),
    "smoking": ("Does {he} smoke?", "What is {his} smoking history?", "Is {he} a smoker?", "Smoking status?",
    "smoking"),
    "alcohol": ("How much alcohol does {he} drink?", "Does {he} drink?", "What is {his} alcohol intake?", "Alcohol?"),
    "social": ("Who does {he} live with?", "What is {his} social situation?", "Social history?",
    "What is {his} occupation?",
               "What is known about {his} home?", "How does {he} manage at home?"),
    "family": ("What is the family history?", "Any family history?", "Which illnesses run in the family?",
               "Family history?", "What did {his} relatives have?"),
    "vaccine": ("When was the {x} vaccine given?", "Has {he} had the {x} vaccine?", "Is {he} vaccinated against {x}?",
                "{x} vaccination?"),
    "consultant": ("Who was the consultant?", "Which doctor saw the patient?", "Who wrote the letter?",
                   "Who is responsible for {his} care?"),
    "born": ("What is the date of birth?", "When was the patient born?", "Date of birth?"),
    "resuscitation": ("What is the resuscitation status?", "Is {he} for resuscitation?", "What was said about CPR?",
                      "Code status?"),
    "device": ("Which device does {he} have?", "Does {he} have a catheter or a pacemaker?", "Any implanted device?"),
    "diet": ("What diet is {he} on?", "Are there any dietary restrictions?", "What may {he} eat?"),
    "genetic": ("What was the result of the genetic test?", "Was genetic testing done?", "Genetic test result?"),
    "travel": ("Has {he} travelled recently?", "Any recent travel?", "Where did {he} travel?"),
    "insurance": ("Which insurance does {he} have?", "What is the insurance number?", "What is {his} phone number?",
                  "What is {his} address?"),
    "bloodgroup": ("What is {his} blood group?", "Blood group?", "Which blood type does {he} have?"),
    "weightloss": ("How much weight has {he} lost?", "Has {he} lost weight?", "Any weight loss?"),
    "sleep": ("How does {he} sleep?", "Any sleep problems?", "Does {he} use a CPAP machine?"),
}  # fmt: skip

# Asked by entity: the words that may stand for {x} come from these vocabularies (see records.py).
LIST_KINDS = frozenset(
    {"medications", "allergies", "problems", "changes", "plan", "surgery", "lab", "advice", "social"}
)

# Asked about any text: a phrase of the wanted sentence stands for {x}.
LOOKUPS = (
    "What does the record say about {x}?", "What is said about {x}?", "Tell me about {x}.", "{x}?",
    "Is there anything about {x}?", "What about {x}?", "What do the passages say about {x}?", "Is {x} mentioned?",
    "Which information is there on {x}?", "Find {x}.", "What is known about {x}?", "Anything on {x}?",
    "Please summarise {x}.", "Explain {x}.", "What is the role of {x}?", "Does the document mention {x}?",
    "describe {x}", "Can you tell me about {x}?", "What was noted about {x}?", "info on {x}",
)  # fmt: skip
LOOKUPS_TWO = (
    "What is said about {x} and {y}?", "How are {x} and {y} related?", "What connects {x} with {y}?",
    "{x} and {y}?", "What does it say about {x} in {y}?", "How does {x} affect {y}?", "Is {x} linked to {y}?",
    "What about {x} for {y}?",
)  # fmt: skip
LOOKUPS_ZH = (
    "关于{x}，资料怎么说？", "{x}是什么情况？", "资料里提到{x}了吗？", "请说明{x}。", "{x}？", "{x}怎么样？",
    "病历中关于{x}有什么记录？", "请介绍一下{x}。",
)  # fmt: skip
