"""Instants and durations as whole nanoseconds, and how a rule's text spells an instant.

An instant is counted from 1970-01-01T00:00Z. A time without a zone is read as UTC.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import numpy as np

SECOND = 1_000_000_000
DAY = 86_400 * SECOND

_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_CLOCK = re.compile(
    r"[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?(Z|([+-])([0-9]{2}):?([0-9]{2}))?"
)
_UNITS = {"W": 7 * DAY, "D": DAY, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND,
          "ms": 1_000_000, "us": 1_000, "ns": 1}  # fmt: skip
_FINER = {"ps": 10**3, "fs": 10**6, "as": 10**9}


def parse_date(text: str) -> int:
    """The instant of ``2024-01-31``, at 00:00.

    Raises:
      ValueError: that says what to write.
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"write date '2024-01-31', or datetime with a time of day, got {text!r}")
    return _midnight(match)


def parse_datetime(text: str) -> int:
    """The instant of ``2024-01-31T12:00:00Z``, with seconds, their fraction and zone optional.

    Raises:
      ValueError: that says what to write.
    """
    match = _DATE.match(text)
    clock = _CLOCK.fullmatch(text, match.end()) if match else None
    if match is None or clock is None:
        raise ValueError(
            "write datetime '2024-01-31T12:00:00Z' (or +01:00 in place of Z, or no zone for UTC), "
            f"got {text!r}"
        )
    hour, minute, second = (int(clock[i] or 0) for i in (1, 2, 3))
    zone_hour, zone_minute = int(clock[7] or 0), int(clock[8] or 0)
    if hour > 23 or max(minute, second, zone_minute) > 59 or zone_hour > 23:
        raise ValueError(f"there is no such time of day: {text!r}")
    zone = (zone_hour * 60 + zone_minute) * (-1 if clock[6] == "-" else 1)
    seconds = ((hour * 60 + minute) - zone) * 60 + second
    return _midnight(match) + seconds * SECOND + int((clock[4] or "").ljust(9, "0"))


def spelled(instant: int) -> str:
    """An instant as a rule's text: ``date '2024-01-31'``, or ``datetime '…'`` within a day."""
    days, rest = divmod(instant, DAY)
    day = datetime.date.fromordinal(_EPOCH + days).isoformat()
    if not rest:
        return f"date '{day}'"
    seconds, fraction = divmod(rest, SECOND)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    tail = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"datetime '{day}T{clock}{tail}Z'"


def is_time(x: Any) -> bool:
    """Whether a value is a date or a time: of ``datetime``, NumPy or pandas."""
    return isinstance(x, datetime.date | np.datetime64)


def is_duration(x: Any) -> bool:
    """Whether a value is a duration: of ``datetime``, NumPy or pandas."""
    return isinstance(x, datetime.timedelta | np.timedelta64)


def nanoseconds(x: Any) -> int:
    """The nanoseconds of a value for which ``is_time`` or ``is_duration`` holds."""
    if isinstance(x, np.datetime64 | np.timedelta64):
        return int(as_nanoseconds(np.array([x]))[0])
    if isinstance(x, datetime.timedelta):
        rest = (x.seconds * 1_000_000 + x.microseconds) * 1_000
        return x.days * DAY + rest + getattr(x, "nanoseconds", 0)  # pandas has them
    whole = (x.toordinal() - _EPOCH) * DAY
    if not isinstance(x, datetime.datetime):
        return whole
    seconds = (x.hour * 60 + x.minute) * 60 + x.second
    whole += seconds * SECOND + x.microsecond * 1_000 + getattr(x, "nanosecond", 0)
    zone = x.utcoffset()
    return whole if zone is None else whole - nanoseconds(zone)


def as_nanoseconds(values: np.ndarray) -> np.ndarray:
    """Instants or durations of NumPy as whole nanoseconds: int64, or objects beyond its range.

    Raises:
      ValueError: for a fraction of a nanosecond.
    """
    unit, count = np.datetime_data(values.dtype)
    if unit in ("Y", "M"):
        if values.dtype.kind == "m":
            raise ValueError("months and years have no fixed length: convert them to days")
        values, unit, count = values.astype("M8[D]"), "D", 1
    whole = values.astype(np.int64)
    if unit == "generic" and whole.any():
        raise ValueError("these have no unit: give them one, as in astype('m8[s]')")
    if unit in _FINER:
        finer = whole.astype(object) * count
        if any(x % _FINER[unit] for x in finer):
            raise ValueError("times are held to nanoseconds, and these are finer: round them")
        return finer // _FINER[unit]
    factor = _UNITS.get(unit, 1) * count
    most = int(np.abs(whole.astype(np.float64)).max()) if len(whole) else 0
    return (whole if most * factor < 2**62 else whole.astype(object)) * factor


def _midnight(match: re.Match[str]) -> int:
    try:
        day = datetime.date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        raise ValueError(f"there is no such day: {match[0]!r}") from None
    return (day.toordinal() - _EPOCH) * DAY


_EPOCH = datetime.date(1970, 1, 1).toordinal()
