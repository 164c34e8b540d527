"""Durations, sizes and rates as people write them: ``90s``, ``24h``, ``512K``, ``4G`` (powers of 1024)."""

from __future__ import annotations

import re
from typing import Final

from zkc.errors import UsageError

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

DURATION_MAX: Final = 100 * 365 * 86400.0
"""Seconds; a century: added to any clock it is still a date."""
SIZE_MAX: Final = (1 << 63) - 1
"""Bytes; the greatest number that the wire carries (`zkc.wire.messages.U64`)."""

_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)([smhd]?)", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?([KMGT]?)", re.ASCII | re.IGNORECASE)


def parse_duration(text: str, what: str = "duration") -> float:
    """Seconds in ``text``: a number with ``s``, ``m``, ``h`` or ``d`` after it; without a unit it is seconds.

    ``what`` names the value in the `UsageError` that anything else raises.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what}: {text[:40]!r} is not a duration", hint="write it like 90s, 10m, 24h or 7d")
    seconds = float(match[1]) * SECONDS[match[2] or "s"]
    if seconds > DURATION_MAX:
        raise UsageError(f"{what}: {text[:40]!r} is too long", hint="the longest is 36500d")
    return seconds


def parse_size(text: str, what: str = "size") -> int:
    """Bytes in ``text``: a number with ``K``, ``M``, ``G`` or ``T`` after it, or none; a fraction is rounded down.

    ``what`` names the value in the `UsageError` that anything else raises.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] is not None and not match[3]):
        raise UsageError(f"{what}: {text[:40]!r} is not a size", hint="write it like 512K, 20M or 4G (powers of 1024)")
    unit = BYTES[match[3].upper()]
    size = int(match[1]) * unit + int((match[2] or "").ljust(9, "0")) * unit // 10**9
    if size > SIZE_MAX:
        raise UsageError(f"{what}: {text[:40]!r} is too large", hint=f"the largest is {SIZE_MAX} bytes")
    return size


def format_duration(seconds: float) -> str:
    """``seconds`` in the largest unit that needs no fraction: what `parse_duration` reads back, to a millisecond."""
    whole = round(seconds)
    if abs(seconds - whole) >= 0.0005:
        return f"{seconds:.3f}".rstrip("0") + "s"
    unit = next((unit for unit in "dhm" if whole and whole % SECONDS[unit] == 0), "s")
    return f"{whole // SECONDS[unit]}{unit}"


def format_size(size: int) -> str:
    """``size`` bytes in the largest unit that needs no fraction: exactly what `parse_size` reads back."""
    unit = next((unit for unit in "TGMK" if size and size % BYTES[unit] == 0), "")
    return f"{size // BYTES[unit]}{unit}"


def show_size(size: float) -> str:
    """``size`` bytes, rounded, for people: ``1.5M``; a rate is this with ``/s`` after it."""
    units = "KMGT"
    for larger, unit in enumerate(units, start=1):
        if size < 1023.95 * 1024**larger or unit == units[-1]:
            break
    return f"{size:.0f}B" if size < 1024 else f"{size / 1024**larger:.1f}{unit}"


def show_apart(ahead: float) -> str:
    """For people, how far a clock is from another that it is ``ahead`` of by so many seconds: ``5 min ahead of``."""
    return f"{abs(ahead) / 60:,.0f} min {'ahead of' if ahead > 0 else 'behind'}"
