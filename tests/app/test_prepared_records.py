"""What was read of a record once is not read again, by the embedded model in the whole program; and it goes in time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from app.config import EMBEDDED_CHECKPOINT, Settings
from app.errors import StorageError
from app.events import Turn
from app.prepared_records import PreparedRecords
from app.services import Services, build_services
from app.store.encryption import Cipher
from contracts import DocumentStatus, Message, Patient, Role, SamplingParams
from model.backend import Slice
from model.fake import FakeGenerator
from model.generator import LocalGenerator
from model.kernels.cpu_decoder import BLOCK_TOKENS
from tests.app.conftest import LETTER

DOSE, ALLERGY = "What is the apixaban dose?", "Which allergy is recorded?"
NEVER = threading.Event()
LATE = "Potassium 4.1 mmol/L, sodium 138 mmol/L and creatinine 88 umol/L on 4 March 2024."  # fills a block of its own


class Program:
    """The program over one data folder, from start to end and to the next start, and the tokens its model computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slices: list[Slice] = []
        self.services: Services | None = None

    def start(self, **settings: object) -> Services:
        self.end()
        generator = LocalGenerator.load(EMBEDDED_CHECKPOINT, threads=1)
        backend = generator._engine._backend  # type: ignore[attr-defined]
        compute = backend.forward

        def forward(batch: Sequence[Slice]) -> object:
            self.slices += batch
            return compute(batch)

        backend.forward = forward
        chosen = Settings(data_dir=self.folder, demo=False, threads=1, **settings)  # type: ignore[arg-type]
        self.services = build_services(chosen, generator)
        return self.services

    def end(self) -> None:
        if self.services:
            self.services.close()
        self.services = None

    def add_letter(self, text: str = LETTER) -> str:
        assert self.services
        patient = self.services.store.add_patient(Patient(name="Margaret Ellis", age_years=74, sex="female"))
        self.ingest(patient.id, "letter.txt", text)
        return patient.id

    def ingest(self, patient_id: str, name: str, text: str) -> None:
        assert self.services
        document = self.services.library.add(patient_id, name, text.encode())
        self.services.jobs.ingest(document.id)
        wait_for(lambda: self.services.jobs.ingest_progress(document.id) is None)

    def file(self, patient_id: str) -> Path:
        return self.folder / "prepared" / f"{patient_id}.kv"

    def wait_until_prepared(self, patient_id: str) -> bytes:
        """The bytes of the file, once nothing is left to prepare."""
        assert self.services
        jobs = self.services.jobs
        wait_for(lambda: self.file(patient_id).exists() and not jobs._to_prepare and not jobs._is_preparing)
        return self.file(patient_id).read_bytes()

    def ask(self, patient_id: str, question: str, conversation_id: str = "") -> tuple[Turn, int]:
        """The answer, and how many tokens of its prompt were computed."""
        assert self.services
        store = self.services.store
        conversation_id = conversation_id or store.add_conversation(patient_id).id
        wait_for(lambda: not self.services._preparing)
        self.slices.clear()
        turn_id = self.services.jobs.ask(conversation_id, question).id
        self.services.jobs.wait(conversation_id, 60)
        turn = store.get_turn(turn_id)
        assert turn is not None
        prompt = len(self.encode(turn))
        return turn, sum(
            max(0, min(s.first_position + len(s.token_ids), prompt) - s.first_position) for s in self.slices
        )

    def encode(self, turn: Turn) -> list[int]:
        assert self.services
        messages = [Message(Role(m["role"]), m["text"]) for m in turn.record["messages"]]
        return self.services.generator.encode_prompt(messages)  # type: ignore[attr-defined]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def list_drafts(folder: Path) -> list[Path]:
    return list((folder / "prepared").glob("*.part"))


def count_common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def words_of(turn: Turn) -> list[tuple[str, str]]:
    return [(claim.kind.value, claim.text) for claim in turn.claims]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "data")
    yield program
    program.end()


# --- what is not computed again ---------------------------------------------------------------------------------


def test_the_first_question_after_a_document_a_follow_up_and_tomorrows_compute_only_what_is_new(
    program: Program,
) -> None:
    program.start(prepared_mb=0)
    patient_id = program.add_letter()
    plain, num_computed = program.ask(patient_id, DOSE)
    prompt = program.encode(plain)
    assert num_computed == len(prompt)

    services = program.start()
    services.jobs.prepare(patient_id)
    program.wait_until_prepared(patient_id)
    conversation_id = services.store.add_conversation(patient_id).id
    first, num_computed = program.ask(patient_id, DOSE, conversation_id)
    other = program.encode(program.ask(patient_id, ALLERGY)[0])
    record = count_common(prompt, other)
    assert record > 3 * BLOCK_TOKENS
    assert num_computed <= len(prompt) - record + BLOCK_TOKENS
    assert words_of(first) == words_of(plain)

    follow_up, num_computed = program.ask(patient_id, ALLERGY, conversation_id)
    assert num_computed <= len(program.encode(follow_up)) - count_common(prompt, program.encode(follow_up))

    program.start()
    tomorrow, num_computed = program.ask(patient_id, DOSE)
    assert num_computed == len(prompt) - record // BLOCK_TOKENS * BLOCK_TOKENS
    assert words_of(tomorrow) == words_of(plain)


def test_a_record_is_prepared_once_it_was_read_and_the_turn_says_so(program: Program) -> None:
    services = program.start()
    patient_id = program.add_letter()
    program.wait_until_prepared(patient_id)
    conversation = services.store.add_conversation(patient_id)
    turn = services.store.add_turn(conversation.id, DOSE)
    events = services.conversation.answer(turn, SamplingParams(), NEVER)
    steps = {event.detail for event in events if getattr(event, "step", "") == "reading"}
    assert steps == {"2 passages, prepared"}


def test_a_question_about_some_documents_leaves_the_prepared_record_alone(program: Program) -> None:
    services = program.start()
    patient_id = program.add_letter()
    program.ingest(patient_id, "note.txt", "Weight 72 kg.")
    before = program.wait_until_prepared(patient_id)
    letter = services.store.list_documents(patient_id)[0]
    conversation = services.store.add_conversation(patient_id)
    services.jobs.ask(conversation.id, DOSE, (letter.id,))
    services.jobs.wait(conversation.id, 60)
    assert program.wait_until_prepared(patient_id) == before


@pytest.mark.parametrize("change", ["patient", "added", "deleted"])
def test_a_changed_record_is_prepared_anew(program: Program, change: str) -> None:
    services = program.start()
    patient_id = program.add_letter()
    program.ingest(patient_id, "note.txt", "Weight 72 kg.")
    before = program.wait_until_prepared(patient_id)
    if change == "patient":
        services.store.update_patient(patient_id, Patient(name="Margaret Ellis", age_years=75, sex="female"))
        services.jobs.prepare(patient_id)
    elif change == "added":
        program.ingest(patient_id, "late.txt", f"{LATE} " * 2)
    else:
        services.library.delete(services.store.list_documents(patient_id)[0].id)
        services.jobs.prepare(patient_id)
    wait_for(lambda: program.file(patient_id).exists() and program.file(patient_id).read_bytes() != before)
    turn, _ = program.ask(patient_id, DOSE)
    program.start(prepared_mb=0)
    assert words_of(program.ask(patient_id, DOSE)[0]) == words_of(turn)


def test_a_record_too_long_to_be_read_whole_is_not_prepared(program: Program) -> None:
    services = program.start()
    patient_id = program.add_letter("\n\n".join(f"{LETTER} Visit {n}." for n in range(20)))
    services.jobs.prepare(patient_id)
    wait_for(lambda: not services.jobs._to_prepare)
    assert services.conversation.record_prompts(patient_id, SamplingParams()) is None
    services.jobs.close()
    assert not program.file(patient_id).exists()


def test_without_the_setting_or_with_another_model_nothing_stays_on_disk(program: Program) -> None:
    program.start()
    patient_id = program.add_letter()
    program.wait_until_prepared(patient_id)
    program.start(prepared_mb=0)
    assert not (program.folder / "prepared").exists()
    services = program.start()
    services.jobs.prepare(patient_id)
    program.wait_until_prepared(patient_id)
    program.end()
    program.services = build_services(Settings(data_dir=program.folder, demo=False), FakeGenerator(["Yes [1]."]))
    assert not (program.folder / "prepared").exists()


# --- what must go -----------------------------------------------------------------------------------------------


def bytes_on_disk(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("erase", ["document", "patient"])
def test_deleting_leaves_no_byte_of_the_prepared_record(program: Program, erase: str) -> None:
    services = program.start()
    patient_id = program.add_letter()
    prepared = program.wait_until_prepared(patient_id)
    pieces = [prepared[at : at + 24] for at in range(0, len(prepared) - 24, 997)]
    assert len(pieces) > 100
    assert all(piece in bytes_on_disk(program.folder) for piece in pieces[:3])
    assert b"penicillin" not in prepared
    keeper = services.generator.prompt_keeper  # type: ignore[attr-defined]
    prompts = services.conversation.record_prompts(patient_id, SamplingParams())
    assert prompts
    ids = services.generator.encode_prompt(prompts[0])  # type: ignore[attr-defined]
    assert keeper.count_known(ids) > 0
    if erase == "document":
        services.library.delete(services.store.list_documents(patient_id)[0].id)
    else:
        services.delete_patient(patient_id)
    on_disk = bytes_on_disk(program.folder)
    assert [piece for piece in pieces if piece in on_disk] == []
    assert keeper.count_known(ids) == 0


def test_a_kill_between_a_delete_and_its_prepared_record_is_made_good_at_the_next_start(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = program.start()
    patient_id = program.add_letter()
    program.wait_until_prepared(patient_id)
    document = services.store.list_documents(patient_id)[0]
    with monkeypatch.context() as patch:
        patch.setattr(services.library, "_before_delete", lambda patient_id: os.stat("/nowhere"))
        with pytest.raises(FileNotFoundError):
            services.library.delete(document.id)
    assert services.store.list_documents(patient_id)[0].status is DocumentStatus.DELETING
    assert program.file(patient_id).exists()
    services = program.start()
    wait_for(lambda: not services._preparing)
    assert services.store.list_documents(patient_id) == []
    assert not program.file(patient_id).exists()


def test_half_written_files_and_those_of_nobody_go_at_the_start(program: Program) -> None:
    program.start()
    patient_id = program.add_letter()
    program.wait_until_prepared(patient_id)
    program.end()
    half, nobodys = program.folder / "prepared" / "x.part", program.file("0" * 32)
    half.write_bytes(b"half")
    nobodys.write_bytes(program.file(patient_id).read_bytes())
    program.start()
    assert (half.exists(), nobodys.exists(), program.file(patient_id).exists()) == (False, False, True)


# --- what is not taken for a prepared record --------------------------------------------------------------------


KEY = bytes(32)
PROMPTS = tuple(
    [Message(Role.SYSTEM, "Answer."), Message(Role.USER, f"{LETTER * 3}\n\nQuestion: {question}")]
    for question in (DOSE, ALLERGY)
)


@pytest.fixture(scope="module")
def model() -> LocalGenerator:
    return LocalGenerator.load(EMBEDDED_CHECKPOINT, threads=1)


Open = Callable[..., PreparedRecords]


@pytest.fixture
def open_records(tmp_path: Path, model: LocalGenerator) -> Open:
    """The prepared records of a folder, at a start of the program: nothing is in the cache."""

    def open_them(key: bytes = KEY, max_bytes: int = 2**30, is_sound: Callable[[], bool] = lambda: True) -> object:
        keeper = model.prompt_keeper
        assert keeper
        keeper.forget()
        return PreparedRecords(tmp_path, Cipher(key), keeper, model.encode_prompt, max_bytes, is_sound)

    return open_them  # type: ignore[return-value]


def prepare(records: PreparedRecords, patient_id: str = "anna", busy: threading.Event = NEVER) -> bool:
    return records.refresh(patient_id, lambda: PROMPTS, busy)


def test_a_file_is_its_owners_alone_and_opens_again(open_records: Open, tmp_path: Path) -> None:
    assert prepare(open_records())
    assert (tmp_path / "anna.kv").stat().st_mode & 0o777 == 0o600
    records = open_records()
    assert records.load("anna", PROMPTS[0]) > 3 * BLOCK_TOKENS
    assert records.load("bert", PROMPTS[0]) == 0


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "nothing in it": lambda data: b"",
    "cut in a length": lambda data: data[:2],
    "cut in the header": lambda data: data[:40],
    "cut in a block": lambda data: data[:-1],
    "cut after the header": lambda data: data[: 4 + int.from_bytes(data[:4], "big")],
    "longer": lambda data: data + b"\0",
    "a length flipped": lambda data: flip(data, 3),
    "the header flipped": lambda data: flip(data, 30),
    "a block flipped": lambda data: flip(data, len(data) // 2),
    "the tag flipped": lambda data: flip(data, len(data) - 1),
    "a frame twice": lambda data: data + data[4 + int.from_bytes(data[:4], "big") :],
}


@pytest.mark.parametrize("how", SPOIL)
def test_a_damaged_file_is_removed_and_the_prompt_read_anew(open_records: Open, tmp_path: Path, how: str) -> None:
    prepare(open_records())
    path = tmp_path / "anna.kv"
    path.write_bytes(SPOIL[how](path.read_bytes()))
    records = open_records()
    assert records.load("anna", PROMPTS[0]) == 0
    assert not path.exists()
    assert prepare(records)
    assert open_records().load("anna", PROMPTS[0]) > 0


def test_another_key_another_patient_and_another_text_are_refused(open_records: Open, tmp_path: Path) -> None:
    path = tmp_path / "anna.kv"
    prepare(open_records())
    data = path.read_bytes()
    assert open_records(key=b"k" * 32).load("anna", PROMPTS[0]) == 0
    assert not path.exists()
    (tmp_path / "bert.kv").write_bytes(data)
    assert open_records().load("bert", PROMPTS[0]) == 0
    path.write_bytes(data)
    assert open_records().load("anna", [PROMPTS[0][0], Message(Role.USER, f"Patient: male. {LETTER}")]) == 0
    assert not path.exists()


def test_frames_of_an_earlier_file_do_not_fit_into_a_later_one(open_records: Open, tmp_path: Path) -> None:
    path = tmp_path / "anna.kv"
    files = []
    for _ in range(2):
        prepare(open_records())
        files.append(path.read_bytes())
        path.unlink()
    header = 4 + int.from_bytes(files[0][:4], "big")
    path.write_bytes(files[0][:header] + files[1][header:])
    assert open_records().load("anna", PROMPTS[0]) == 0


def test_those_not_used_for_longest_make_room(open_records: Open, tmp_path: Path) -> None:
    records = open_records()
    prepare(records)
    size = (tmp_path / "anna.kv").stat().st_size
    records = open_records(max_bytes=int(2.5 * size))
    prepare(records, "bert")
    records.load("anna", PROMPTS[0])
    prepare(records, "cora")
    assert sorted(path.stem for path in tmp_path.glob("*.kv")) == ["anna", "cora"]
    assert prepare(open_records(max_bytes=size // 2), "dora")
    assert not (tmp_path / "dora.kv").exists()


def test_preparing_gives_way_and_leaves_nothing_half_done(open_records: Open, tmp_path: Path) -> None:
    records, busy = open_records(), threading.Event()
    busy.set()
    assert not prepare(records, busy=busy)
    assert list(tmp_path.iterdir()) == []
    busy.clear()
    assert prepare(records, busy=busy)


@pytest.mark.parametrize("num_frames", [0, 1, 2])
def test_a_question_ends_the_writing_too(
    open_records: Open, tmp_path: Path, model: LocalGenerator, num_frames: int
) -> None:
    class Asked(threading.Event):
        num_looks = 0

        def is_set(self) -> bool:
            self.num_looks += 1
            return self.num_looks > num_frames

    assert prepare(open_records(max_bytes=1))  # computed, not written
    keeper = model.prompt_keeper
    assert keeper
    records = PreparedRecords(tmp_path, Cipher(KEY), keeper, model.encode_prompt, 2**30)
    assert not prepare(records, busy=Asked())
    assert list(tmp_path.iterdir()) == []
    assert model.engine_load.num_blocks_used == 0
    assert prepare(records)


def test_what_was_erased_meanwhile_is_not_written(open_records: Open, tmp_path: Path) -> None:
    records = open_records()

    def make_prompts() -> object:
        threading.Thread(target=records.erase, args=("anna",)).run()
        return PROMPTS

    assert not records.refresh("anna", make_prompts, NEVER)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_a_failing_model_read_is_not_kept(open_records: Open, tmp_path: Path) -> None:
    assert prepare(open_records(is_sound=lambda: False))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_removed_stops_the_deletion(open_records: Open, tmp_path: Path) -> None:
    (tmp_path / "anna.kv").mkdir()
    with pytest.raises(StorageError, match="cannot be removed"):
        open_records().erase("anna")
