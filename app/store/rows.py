"""Turns and findings <-> rows. Pure reading and writing on a given connection; decides nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from app.events import Step, Turn, TurnStatus, Usage
from app.store.tables import citations, claims, findings, turns
from contracts import Citation, Claim, ClaimKind, Coverage, Direction, Finding, ReadMethod, Verdict

NO_CLAIM = -1
Values = dict[str, Any]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)


def read_turns(connection: Connection, where: ColumnElement[bool]) -> list[Turn]:
    """The turns that meet a condition on the table turns, oldest first, whole."""
    rows = connection.execute(select(turns).where(where).order_by(turns.c.number)).all()
    cited: defaultdict[tuple[str, int], list[Citation]] = defaultdict(list)
    query = select(citations).join(turns, citations.c.turn_id == turns.c.id).where(where)
    for row in connection.execute(query.order_by(citations.c.position)):
        cited[row.turn_id, row.claim].append(_citation_from_row(row))
    found: defaultdict[tuple[str, str, int], list[Finding]] = defaultdict(list)
    query = select(findings).join(turns, findings.c.turn_id == turns.c.id).where(where)
    for row in connection.execute(query.order_by(findings.c.position)):
        found[row.turn_id, row.direction, row.claim].append(finding_from_row(row))
    made: defaultdict[str, list[Claim]] = defaultdict(list)
    query = select(claims).join(turns, claims.c.turn_id == turns.c.id).where(where)
    for row in connection.execute(query.order_by(claims.c.position)):
        made[row.turn_id].append(
            Claim(
                text=row.text,
                kind=ClaimKind(row.kind),
                citations=tuple(cited[row.turn_id, row.position]),
                verdict=Verdict(row.verdict),
                findings=tuple(found[row.turn_id, Direction.OUTPUT.value, row.position]),
            )
        )
    return [
        _turn_from_row(
            row,
            made[row.id],
            found[row.id, Direction.INPUT.value, NO_CLAIM],
            found[row.id, Direction.DOCUMENT.value, NO_CLAIM],
            found[row.id, Direction.OUTPUT.value, NO_CLAIM],
        )
        for row in rows
    ]


def add_turn_row(connection: Connection, turn: Turn) -> None:
    connection.execute(insert(turns).values(id=turn.id, conversation_id=turn.conversation_id, **_turn_to_row(turn)))


def write_turn(connection: Connection, turn: Turn) -> bool:
    """Replaces the stored turn with this one; False, and nothing written, if it is not stored (any more).

    Claims are written anew each time: at most some dozens of small rows, and no state to compare with.
    """
    changed = connection.execute(update(turns).where(turns.c.id == turn.id).values(**_turn_to_row(turn)))
    if not changed.rowcount:
        return False
    connection.execute(delete(findings).where(findings.c.turn_id == turn.id))
    connection.execute(delete(claims).where(claims.c.turn_id == turn.id))  # citations go with them
    claim_rows = [
        {
            "turn_id": turn.id,
            "position": position,
            "kind": claim.kind.value,
            "verdict": claim.verdict.value,
            "text": claim.text,
        }
        for position, claim in enumerate(turn.claims)
    ]
    citation_rows = [
        {"turn_id": turn.id, "claim": index, "position": position, **_citation_to_row(citation)}
        for index, claim in enumerate(turn.claims)
        for position, citation in enumerate(claim.citations)
    ]
    for table, rows in ((claims, claim_rows), (citations, citation_rows), (findings, list(_finding_rows(turn)))):
        if rows:
            connection.execute(insert(table), rows)
    return True


def finding_to_row(finding: Finding) -> Values:
    return asdict(finding) | {"severity": finding.severity.value}


def finding_from_row(row: Row) -> Finding:
    return from_row(Finding, row, severity=Verdict(row.severity))


def from_row(kind: type[T], row: Row, **converted: Any) -> T:
    """A dataclass from the columns that bear its fields' names; `converted` are those that SQL keeps differently."""
    same = {name: getattr(row, name) for name in kind.__dataclass_fields__ if name not in converted}
    return kind(**same, **converted)


def _finding_rows(turn: Turn) -> Iterator[Values]:
    groups: list[tuple[Direction, int, Sequence[Finding]]] = [
        (Direction.INPUT, NO_CLAIM, turn.input_findings),
        (Direction.DOCUMENT, NO_CLAIM, turn.document_findings),
        (Direction.OUTPUT, NO_CLAIM, turn.model_findings),
    ]
    groups += [(Direction.OUTPUT, index, claim.findings) for index, claim in enumerate(turn.claims)]
    for direction, claim_index, found in groups:
        for position, finding in enumerate(found):
            place = {"turn_id": turn.id, "direction": direction.value, "claim": claim_index, "position": position}
            yield place | finding_to_row(finding)


def _turn_to_row(turn: Turn) -> Values:
    return {
        "created_at": turn.created_at,
        "status": turn.status.value,
        "question": turn.question,
        "document_ids": turn.document_ids,
        "input_verdict": turn.input_verdict.value,
        "coverage": None if turn.coverage is None else asdict(turn.coverage),
        "usage": asdict(turn.usage),
        "model_name": turn.model_name,
        "error": turn.error,
        "record": turn.record,
    }


def _turn_from_row(
    row: Row,
    made: Sequence[Claim],
    input_findings: Sequence[Finding],
    document_findings: Sequence[Finding],
    model_findings: Sequence[Finding],
) -> Turn:
    status = TurnStatus(row.status)
    return from_row(
        Turn,
        row,
        status=status,
        document_ids=None if row.document_ids is None else tuple(row.document_ids),
        claims=tuple(made),
        input_verdict=Verdict(row.input_verdict),
        input_findings=tuple(input_findings),
        document_findings=tuple(document_findings),
        model_findings=tuple(model_findings),
        coverage=None if row.coverage is None else _coverage(row.coverage),
        usage=Usage(**row.usage),
        step=Step.QUEUED if status is TurnStatus.RUNNING else Step.DONE,
        step_detail="",
        step_done=0,
        step_total=0,
    )


def _coverage(values: Values) -> Coverage:
    fields: Values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Coverage(**fields)


def _citation_to_row(citation: Citation) -> Values:
    return asdict(citation) | {"method": citation.method.value}


def _citation_from_row(row: Row) -> Citation:
    return from_row(Citation, row, method=ReadMethod(row.method))
