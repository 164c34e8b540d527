"""Hours of a week, as a rule of policy names them: ``Mon-Fri 08:00-18:00``, ``Sat,Sun 22:00-06:00``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORM: Final = re.compile(r"(?:([A-Za-z,-]{3,32}) )?(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_DAY: Final = 24 * 60


class Hours(NamedTuple):
    """Minutes of the day from ``start`` to before ``end``, on ``days`` (0: Monday). An end that is not after the start
    is on the next day."""

    days: frozenset[int]
    start: int
    end: int

    def cover(self, weekday: int, minute: int) -> bool:
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        began_today = weekday in self.days and minute >= self.start
        return began_today or ((weekday - 1) % 7 in self.days and minute < self.end)


def parse_hours(text: str) -> Hours:
    """`ValueError` for what is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError
    days, *clock = found.groups()
    first_hour, first_minute, last_hour, last_minute = map(int, clock)
    start, end = first_hour * 60 + first_minute, last_hour * 60 + last_minute
    if max(first_minute, last_minute) > 59 or start >= _DAY or end > _DAY:
        raise ValueError
    return Hours(_days(days) if days else frozenset(range(7)), start, end)


def _days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = _DAYS.index(first.title()), _DAYS.index((last or first).title())
        days.update((low + step) % 7 for step in range((high - low) % 7 + 1))
    return frozenset(days)


def moment(wall: float, zone: str) -> tuple[int, int]:
    """Weekday and minute of the day at ``wall`` seconds, in ``zone``; empty: this machine's."""
    return _moment(int(wall // 60) * 60, zone)


@lru_cache(maxsize=64)  # many rules, one moment
def _moment(wall: int, zone: str) -> tuple[int, int]:
    from datetime import datetime  # noqa: PLC0415 - few need it, and every command would pay for it

    if zone:
        from zoneinfo import ZoneInfo  # noqa: PLC0415

        local = datetime.fromtimestamp(wall, ZoneInfo(zone))
    else:
        local = datetime.fromtimestamp(wall).astimezone()
    return local.weekday(), local.hour * 60 + local.minute
