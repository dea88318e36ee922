"""Exclusions: what an expression leaves out, against the same thing in plain Python; and what is no expression."""

import pandas as pd
import pytest

from scaling.analysis.expressions import parse_exclusion
from scaling.analysis.table import table_from_frame
from scaling.errors import InputError

ROWS = [
    {"N": 1e6, "D": 2e9, "loss": 3.0, "variant": "wide", "lr": "0.01"},
    {"N": 2e6, "D": 1e9, "loss": None, "variant": "deep", "lr": "0.02"},
    {"N": 4e6, "D": 5e8, "loss": 2.5, "variant": None, "lr": "1e-2"},
    {"N": 8e6, "D": 1e8, "loss": 2.0, "variant": "wide", "lr": ""},
]


def left_out(said: str) -> list[int]:
    frame = pd.DataFrame(ROWS)
    rows = parse_exclusion(said).rows({name: frame[name] for name in frame})
    return [int(row) for row in rows.nonzero()[0]]


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("N < 3e6", [0, 1]),
        ("1e6 < N <= 4e6", [1, 2]),
        ("N < 3e6 and D < 1.5e9", [1]),
        ("N < 2e6 or D < 2e8", [0, 3]),
        ("not (N < 3e6)", [2, 3]),
        ("6 * N * D >= 1.2e16", [0, 1, 2]),
        ("D / N < 100 or N ** 2 == 1e12", [0, 3]),
        ("N - 1e6 == 0 or -N + 8e6 == 0", [0, 3]),
        ("N in [1e6, 8000000]", [0, 3]),
        ("variant == 'wide'", [0, 3]),
        ("variant in ['deep', 'x']", [1]),
        ("variant < 'e'", [1]),
        ("lr == 0.01", [0, 2]),  # as numbers
        ("lr == '0.01'", [0]),  # as text
        ("N / 0 > 1", [0, 1, 2, 3]),
        # A missing value settles nothing, whichever way the question is put.
        ("loss < 2.7", [2, 3]),
        ("not loss < 2.7", [0]),
        ("loss != 3", [2, 3]),
        ("variant != 'wide'", [1]),
        ("variant not in ['wide']", [1]),
        ("not variant in ['wide']", [1]),
        ("loss < 2.7 or N > 0", [0, 1, 2, 3]),
        ("not (loss < 2.7 and N > 0)", [0]),
        ("loss > 0 and N > 5e6", [3]),
    ],
)
def test_rows_that_an_expression_leaves_out(expression, rows):
    assert left_out(f"{expression} because of a test") == rows


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("N < 1e6", "no reason is given"),
        ("N < 1e6 because ", "no reason is given"),
        (" because it failed", "no expression is given"),
        ("N < because why", "not an expression"),
        ("M < 1e6 because why", "no column M.*valid: D, N, loss, lr, variant"),
        ("varaint == 'wide' because why", "no column varaint.*did you mean variant"),
        ("abs(N) < 1e6 because why", r"abs\(N\) is not allowed"),
        ("N.real < 1e6 because why", r"N\.real is not allowed"),
        ("N[0] < 1e6 because why", r"N\[0\] is not allowed"),
        ("__import__('os').system('true') == 0 because why", "is not allowed"),
        ("(lambda: N)() < 1 because why", "is not allowed"),
        ("[n for n in N] < 1 because why", "is not allowed"),
        ("N because why", "N is neither true nor false"),
        ("N + 1 because why", "is neither true nor false"),
        ("True because why", "True is neither true nor false"),
        ("N is None because why", "is no comparison"),
        ("N in 3 because why", "3 is not a list"),
        ("N in [] because why", "is not a list"),
        ("N // 2 < 1 because why", "N // 2 is not allowed"),
        ("N < True because why", "True is not allowed"),
        ("variant < 3 because why", "variant is text, and 3 is a number"),
        ("variant * 2 < 3 because why", "variant is text"),
        ("N < 1" + "0" * 400 + " because why", "too large"),
        ("N < '' because why", "'' is not allowed"),
    ],
)
def test_what_is_no_exclusion_is_refused(said, message):
    with pytest.raises(InputError, match=message):
        left_out(said)


def test_excluded_rows_are_dropped_with_their_reason_and_said(sweep):
    frame = sweep()
    said = ["C < 3e11 because too short to leave the warm-up", "N > 1e9 because too large", "C == 2e11 because again"]
    table = table_from_frame(frame, exclude=said)
    assert len(table.N_R) == 21
    assert table.dropped == tuple(
        {"row": row, "reason": "excluded: too short to leave the warm-up (C < 3e11)"} for row in range(7)
    )
    assert table.excluded == (
        {"expression": "C < 3e11", "reason": "too short to leave the warm-up", "rows": 7},
        {"expression": "N > 1e9", "reason": "too large", "rows": 0},
        {"expression": "C == 2e11", "reason": "again", "rows": 7},
    )
    assert [(warning["code"], warning["message"]) for warning in table.warnings] == [
        ("nothing_excluded", "No row is excluded by N > 1e9.")
    ]
    assert table.excluded_runs == {f"2e+11-{k}" for k in range(7)}


def test_a_row_that_cannot_be_read_can_be_excluded(sweep):
    frame = sweep()
    frame.loc[3, "loss"] = None
    with pytest.raises(InputError, match="loss is missing in row 3"):
        table_from_frame(frame)
    run = frame["run"][3]
    assert len(table_from_frame(frame, exclude=[f"run == '{run}' because its log was lost"]).N_R) == 27


def test_compute_can_be_spoken_of_where_the_table_has_none(sweep):
    table = table_from_frame(sweep().drop(columns="C"), exclude=["C < 3e11 because too short"])
    assert table.excluded[0]["rows"] == 7


def test_nothing_left_is_refused(sweep):
    with pytest.raises(InputError, match="all 28 rows are excluded"):
        table_from_frame(sweep(), exclude=["C < 1e12 because small", "C >= 1e12 because large"])
