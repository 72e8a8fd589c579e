"""What the table concludes from its figures."""

from __future__ import annotations

import pytest

from bench.bench_table import Row, render


def test_a_ratio_says_how_many_times_better_whether_more_or_less_is_better() -> None:
    assert Row("decode", "tok/s", own=[80.0], peer=[40.0]).ratio == 2.0
    assert Row("load", "s", own=[4.0], peer=[20.0], is_rate=False).ratio == 5.0


def test_ratio_and_share_are_of_the_same_round() -> None:
    # The machine slows down; within each round ours is twice the peer's and half of the limit.
    row = Row("decode", "tok/s", own=[80.0, 40.0, 20.0], peer=[40.0, 20.0, 10.0], limit=[160.0, 80.0, 40.0])
    assert (row.ratio, row.share) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("own", "peer", "limit", "is_met"),
    [
        (80.0, [40.0], [100.0], True),
        (79.0, [40.0], [100.0], False),  # 1.98 times the peer
        (80.0, [40.0], [110.0], False),  # 73 % of the limit
        (80.0, [], [100.0], None),  # no peer here: the share alone does not meet the goal
        (80.0, [], [110.0], False),
    ],
)
def test_a_goal_is_met_when_every_part_of_it_is(
    own: float, peer: list[float], limit: list[float], is_met: bool | None
) -> None:
    row = Row("decode", "tok/s", [own], peer, limit, min_ratio=2.0, min_share=0.75)
    assert row.is_met is is_met


def test_a_time_must_stay_below_its_goal() -> None:
    assert Row("load", "s", [3.9], is_rate=False, own_goal=4).is_met
    assert Row("load", "s", [4.1], is_rate=False, own_goal=4).is_met is False


def test_the_table_shows_medians_ranges_and_what_is_missing() -> None:
    rows = [
        Row("decode", "tok/s", [70.0, 80.0, 90.0], [40.0, 40.0, 40.0], [100.0] * 3, min_ratio=2.0),
        Row("load", "s", [5.0], is_rate=False, own_goal=4),
    ]
    lines = render(rows, "Heading.").splitlines()
    assert lines[0] == "Heading."
    assert lines[4] == "| decode, tok/s | 80 (70–90) | 40 (40–40) | 100 (100–100) | 2.00× | 80% | 2× | met |"
    assert lines[5] == "| load, s | 5 | – | – | – | – | ≤ 4 | **not met** |"
