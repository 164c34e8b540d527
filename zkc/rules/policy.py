"""May this transfer be? One pure function, asked by sender, coordinator and recipient before any key exists.

`judge` asks, in this order: the limits of who asks and how (`_WHO_AND_HOW`); the rules of ``[[policy]]``, of which the
first that matches decides (`_CRITERIA` is the whole of what they may match); how much (`_HOW_MUCH`). The three parties
differ only in the `Rules` that they bring: what one does not judge stays at its default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Literal, NamedTuple, get_args

from zkc.errors import LocalIOError, NobodyThere, NotAuthorised, PolicyRefused, Refused, ZkcError, error_for
from zkc.ids import KEY_ORDERS, KeyOrder, KeySource, Presence
from zkc.rules.hours import Hours, moment
from zkc.rules.patterns import Patterns
from zkc.rules.rates import Bucket, Rate

Mode = Literal["allow", "ask", "refuse"]
Side = Literal["coordinator", "sender", "recipient"]

SIZE_UNKNOWN: Final = 255
"""The size class of a stream whose length nobody knows."""


class Asked(NamedTuple):
    """What a transfer asks for. ``least_bytes`` and ``most_bytes``: what is known of its size (`least_size`,
    `most_size`, or the size); ``name``: None as long as nobody has said it.
    """

    key_source: KeySource
    cipher: str
    least_bytes: int = 0
    most_bytes: int | None = None
    sender: str = ""
    recipient: str = ""
    name: str | None = None
    final: bool = True
    """Whether no more will be known; False at a recipient that has not seen the manifest."""
    key_order: KeyOrder = "recipient-first"
    """Means nothing where the sender makes the key."""


class Rule(NamedTuple):
    """One ``[[policy]]``. What is None, empty or 0 selects everything, or is no condition."""

    name: str
    mode: Mode = "allow"
    senders: Patterns | None = None
    recipients: Patterns | None = None
    min_size: int = 0
    max_size: int = 0
    key_sources: tuple[str, ...] = ()
    ciphers: tuple[str, ...] = ()
    hours: tuple[Hours, ...] = ()
    zone: str = ""
    names: Patterns | None = None
    """Of what is sent, in lower case."""
    require: Presence = "online"
    rate: Rate | None = None


class Rules(NamedTuple):
    """What one party allows. 0 in a number: no bound.

    ``max_bytes`` of one transfer; ``min_free`` bytes stay free on the disk; ``at_once`` transfers or handshakes, and
    ``per_second`` requests, of one sender.
    """

    key_sources: Collection[str]
    ciphers: Collection[str]
    key_orders: Collection[str] = KEY_ORDERS
    accept: Literal["all", "ask", "none"] = "all"
    max_bytes: int = 0
    min_free: int = 0
    at_once: int = 0
    per_second: int = 0
    policy: tuple[Rule, ...] = ()
    side: Side = "coordinator"

    @property
    def by_name(self) -> bool:
        """Whether the name of what is sent may decide."""
        return any(rule.names is not None for rule in self.policy)


class Standing(NamedTuple):
    """How things stand, without the transfer in question: of its sender ``at_once`` under way and ``last_second``
    requests seen; ``free_bytes`` on the disk, None for who stores nothing; ``held_bytes`` of it are there already;
    ``wall``: seconds since 1970; ``presence``: the level that this side states, None for who states none.
    """

    at_once: int = 0
    last_second: int = 0
    free_bytes: int | None = None
    held_bytes: int = 0
    wall: float = 0.0
    presence: Presence | None = None


class Refusal(NamedTuple):
    """Why not: a code of the contract, its finer word for the wire, a line for the own log and output, what to do."""

    code: int
    detail: str
    text: str
    hint: str

    def error(self) -> ZkcError:
        """The same as an exception."""
        return error_for(self.code, self.text, detail=self.detail, hint=self.hint)


class Verdict(NamedTuple):
    """What `judge` found. ``rule``: the name of the one that decided, empty where none did; ``why``: for this side's
    own log and eyes; ``require``: the least presence level; ``refusal``: what the sender is told where it may not be.
    """

    mode: Mode
    rule: str
    why: str
    require: Presence = "online"
    rate: Rate | None = None
    refusal: Refusal | None = None


class _Case(NamedTuple):
    asked: Asked
    rules: Rules
    now: Standing


class _Row(NamedTuple):
    refuses: Callable[[_Case], bool]
    code: int
    detail: str
    text: str
    hint: str = ""


# The first row that holds decides; what protects this side from a flood comes first.
_WHO_AND_HOW: Final = (
    _Row(
        lambda case: 0 < case.rules.per_second <= case.now.last_second,
        PolicyRefused.code, "limit", "more than {rules.per_second} requests a second from one sender",
    ),
    _Row(
        lambda case: 0 < case.rules.at_once <= case.now.at_once,
        PolicyRefused.code, "limit", "one sender has {rules.at_once} transfers under way already",
    ),
    _Row(
        lambda case: case.asked.key_source not in case.rules.key_sources,
        PolicyRefused.code, "key-source", "keys made by the {asked.key_source} are not allowed here",
        "transfer.key_sources must name '{asked.key_source}' at the coordinator and at both ends",
    ),
    _Row(
        lambda case: case.asked.key_source == "coordinator" and case.asked.key_order not in case.rules.key_orders,
        PolicyRefused.code, "key-order", "keys are not handed out {asked.key_order} here",
        "transfer.key_orders must name '{asked.key_order}' at the coordinator",
    ),
    _Row(
        lambda case: case.asked.cipher not in case.rules.ciphers,
        PolicyRefused.code, "cipher", "the cipher asked for is not allowed here",
        "transfer.ciphers must name it at the coordinator and at both ends",
    ),
)
_HOW_MUCH: Final = (
    _Row(
        lambda case: 0 < case.rules.max_bytes < case.asked.least_bytes,
        PolicyRefused.code, "limit", "larger than {rules.max_bytes} bytes (inbox.max_bytes)",
    ),
    _Row(
        lambda case: case.now.free_bytes is not None
        and case.now.free_bytes < case.rules.min_free + max(case.asked.least_bytes - case.now.held_bytes, 0),
        LocalIOError.code, "no-space", "not enough space: {rules.min_free} bytes stay free (inbox.min_free)",
    ),
)


_Holds = Callable[[Rule, Asked, Standing], bool | None]
# What a rule may match: its key, and whether it holds; None where that is not known (yet).
_CRITERIA: Final[tuple[tuple[str, _Holds], ...]] = (
    ("from", lambda rule, asked, _: rule.senders is None or rule.senders.match(asked.sender)),
    ("to", lambda rule, asked, _: rule.recipients is None or rule.recipients.match(asked.recipient)),
    ("key_source", lambda rule, asked, _: not rule.key_sources or asked.key_source in rule.key_sources),
    ("cipher", lambda rule, asked, _: not rule.ciphers or asked.cipher in rule.ciphers),
    ("hours", lambda rule, _, now: not rule.hours or _is_in_hours(rule, now.wall)),
    ("min_size", lambda rule, asked, _: not rule.min_size or _is_at_least(asked, rule.min_size)),
    ("max_size", lambda rule, asked, _: not rule.max_size or _is_at_most(asked, rule.max_size)),
    ("names", lambda rule, asked, _: rule.names is None or _is_named(asked, rule.names)),
)
_LEVELS: Final[tuple[Presence, ...]] = get_args(Presence)


def judge(asked: Asked, rules: Rules, standing: Standing) -> Verdict:
    """Whether the transfer may be, and which rule says so."""
    case = _Case(asked, rules, standing)
    if refusal := _first(_WHO_AND_HOW, case):
        return Verdict("refuse", "", refusal.text, refusal=refusal)
    verdict = _by_rules(asked, rules, standing)
    if verdict.mode != "refuse" and (refusal := _first(_HOW_MUCH, case)):
        return Verdict("refuse", verdict.rule, refusal.text, refusal=refusal)
    return verdict


def judge_again(asked: Asked, rules: Rules, standing: Standing, *, agreed: bool) -> Refusal | None:
    """By the rules alone, for a transfer that was let in: with the name and the size that its manifest says.

    ``agreed``: a person was asked about it, and accepted it.
    """
    verdict = _by_rules(asked, rules, standing)
    return verdict.refusal or (_nobody_asked() if verdict.mode == "ask" and not agreed else None)


def decide_size(asked: Asked, rules: Rules, standing: Standing) -> Refusal | None:
    """`judge` by size alone, for a transfer that was let in: with its manifest's size, or what has come so far."""
    return _first(_HOW_MUCH, _Case(asked, rules, standing))


def _by_rules(asked: Asked, rules: Rules, standing: Standing) -> Verdict:
    for rule in rules.policy:
        held, _why = match(rule, asked, rules.side, standing)
        # Something is not known. Later it will be: until then a rule that refuses waits, another lets in. Never: a rule
        # that refuses holds, another does not.
        if held or (held is None and (rule.mode == "refuse") == asked.final):
            return _decided_by(rule, standing)
    if rules.accept == "none":
        refusal = Refusal(PolicyRefused.code, "accept", "no transfers are accepted (inbox.accept)", "")
        return Verdict("refuse", "", refusal.text, refusal=refusal)
    if rules.accept == "ask":
        return Verdict("ask", "", "no rule matches, and inbox.accept is ask")
    return Verdict("allow", "", "no rule matches" + (", and inbox.accept is all" if rules.side == "recipient" else ""))


def match(rule: Rule, asked: Asked, side: Side, standing: Standing) -> tuple[bool | None, str]:
    """Whether a rule matches, None where that is not known (yet), and which of its keys says so."""
    if side == "sender" and (rule.recipients is None or rule.senders is not None or rule.mode == "ask"):
        return False, "it speaks of what comes in: of what leaves, a rule has to, no from, and does not ask"
    unknown = ""
    for key, holds in _CRITERIA:
        held = holds(rule, asked, standing)
        if held is False:
            return False, key
        if held is None:
            unknown = unknown or key
    return (None, f"{unknown} is not known") if unknown else (True, "")


def _decided_by(rule: Rule, standing: Standing) -> Verdict:
    refusal = None
    if rule.mode == "refuse":
        text = f"the rule {rule.name!r} refuses it"
        refusal = Refusal(PolicyRefused.code, "rule", text, "zkc policy check says which rule decides")
    elif standing.presence is not None and _LEVELS.index(standing.presence) < _LEVELS.index(rule.require):
        code = NobodyThere.code if rule.require == "present" else NotAuthorised.code
        refusal = Refusal(code, "rule", f"the rule {rule.name!r} requires {rule.require}", "")
    why = refusal.text if refusal else f"the first rule that matches: {rule.mode}"
    return Verdict("refuse" if refusal else rule.mode, rule.name, why, rule.require, rule.rate, refusal)


def _nobody_asked() -> Refusal:
    return Refusal(Refused.code, "nobody-asked", "policy asks a person, and nobody was asked", "")


def higher(*levels: Presence) -> Presence:
    """The highest of presence levels."""
    return max(levels, key=_LEVELS.index)


class Sight(NamedTuple):
    """One ``[[visible]]`` of a coordinator: may ``who`` see ``whom`` among those that are there? None: anyone."""

    who: Patterns | None
    whom: Patterns | None
    allow: bool


def may_see(who: str, whom: str, sights: tuple[Sight, ...]) -> bool:
    """The first that matches decides; where none does, one may. Everyone sees itself."""
    for sight in sights if who != whom else ():
        if (sight.who is None or sight.who.match(who)) and (sight.whom is None or sight.whom.match(whom)):
            return sight.allow
    return True


class RuleRates:
    """How often each sender was let in by each rule that has a rate."""

    _KEPT: Final = 4096

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], tuple[Bucket, Rate]] = {}

    def refuse(self, verdict: Verdict, sender: str, now: float) -> Refusal | None:
        """One more, at ``now`` monotonic seconds; the refusal where it is one too many."""
        rate = verdict.rate
        if rate is None or verdict.refusal is not None:
            return None
        if len(self._buckets) >= self._KEPT:
            kept = self._buckets.items()
            self._buckets = {key: each for key, each in kept if not each[0].is_unused(each[1], now)}
        bucket, _ = self._buckets.setdefault((verdict.rule, sender), (Bucket(), rate))
        if bucket.take(rate, now):
            return None
        return Refusal(PolicyRefused.code, "rate", f"the rate of the rule {verdict.rule!r} was reached", "")


def locked_out(policy: tuple[Rule, ...]) -> str:
    """A line for who wrote it, where a rule refuses everything and none before it lets anything in; else nothing."""
    for rule in policy:
        if rule.mode != "refuse":
            break
        if _is_for_all(rule):
            return f"policy: the rule {rule.name!r} refuses every transfer, and no rule before it lets one in"
    return ""


def _is_for_all(rule: Rule) -> bool:
    """Whether it selects every transfer, in plain words: those of every name are written as * or left out."""
    of_all = (each is None or each.is_for_all for each in (rule.senders, rule.recipients, rule.names))
    return all(of_all) and rule == Rule(
        rule.name, rule.mode, rule.senders, rule.recipients, names=rule.names, require=rule.require, rate=rule.rate
    )


def _is_in_hours(rule: Rule, wall: float) -> bool:
    weekday, minute = moment(wall, rule.zone)
    return any(hours.cover(weekday, minute) for hours in rule.hours)


def _is_at_least(asked: Asked, size: int) -> bool | None:
    if asked.least_bytes >= size:
        return True
    return False if asked.most_bytes is not None and asked.most_bytes < size else None


def _is_at_most(asked: Asked, size: int) -> bool | None:
    if asked.most_bytes is not None and asked.most_bytes <= size:
        return True
    return False if asked.least_bytes > size else None


def _is_named(asked: Asked, names: Patterns) -> bool | None:
    return None if asked.name is None else names.match(asked.name.casefold())


def _first(rows: tuple[_Row, ...], case: _Case) -> Refusal | None:
    for row in rows:
        if row.refuses(case):
            text, hint = (words.format(asked=case.asked, rules=case.rules) for words in (row.text, row.hint))
            return Refusal(row.code, row.detail, text, hint)
    return None


def size_class(size: int | None) -> int:
    """What the coordinator learns of a size in bytes: the least n with ``size <= 2**n``; None: `SIZE_UNKNOWN`."""
    return SIZE_UNKNOWN if size is None else max(size - 1, 0).bit_length()


def least_size(size_class: int) -> int:
    """The smallest size in bytes that has this class; 0 where it is not known."""
    return 0 if size_class in {0, SIZE_UNKNOWN} else (1 << (size_class - 1)) + 1


def most_size(size_class: int) -> int | None:
    """The largest size in bytes that has this class; None where it is not known."""
    return None if size_class == SIZE_UNKNOWN else 1 << size_class
