"""Columns of times in a zone: what has no zone, in the table or in a rule, is local time there."""

from __future__ import annotations

import datetime
import types
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distill_jax.rules import (
    Column,
    RuleError,
    Schema,
    bind,
    conflicts,
    encode,
    encode_columns,
    fires,
    infer_schema,
    parse,
)

CLASSES = ("home", "ward")
ZONE = "Europe/Berlin"
BERLIN = Schema((Column("x", "datetime", zone=ZONE),), CLASSES)
LOCAL = [  # around midnight, and after the clocks were put forward
    datetime.datetime(2024, 1, 30, 23, 30),
    datetime.datetime(2024, 1, 31, 0, 30),
    datetime.datetime(2024, 3, 31, 3, 30),
    None,
]
AWARE = [None if x is None else x.replace(tzinfo=zoneinfo.ZoneInfo(ZONE)) for x in LOCAL]
PANDAS = pd.Series(LOCAL, dtype="datetime64[us]").dt.tz_localize(ZONE)


class PolarsColumn:
    """A column of Polars in a zone: instants in UTC, and the zone in its type."""

    dtype = types.SimpleNamespace(time_zone=ZONE)

    def __len__(self) -> int:
        return len(AWARE)

    def is_null(self) -> list[bool]:
        return [x is None for x in AWARE]

    def drop_nulls(self) -> np.ndarray:
        return PANDAS.dropna().dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()


TABLES = {
    "local": (LOCAL, ""),
    "local, NumPy": (np.array(LOCAL, "M8[us]"), ""),
    "local, strings": ([None if x is None else x.isoformat(timespec="minutes") for x in LOCAL], ""),
    "Python": (AWARE, ZONE),
    "pandas": (PANDAS, ZONE),
    "pandas in UTC": (PANDAS.dt.tz_convert("UTC"), ""),
    "pandas, an offset": (PANDAS.dt.tz_convert("-01:30"), "-01:30"),
    "Polars": (PolarsColumn(), ZONE),
}
RULES = {
    "x >= date '2024-01-31'": [0, 1, 1],
    "date '2024-01-30' <= x < date '2024-01-31'": [1, 0, 0],
    "x == datetime '2024-01-31T00:30'": [0, 1, 0],
    "x == datetime '2024-01-30T23:30Z'": [0, 1, 0],
    "x in [datetime '2024-03-31T03:30', datetime '2024-03-31T04:30+02:00']": [0, 0, 1],
    "days(date '2024-02-01' - x) < 1": [0, 1, 1],
    "x + duration '1 hour' > date '2024-01-31'": [1, 1, 1],
}


@pytest.mark.quick
@pytest.mark.parametrize(("values", "zone"), TABLES.values(), ids=TABLES)
def test_a_day_begins_at_local_midnight(values: Any, zone: str) -> None:
    book = bind("\n".join(f"{x} => ward" for x in RULES), BERLIN)
    assert parse(str(book)) == book.rules
    held = np.asarray(fires(book, encode(book, {"x": values})))
    np.testing.assert_array_equal(held[:3].T, list(RULES.values()))
    assert not held[3].any()
    column = infer_schema({"x": values}, CLASSES, kinds={"x": "datetime"}).columns[0]
    assert (column.kind, column.zone) == ("datetime", zone)
    np.testing.assert_array_equal(
        encode_columns(BERLIN, {"x": values}), encode_columns(BERLIN, {"x": AWARE})
    )


def test_conflicts_in_a_zone_have_an_example() -> None:
    text = "[hard] x > date '2024-01-31' => ward\n[hard] x < datetime '2024-01-31T00:00:01' => home"
    book = bind(text, BERLIN, conflicts="ignore")
    (found,) = conflicts(book)
    assert found.certain and found.region == (
        "datetime '2024-01-30T23:00:00Z' < x < datetime '2024-01-30T23:00:01Z'"
    )
    assert np.asarray(fires(book, encode(book, found.example))).all()


@pytest.mark.parametrize(
    ("time", "said"),
    [("2024-03-31T02:30", "not at all in the zone"), ("2024-10-27T02:30", "twice in the zone")],
)
def test_times_that_the_change_of_clocks_makes_unclear_are_refused(time: str, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        bind(f"x > datetime '{time}' => ward", BERLIN)
    for values in ([None, time], np.array(["NaT", time], "M8[m]")):
        with pytest.raises(ValueError, match=f"'x': .*{said} 'Europe/Berlin'.*in row 1"):
            encode_columns(BERLIN, {"x": values})
    early, late = encode_columns(BERLIN, {"x": [f"{time}+02:00", f"{time}+01:00"]})
    assert late > early
    # The start of a day is known, even if it has no midnight.
    gap = Schema((Column("x", "datetime", zone="America/Sao_Paulo"),), CLASSES)
    (value,) = encode_columns(gap, {"x": ["2018-11-04"]})[0]
    assert value == np.datetime64("2018-11-04", "D").astype(int) + 3 / 24


def test_zones_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no time zone 'Europe/Berlni'"):
        Column("x", "datetime", zone="Europe/Berlni")
    with pytest.raises(ValueError, match="'x' is time: zone is for datetime columns"):
        Column("x", "time", zone=ZONE)
    two = Schema((Column("x", "datetime", zone=ZONE), Column("y", "datetime")), CLASSES)
    with pytest.raises(RuleError, match=r"in the zones \['Europe/Berlin', 'UTC'\]: write the zone"):
        bind("days(x - y) > 3 and x < date '2024-01-01' < y => ward\nx - y > date '2024-01-01' - x"
             " => ward\ndate '2024-01-01' - x > date '2024-01-01' - y => ward", two)  # fmt: skip
    bind("x < y => ward\nx < datetime '2024-01-01T00:00Z' < y => ward", two)
