"""Instants, durations and times of day as whole nanoseconds, and how a rule's text spells them.

An instant is counted from 1970-01-01T00:00Z. A time without a zone is counted as if it were in UTC;
``instant`` makes it one of another zone. A time of day is counted from midnight, and has no zone.
"""

from __future__ import annotations

import datetime
import functools
import re
import zoneinfo
from typing import Any, TypeGuard

import numpy as np

SECOND = 1_000_000_000
DAY = 86_400 * SECOND

_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_CLOCK = re.compile(
    r"[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?(Z|([+-])([0-9]{2}):?([0-9]{2}))?"
)
_OFFSET = re.compile(r"([+-])([01][0-9]|2[0-3]):([0-5][0-9])")
_UNITS = {"W": 7 * DAY, "D": DAY, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND,
          "ms": 1_000_000, "us": 1_000, "ns": 1}  # fmt: skip
_DURATION = re.compile(
    r"(?:(?P<sign>-) ?)?"
    + " ?".join(
        rf"(?:(?P<{name}>[0-9]{{1,18}}) ?{spelling})?"
        for name, spelling in (
            ("weeks", "(?:weeks?|w)"),
            ("days", "(?:days?|d)"),
            ("hours", "(?:hours?|h)"),
            ("minutes", "(?:minutes?|min)"),
        )
    )
    + r" ?(?:(?P<seconds>[0-9]{1,18})(?:\.(?P<fraction>[0-9]{1,9}))? ?(?:seconds?|s))?"
)
_ISO_DURATION = re.compile(
    r"(?P<sign>-)?P(?:(?P<weeks>[0-9]{1,18})W)?(?:(?P<days>[0-9]{1,18})D)?"
    r"(?:T(?=[0-9])(?:(?P<hours>[0-9]{1,18})H)?(?:(?P<minutes>[0-9]{1,18})M)?"
    r"(?:(?P<seconds>[0-9]{1,18})(?:\.(?P<fraction>[0-9]{1,9}))?S)?)?"
)
_LENGTHS = {"weeks": 7 * DAY, "days": DAY, "hours": 3600 * SECOND, "minutes": 60 * SECOND,
            "seconds": SECOND}  # fmt: skip
MOST_DURATION = (10**18 - 1) * DAY
"""A longer duration has no text."""

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


def parse_datetime(text: str) -> tuple[int, bool]:
    """The instant of ``2024-01-31T12:00:00Z``, and whether a zone was written.

    Seconds, their fraction and the zone are optional.

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
    zone_hour, zone_minute = int(clock[7] or 0), int(clock[8] or 0)
    if zone_minute > 59 or zone_hour > 23:
        raise ValueError(f"there is no such time of day: {text!r}")
    zone = (zone_hour * 60 + zone_minute) * (-1 if clock[6] == "-" else 1)
    return _midnight(match) + _since_midnight(clock, text) - zone * 60 * SECOND, bool(clock[5])


def parse_time(text: str) -> int:
    """The nanoseconds from midnight to ``18:30`` or ``18:30:05.25``.

    Raises:
      ValueError: that says what to write.
    """
    clock = _CLOCK.fullmatch("T" + text)
    if clock is None or clock[5]:
        raise ValueError(f"write time '18:30' or '18:30:05', without a zone, got {text!r}")
    return _since_midnight(clock, text)


def parse_duration(text: str) -> int:
    """The nanoseconds of ``3 days 4 hours``, or of ``P3DT4H`` as ISO 8601 has it.

    Raises:
      ValueError: that says what to write.
    """
    for form in (_DURATION, _ISO_DURATION):
        match = form.fullmatch(text)
        if match is not None and any(match[name] for name in _LENGTHS):
            whole = sum(int(match[name] or 0) * length for name, length in _LENGTHS.items())
            whole += int((match["fraction"] or "").ljust(9, "0"))
            return -whole if match["sign"] else whole
    raise ValueError(
        "write duration '3 days 4 hours', of weeks, days, hours, minutes and seconds (months and "
        f"years have no fixed length), got {text!r}"
    )


def spelled(nanoseconds: int, zoned: bool) -> str:
    """A time as a rule's text: ``datetime '…Z'`` with a zone, ``date '…'`` without at midnight."""
    days, rest = divmod(nanoseconds, DAY)
    day = datetime.date.fromordinal(_EPOCH + days).isoformat()
    return f"datetime '{day}T{clock(rest)}{'Z' * zoned}'" if rest or zoned else f"date '{day}'"


def spelled_time(since_midnight: int) -> str:
    """A time of day as a rule's text: ``time '18:30:00'``."""
    return f"time '{clock(since_midnight)}'"


def spelled_duration(nanoseconds: int) -> str:
    """A duration as a rule's text: ``duration '3 days 4 hours'``."""
    rest, parts = abs(nanoseconds), []
    for name in ("days", "hours", "minutes"):
        count, rest = divmod(rest, _LENGTHS[name])
        if count:
            parts.append(f"{count} {name if count != 1 else name[:-1]}")
    if rest or not parts:
        seconds = _decimal(*divmod(rest, SECOND))
        parts.append(f"{seconds} second{'s' * (seconds != '1')}")
    return f"duration '{'-' * (nanoseconds < 0)}{' '.join(parts)}'"


def clock(since_midnight: int) -> str:
    """A time of day as ``18:30:00``, with a fraction of the second if there is one."""
    seconds, fraction = divmod(since_midnight, SECOND)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{_decimal(seconds % 60, fraction, 2)}"


def _decimal(seconds: int, fraction: int, digits: int = 1) -> str:
    tail = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"{seconds:0{digits}}{tail}"


# Zones


def instant(local: int, zone: str) -> int:
    """The instant of a time in a zone; midnight is the start of the day.

    Args:
      local: Nanoseconds, as if the time were in UTC.
      zone: A name of the tz database, an offset such as ``"+01:00"``, or ``""`` for UTC.

    Raises:
      ValueError: for a time that the zone does not have, or has twice, as clocks are changed.
    """
    if not zone:
        return local
    seconds, rest = divmod(local, SECOND)
    try:
        wall = _START + datetime.timedelta(seconds=seconds)
        first, second = (
            wall.replace(tzinfo=zone_of(zone), fold=fold).utcoffset() for fold in (0, 1)
        )
    except OverflowError:
        raise ValueError(f"the zone {zone!r} is known for the years 1 to 9999 alone") from None
    assert first is not None and second is not None
    if first != second and local % DAY:
        what = "twice" if first > second else "not at all"
        raise ValueError(
            f"{wall.isoformat(' ')} is {what} in the zone {zone!r}, as clocks are changed: write "
            "its offset, as in '+01:00'"
        )
    return (seconds - round(first.total_seconds())) * SECOND + rest


@functools.lru_cache(maxsize=64)
def zone_of(name: str) -> datetime.tzinfo:
    """The zone of a name.

    Raises:
      ValueError: if there is none.
    """
    if match := _OFFSET.fullmatch(name):
        offset = datetime.timedelta(hours=int(match[2]), minutes=int(match[3]))
        return datetime.timezone(-offset if match[1] == "-" else offset)
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"there is no time zone {name!r}: write a name of the tz database, 'Europe/Berlin' "
            "(where the system lacks it, install tzdata), or an offset, '+01:00'"
        ) from error


def name_of_zone(zone: Any) -> str:
    """The name of a zone of Python, pandas or pytz, or that name itself; ``""`` for UTC.

    Raises:
      ValueError: if it has no name.
    """
    names = (zone, getattr(zone, "key", None), getattr(zone, "zone", None))
    name = next((x for x in names if isinstance(x, str)), None)
    if name is None:
        offset = zone.utcoffset(None)
        if offset is None:
            raise ValueError(f"the zone {zone!r} has no name: convert the times to one that has")
        minutes = round(offset.total_seconds() / 60)
        sign = "-" if minutes < 0 else "+"
        name = f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    return "" if name in ("UTC", "utc", "Etc/UTC", "+00:00") else name


def is_time(x: Any) -> bool:
    """Whether a value is a date or a time: of ``datetime``, NumPy or pandas."""
    return isinstance(x, datetime.date | np.datetime64)


def is_duration(x: Any) -> bool:
    """Whether a value is a duration: of ``datetime``, NumPy or pandas."""
    return isinstance(x, datetime.timedelta | np.timedelta64)


def is_time_of_day(x: Any) -> TypeGuard[datetime.time]:
    """Whether a value is a time of day: of ``datetime``."""
    return isinstance(x, datetime.time)


def since_midnight(x: datetime.time) -> int:
    """The nanoseconds from midnight to a time of day.

    Raises:
      ValueError: for a time with a zone: how far it is from another's depends on the day.
    """
    if x.tzinfo is not None:
        raise ValueError(f"a time of day has no zone, got {x!r}: convert it to one zone before")
    return ((x.hour * 60 + x.minute) * 60 + x.second) * SECOND + x.microsecond * 1_000


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


def _since_midnight(match: re.Match[str], text: str) -> int:
    """The time of day of a match of ``_CLOCK``, without its zone."""
    hour, minute, second = (int(match[i] or 0) for i in (1, 2, 3))
    if hour > 23 or max(minute, second) > 59:
        raise ValueError(f"there is no such time of day: {text!r}")
    return ((hour * 60 + minute) * 60 + second) * SECOND + int((match[4] or "").ljust(9, "0"))


def _midnight(match: re.Match[str]) -> int:
    try:
        day = datetime.date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        raise ValueError(f"there is no such day: {match[0]!r}") from None
    return (day.toordinal() - _EPOCH) * DAY


_START = datetime.datetime(1970, 1, 1)
_EPOCH = _START.toordinal()
