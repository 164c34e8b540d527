from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.config import ClientConfig, CoordinatorConfig
from zkc.errors import LocalIOError, PolicyRefused
from zkc.rules.policy import (
    SIZE_UNKNOWN,
    Asked,
    Refusal,
    Rules,
    Standing,
    decide_size,
    judge,
    least_size,
    size_class,
)

RULES = Rules(["sender"], ["aes-256-gcm"], max_bytes=1000, min_free=100, at_once=2, per_second=5)
ASKED = Asked("sender", "aes-256-gcm", 1000)
STANDING = Standing(at_once=1, last_second=4, free_bytes=1100)


def test_what_meets_every_rule_exactly_may_be() -> None:
    assert judge(ASKED, RULES, STANDING).refusal is None


@pytest.mark.parametrize(
    ("asked", "rules", "standing", "code", "detail"),
    [
        ({}, {}, {"last_second": 5}, 25, "limit"),
        ({}, {}, {"at_once": 2}, 25, "limit"),
        ({}, {"accept": "none"}, {}, 25, "accept"),
        ({"key_source": "coordinator"}, {}, {}, 25, "key-source"),
        (
            {"key_source": "coordinator"}, {"key_sources": ["coordinator"], "key_orders": ["sender-first"]}, {}, 25,
            "key-order",
        ),
        ({"cipher": "3des"}, {}, {}, 25, "cipher"),
        ({"least_bytes": 1001}, {}, {"free_bytes": 10**6}, 25, "limit"),
        ({}, {}, {"free_bytes": 1099}, 33, "no-space"),
        ({"least_bytes": 0}, {}, {"free_bytes": 99}, 33, "no-space"),
    ],
)
def test_one_step_beyond_one_rule_is_refused_with_its_code(
    asked: dict[str, object], rules: dict[str, object], standing: dict[str, object], code: int, detail: str
) -> None:
    refusal = judge(ASKED._replace(**asked), RULES._replace(**rules), STANDING._replace(**standing)).refusal
    assert refusal is not None
    assert (refusal.code, refusal.detail) == (code, detail)
    assert "\n" not in refusal.text


def test_the_flood_of_a_sender_is_judged_before_anything_else() -> None:
    refusal = judge(Asked("coordinator", "idea", 10**9), RULES._replace(accept="none"), Standing(9, 99, 0)).refusal
    assert refusal is not None
    assert "requests a second" in refusal.text


def test_zero_means_no_bound_and_who_stores_nothing_needs_no_space() -> None:
    rules = Rules(["sender"], ["aes-256-gcm"])
    assert judge(ASKED._replace(least_bytes=2**62), rules, Standing(10**6, 10**6)).refusal is None


def test_bytes_that_are_on_the_disk_already_need_no_space_again() -> None:
    assert decide_size(ASKED, RULES, Standing(free_bytes=500, held_bytes=600)) is None
    assert decide_size(ASKED, RULES, Standing(free_bytes=499, held_bytes=600)) is not None


def test_who_was_let_in_is_judged_by_size_alone() -> None:
    assert decide_size(Asked("coordinator", "idea", 5), RULES._replace(accept="none"), Standing(9, 99, 105)) is None


def test_a_refusal_is_an_exception_of_its_code() -> None:
    for code, kind in ((25, PolicyRefused), (33, LocalIOError)):
        error = Refusal(code, "limit", "why", "what to do").error()
        assert type(error) is kind
        assert (error.detail, error.message, error.hint) == ("limit", "why", "what to do")


def test_a_cipher_that_a_peer_made_up_is_not_repeated_in_the_text() -> None:
    refusal = judge(ASKED._replace(cipher="\x1b]0;{rules}\x07"), RULES, STANDING).refusal
    assert refusal is not None
    assert refusal.text.isprintable()
    assert "rules" not in refusal.text


@pytest.mark.claims("E2")
def test_by_default_only_the_sender_makes_keys_and_no_unsafe_cipher_passes_anywhere() -> None:
    client, coordinator = ClientConfig(), CoordinatorConfig()
    for rules in (client.sending_rules(), client.receiving_rules(), coordinator.rules()):
        standing = Standing(free_bytes=10**12)
        assert judge(Asked("sender", "aes-256-gcm"), rules, standing).refusal is None
        assert judge(Asked("sender", "chacha20-poly1305"), rules, standing).refusal is None
        for asked in (Asked("coordinator", "aes-256-gcm"), Asked("sender", "3des"), Asked("sender", "idea")):
            refusal = judge(asked, rules, standing).refusal
            assert refusal is not None
            assert refusal.code == 25


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (None, SIZE_UNKNOWN)])
def test_a_size_class_is_an_upper_bound_as_a_power_of_two(size: int | None, expected: int) -> None:
    assert size_class(size) == expected


@given(st.integers(2, (1 << 63) - 1))
def test_a_size_lies_between_the_bounds_of_its_class(size: int) -> None:
    assert least_size(size_class(size)) <= size <= 2 ** size_class(size)


def test_an_unknown_size_is_judged_as_nothing_until_it_is_known() -> None:
    assert least_size(SIZE_UNKNOWN) == least_size(0) == 0


def test_importing_rules_and_names_brings_nothing_that_a_short_command_must_pay_for() -> None:
    code = (
        "import sys, zkc.rules.policy, zkc.rules.names, zkc.rules.units, zkc.rules.endpoints\n"
        "heavy = {'asyncio', 'structlog', 'zmq', 'sqlalchemy', 'msgspec', 'cryptography', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
