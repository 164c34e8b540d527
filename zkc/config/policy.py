"""``[groups]`` and ``[[policy]]`` of either role's file, made into the rules that `zkc.rules.policy` judges by.

Whatever is wrong is a `UsageError` that names the file, the rule and the nearest key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard, TypeVar

from zkc.config.toml import to_toml
from zkc.errors import UsageError
from zkc.ids import CIPHERS
from zkc.rules.hours import moment, parse_hours
from zkc.rules.names import escape
from zkc.rules.patterns import Patterns
from zkc.rules.policy import Rule, Sight
from zkc.rules.rates import Rate
from zkc.rules.units import parse_size

TABLES: Final = ("groups", "policy", "visible")
"""What of a file is no section of keys."""
RULES_MAX: Final = 1000
_GROUP: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_PATTERN: Final = re.compile(r"[a-z0-9._*?-]{1,63}(?:/[a-z0-9._*?-]{1,63})?", re.ASCII)
_RATE: Final = re.compile(r"([1-9]\d{0,5})/(s|min|h|d)", re.ASCII)
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_LIST_MAX: Final = 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """What a file says of it: as rules, and as it was written."""

    rules: tuple[Rule, ...] = ()
    groups: Mapping[str, object] = field(default_factory=dict)
    written: Sequence[Mapping[str, object]] = ()
    lines: tuple[int, ...] = ()
    """On which each rule stands."""
    where: str = ""
    sights: tuple[Sight, ...] = ()

    def to_toml(self) -> str:
        """The same tables again, without comments."""
        tables = [f"[groups]\n{_keys(self.groups)}"] if self.groups else []
        tables += [f"[[policy]]\n{_keys(rule)}" for rule in self.written]
        return "\n".join(tables)


def _keys(table: Mapping[str, object]) -> str:
    return "".join(f"{key if '.' not in key else to_toml(key)} = {to_toml(value)}\n" for key, value in table.items())


def read_policy(document: Mapping[str, object], text: str, where: str, *, coordinator: bool) -> PolicyTables:
    """The tables of a file that was read from ``text``."""
    groups = _groups(document.get("groups", {}), where)
    tables = document.get("policy", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise _wrong(f"{where}: policy is a list of tables", "write each rule below a line [[policy]]")
    if len(tables) > RULES_MAX:
        raise _wrong(f"{where}: more than {RULES_MAX} rules of policy")
    sights = _sights(document.get("visible", []), where, groups, coordinator=coordinator)
    lines = [n for n, line in enumerate(text.split("\n"), 1) if re.match(r"\s*\[\[\s*policy\s*\]\]", line)]
    if len(lines) != len(tables):
        lines = [1] * len(tables)
    rules: dict[str, Rule] = {}
    for number, (line, table) in enumerate(zip(lines, tables, strict=True), 1):
        rule = _Table(table, number, f"{where}:{line}", groups).rule(coordinator=coordinator)
        if rule.name in rules:
            raise _wrong(f"{where}:{line}: two rules of policy have the name {to_toml(rule.name)}")
        rules[rule.name] = rule
    given: Any = document.get("groups", {})
    return PolicyTables(tuple(rules.values()), given, tables, tuple(lines), where, sights)


def _groups(table: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(table, dict):
        raise _wrong(f"{where}: groups is a section", "write it as [groups], a list of names for each")
    groups: dict[str, tuple[str, ...]] = {}
    for name, members in table.items():
        if not _GROUP.fullmatch(name):
            raise _wrong(f"{where}: groups: {to_toml(name[:80])} is no name of a group")
        if not _is_texts(members) or not all(_PATTERN.fullmatch(each) for each in members):
            raise _wrong(
                f"{where}: groups.{name} cannot be {to_toml(members)[:60]}",
                "expected a list that is not empty, of names and patterns; a group holds no other group",
            )
        groups[name] = tuple(members)
    return groups


def _sights(
    tables: object, where: str, groups: Mapping[str, Sequence[str]], *, coordinator: bool
) -> tuple[Sight, ...]:
    """``[[visible]]``: the same keys and patterns as a rule of policy has, fewer of them."""
    if not isinstance(tables, list) or len(tables) > RULES_MAX or not all(isinstance(each, dict) for each in tables):
        raise _wrong(f"{where}: visible is a list of at most {RULES_MAX} tables", "write each below a line [[visible]]")
    if tables and not coordinator:
        raise _wrong(f"{where}: visible belongs in a coordinator's file", "it says who sees whom in zkc peers")
    return tuple(_Table(each, number, where, groups, "visible").sight() for number, each in enumerate(tables, 1))


class _Table:
    """One ``[[policy]]``, read key by key."""

    def __init__(
        self, table: Mapping[str, object], number: int, where: str, groups: Mapping[str, Sequence[str]],
        kind: str = "policy",
    ) -> None:
        self._table = table
        self._groups = groups
        name = table.get("name", f"{kind} {number}")
        if not isinstance(name, str) or not 0 < len(name) <= 64 or escape(name) != name:
            raise _wrong(f"{where}: {kind} {number}: name cannot be {to_toml(name)[:60]}", "expected 1 to 64 letters")
        self._name = name
        self._where = f"{where}: {kind} {to_toml(name)}"

    def sight(self) -> Sight:
        self._check_keys(_SIGHT_KEYS)
        mode = self._one("mode", "allow", _one_of("allow", "refuse"), _choices(("allow", "refuse")))
        return Sight(self._patterns("who"), self._patterns("whom"), mode == "allow")

    def _check_keys(self, keys: Sequence[str]) -> None:
        for key in self._table:
            if key not in keys:
                nearest = max(keys, key=lambda known: difflib.SequenceMatcher(None, key[:80], known).ratio())
                raise _wrong(f"{self._where}: {escape(key[:80])} is not a key of a rule", f"the nearest is {nearest}")

    def rule(self, *, coordinator: bool) -> Rule:
        self._check_keys(_KEYS)
        if coordinator and "names" in self._table:
            raise _wrong(f"{self._where}: names cannot be judged here", "the coordinator never learns what is sent")
        modes = ("allow", "refuse") if coordinator else ("allow", "ask", "refuse")
        zone = self._one("zone", "", _zone, 'a time zone such as "Europe/Berlin", known to this machine')
        least = self._one("min_size", 0, parse_size, 'a size such as "1M"')
        most = self._one("max_size", 0, parse_size, 'a size such as "4G"')
        if most and least > most:
            raise _wrong(f"{self._where}: min_size is above max_size")
        names = self._list("names", lambda text: text.casefold(), 'a list that is not empty, such as ["*.iso"]')
        rule = Rule(
            self._name,
            mode=self._one("mode", "allow", _one_of(*modes), _choices(modes)),
            senders=self._patterns("from"),
            recipients=self._patterns("to"),
            min_size=least,
            max_size=most,
            key_sources=self._list("key_source", _one_of("sender", "coordinator"), _listed("sender", "coordinator")),
            ciphers=self._list("cipher", _one_of(*CIPHERS), _listed(*CIPHERS)),
            hours=self._list("hours", parse_hours, 'a list that is not empty, such as ["Mon-Fri 08:00-18:00"]'),
            zone=zone,
            names=Patterns(names) if names else None,
            require=self._one("require", "online", _one_of(*_LEVELS), _choices(_LEVELS)),
            rate=self._one("rate", None, _rate, 'a rate such as "10/h", per s, min, h or d'),
        )
        if zone and not rule.hours:
            raise _wrong(f"{self._where}: zone goes with hours")
        if rule.mode == "refuse" and (rule.rate or "require" in self._table):
            raise _wrong(f"{self._where}: rate and require are conditions of what is let in", "mode is refuse")
        return rule

    def _one(self, key: str, default: T, read: Callable[[str], T], expects: str) -> T:
        if key not in self._table:
            return default
        value = self._table[key]
        try:
            if isinstance(value, str):
                return read(value)
        except (ValueError, UsageError):
            pass
        raise self._cannot(key, expects)

    def _list(self, key: str, read: Callable[[str], T], expects: str) -> tuple[T, ...]:
        if key not in self._table:
            return ()
        value = self._table[key]
        try:
            if _is_texts(value):
                return tuple(read(each) for each in value)
        except ValueError:
            pass
        raise self._cannot(key, expects)

    def _patterns(self, key: str) -> Patterns | None:
        if key not in self._table:
            return None
        value = self._table[key]
        if not _is_texts(value):
            raise self._cannot(key, "a list that is not empty, of names, patterns and @groups")
        patterns: list[str] = []
        for each in value:
            if each.startswith("@"):
                if each[1:] not in self._groups:
                    close = difflib.get_close_matches(each[1:], self._groups, 1)
                    hint = f"the nearest is @{close[0]}" if close else "[groups] says which there are"
                    raise _wrong(f"{self._where}: {key}: there is no group {escape(each[:80])}", hint)
                patterns += self._groups[each[1:]]
            elif _PATTERN.fullmatch(each):
                patterns.append(each)
            else:
                raise self._cannot(key, "names, patterns with * and ?, and @groups")
        return Patterns(patterns)

    def _cannot(self, key: str, expects: str) -> UsageError:
        return _wrong(f"{self._where}: {key} cannot be {to_toml(self._table[key])[:60]}", f"expected {expects}")


_KEYS: Final = (
    "name", "from", "to", "min_size", "max_size", "key_source", "cipher", "hours", "zone", "names", "mode", "require",
    "rate",
)
_SIGHT_KEYS: Final = ("name", "who", "whom", "mode")
_LEVELS: Final = ("online", "present", "authorised")


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list) and 0 < len(value) <= _LIST_MAX
        and all(isinstance(each, str) and 0 < len(each) <= 255 for each in value)
    )


def _one_of(*words: str) -> Callable[[str], Any]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


def _choices(words: Sequence[str]) -> str:
    return "one of " + ", ".join(map(to_toml, words))


def _listed(*words: str) -> str:
    return "a list that is not empty: " + _choices(words)


def _zone(text: str) -> str:
    try:
        moment(0.0, text)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError from None
    return text


def _rate(text: str) -> Rate | None:
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError
    count = int(found[1])
    return Rate(count, count / _SECONDS[found[2]])


def _wrong(message: str, hint: str = "") -> UsageError:
    return UsageError(message, detail="config", hint=hint)
