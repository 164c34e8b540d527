"""Each criterion of ``[[policy]]``, the order of rules, and what a file that is wrong is told."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from zkc.config import load, save_client
from zkc.errors import UsageError
from zkc.rules.policy import Asked, RuleRates, Standing, Verdict, judge

ROOT = Path(__file__).parents[2]
GROUPS = '[groups]\nops = ["alice", "dave/*"]\n'
BASE: dict[str, Any] = {
    "sender": "alice", "recipient": "bob", "least_bytes": 100, "most_bytes": 100, "name": "a.iso",
}


def judged(tmp_path: Path, text: str, wall: float = 0.0, **asked: Any) -> Verdict:
    file = tmp_path / "config.toml"
    file.write_text(GROUPS + text)
    rules = load("client", file, {}).config.receiving_rules()
    given = BASE | asked
    key_source, cipher = given.pop("key_source", "sender"), given.pop("cipher", "aes-256-gcm")
    return judge(Asked(key_source, cipher, **given), rules, Standing(wall=wall, presence="online"))


def error_of(tmp_path: Path, text: str, role: Any = "client") -> str:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(role, file, {})
    assert caught.value.code == 2
    return str(caught.value).removeprefix(str(file))


@pytest.mark.parametrize(
    ("rule", "asked", "expected"),
    [
        ('from = ["@ops"]', {}, True),
        ('from = ["@ops"]', {"sender": "dave/backup"}, True),
        ('from = ["@ops"]', {"sender": "dave"}, False),
        ('from = ["ali"]', {}, False),
        ('from = ["a*"]', {}, True),
        ('to = ["bob"]', {"recipient": "bob/app"}, False),
        ('to = ["bob/*"]', {"recipient": "bob/app"}, True),
        ('key_source = ["coordinator"]', {}, False),
        ('cipher = ["chacha20-poly1305"]', {}, False),
        ('cipher = ["aes-256-gcm"]', {}, True),
        ('min_size = "100"', {}, True),
        ('min_size = "101"', {}, False),
        ('max_size = "100"', {}, True),
        ('max_size = "99"', {}, False),
        ('names = ["*.ISO"]', {}, True),
        ('names = ["*.iso"]', {"name": "B.ISO"}, True),
        ('names = ["*.exe"]', {}, False),
        ('from = ["@ops"]\nnames = ["*.exe"]', {}, False),
    ],
)
def test_a_rule_selects_by_each_of_its_keys_and_by_all_of_them(
    tmp_path: Path, rule: str, asked: dict[str, Any], expected: bool
) -> None:
    verdict = judged(tmp_path, f'[[policy]]\nname = "it"\nmode = "refuse"\n{rule}\n', **asked)
    assert (verdict.rule == "it", verdict.mode == "refuse", verdict.refusal is not None) == (expected,) * 3


@pytest.mark.parametrize(
    ("hours", "when", "expected"),
    [
        ("Mon-Fri 08:00-18:00", "2026-11-27T08:00", True),
        ("Mon-Fri 08:00-18:00", "2026-11-27T18:00", False),
        ("Mon-Fri 08:00-18:00", "2026-11-28T12:00", False),
        ("Fri 22:00-06:00", "2026-11-28T05:59", True),
        ("Fri 22:00-06:00", "2026-11-28T22:00", False),
        ("Sat-Mon 00:00-24:00", "2026-11-29T23:59", True),
        ("22:00-06:00", "2026-11-25T23:00", True),
        ("Sat,Sun 00:00-24:00", "2026-11-27T12:00", False),
    ],
)
def test_hours_are_those_of_the_week_and_may_go_past_midnight(
    tmp_path: Path, hours: str, when: str, expected: bool
) -> None:
    rule = f'[[policy]]\nmode = "refuse"\nhours = ["{hours}"]\nzone = "UTC"\n'
    verdict = judged(tmp_path, rule, wall=datetime.fromisoformat(when + "+00:00").timestamp())
    assert (verdict.mode == "refuse") == expected


def test_the_first_rule_that_matches_decides_and_none_leaves_it_to_inbox_accept(tmp_path: Path) -> None:
    rules = '[[policy]]\nfrom = ["@ops"]\n[[policy]]\nmode = "refuse"\n'
    assert judged(tmp_path, rules).rule == "policy 1"
    refused = judged(tmp_path, rules, sender="eve")
    assert (refused.rule, refused.refusal and refused.refusal.code) == ("policy 2", 25)
    for accept, mode in (("all", "allow"), ("ask", "ask"), ("none", "refuse")):
        rest = f'[[policy]]\nfrom = ["@ops"]\n[inbox]\naccept = "{accept}"\n'
        assert judged(tmp_path, rest, sender="eve").mode == mode
        assert judged(tmp_path, rest).mode == "allow"


@pytest.mark.parametrize(
    ("mode", "final", "matches"),
    [("allow", False, True), ("ask", False, True), ("refuse", False, False), ("allow", True, False),
     ("ask", True, False), ("refuse", True, True)],
)
@pytest.mark.parametrize("key", ['names = ["*.iso"]', 'max_size = "100M"', 'min_size = "1M"'])
def test_what_is_not_known_yet_lets_in_and_what_never_will_be_does_not(
    tmp_path: Path, mode: str, final: bool, matches: bool, key: str
) -> None:
    """Before the manifest a rule that refuses waits for it; without an answer for ever it holds."""
    rule = f'[[policy]]\nname = "it"\nmode = "{mode}"\n{key}\n'
    verdict = judged(tmp_path, rule, name=None, least_bytes=0, most_bytes=None, final=final)
    assert (verdict.rule == "it") == matches


def test_a_level_that_is_required_and_not_stated_is_refused_with_its_own_code(tmp_path: Path) -> None:
    for level, code in (("present", 22), ("authorised", 23)):
        refusal = judged(tmp_path, f'[[policy]]\nrequire = "{level}"\n').refusal
        assert refusal is not None
        assert refusal.code == code
    assert judged(tmp_path, '[[policy]]\nrequire = "online"\n').refusal is None


def test_a_rate_is_of_one_sender_under_one_rule(tmp_path: Path) -> None:
    verdict, rates = judged(tmp_path, '[[policy]]\nrate = "2/min"\n'), RuleRates()
    assert [rates.refuse(verdict, "alice", 5.0) is None for _ in range(3)] == [True, True, False]
    assert rates.refuse(verdict, "carol", 5.0) is None
    assert rates.refuse(verdict, "alice", 36.0) is None


def test_of_what_leaves_a_client_rules_with_to_and_without_from_speak(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[[policy]]\nmode = "ask"\n[[policy]]\nname = "out"\nto = ["prod-*"]\nmode = "refuse"\n'
        '[[policy]]\nmode = "refuse"\n'
    )
    rules = load("client", file, {}).config.sending_rules()
    to_prod, to_bob = (Asked("sender", "aes-256-gcm", recipient=name) for name in ("prod-1", "bob"))
    assert judge(to_prod, rules, Standing()).rule == "out"
    assert judge(to_bob, rules, Standing()).mode == "allow"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[policy]]\nfrm = ["a"]\n', ':1: policy "policy 1": frm is not a key of a rule; the nearest is from'),
        ('\n[[policy]]\nname = "x"\nfrom = "a"\n', ':2: policy "x": from cannot be "a"'),
        ("[[policy]]\nfrom = []\n", ":1: policy \"policy 1\": from cannot be []"),
        ('[groups]\nops = ["a"]\n[[policy]]\nto = ["@op"]\n', ':3: policy "policy 1": to: there is no group @op'),
        ('[groups]\nops = ["@b"]\n', ": groups.ops cannot be"),
        ("[groups]\nops = []\n", ": groups.ops cannot be []"),
        ("[policy]\n", ": policy is a list of tables"),
        ('[[policy]]\nhours = ["25:00-26:00"]\n', ':1: policy "policy 1": hours cannot be'),
        ('[[policy]]\nhours = ["08:00-09:00"]\nzone = "Mars/Base"\n', ':1: policy "policy 1": zone cannot be'),
        ('[[policy]]\nrate = "0/h"\n', ':1: policy "policy 1": rate cannot be'),
        ('[[policy]]\nmode = "deny"\n', ':1: policy "policy 1": mode cannot be "deny"'),
        ('[[policy]]\nmin_size = "2M"\nmax_size = "1M"\n', ':1: policy "policy 1": min_size is above max_size'),
        ('[[policy]]\nname = "x"\n[[policy]]\nname = "x"\n', ':3: two rules of policy have the name "x"'),
        ("[[visible]]\n", ": visible belongs in a coordinator's file"),
        ("[[policy]]\n" * 1001, ": more than 1000 rules"),
    ],
)
def test_a_mistake_is_told_with_file_rule_and_nearest_key(tmp_path: Path, text: str, said: str) -> None:
    assert error_of(tmp_path, text).startswith(said)


def test_what_stands_behind_a_list_or_a_text_of_several_lines_is_told_with_its_own_line(tmp_path: Path) -> None:
    several = '[groups]\nops = [\n  "a",  # one\n\n  "b",\n]\nnames = ["c",\n"d"]\n'
    assert error_of(tmp_path, several + "[inbox]\nacept = 1\n").startswith(":10: inbox.acept is not a key")
    text = '[coordinator]\nunknown = """\none\n[two"""\n'
    assert error_of(tmp_path, several + text).startswith(":10: coordinator.unknown is not a key")


def test_a_coordinator_neither_asks_nor_learns_names(tmp_path: Path) -> None:
    assert 'mode cannot be "ask"' in error_of(tmp_path, '[[policy]]\nmode = "ask"\n', "coordinator")
    assert 'visible "visible 1": whim is not a key' in error_of(tmp_path, '[[visible]]\nwhim = ["a"]\n', "coordinator")
    assert "names cannot be judged" in error_of(tmp_path, '[[policy]]\nnames = ["*"]\n', "coordinator")


def test_a_policy_that_locks_everybody_out_is_legal_and_told(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    guests = '[[policy]]\nfrom = ["guest-*"]\nmode = "refuse"\n'
    shut = '[[policy]]\nname = "shut"\nmode = "refuse"\n'
    for text in (shut, shut + 'from = ["*"]\n', shut + 'from = ["a", "*"]\nto = ["**"]\n', guests + shut):
        file.write_text(text)
        (notice,) = load("client", file, {}).notices
        assert "'shut' refuses every transfer" in notice
    for text in (guests, shut + 'from = ["a*"]\n', shut + 'max_size = "1M"\n', '[[policy]]\nfrom = ["a"]\n' + shut):
        file.write_text(text)
        assert not load("client", file, {}).notices


def test_join_keeps_the_policy_that_a_file_has(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GROUPS + '[[policy]]\nfrom = ["@ops"]\nhours = ["08:00-18:00"]\n[[policy]]\nmode = "refuse"\n')
    before = load("client", file, {}).config
    save_client(file, {"inbox.accept": "ask"})
    after = load("client", file, {}).config
    assert after.policy == before.policy
    assert len(after.policy) == 2
    assert after.inbox.accept == "ask"


@pytest.mark.parametrize("page", ["README.md", "docs/policy.md"])
def test_every_example_of_the_pages_is_read(tmp_path: Path, page: str) -> None:
    examples = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert sum("[[policy]]" in each for each in examples) >= 2
    for each in examples:
        (tmp_path / "config.toml").write_text(each)
        is_of_coordinator = "[[visible]]" in each
        config = load("coordinator" if is_of_coordinator else "client", tmp_path / "config.toml", {}).config
        assert config.policy or "[[policy]]" not in each


@pytest.mark.parametrize("role", ["client", "coordinator"])
def test_the_rules_in_the_comments_of_the_commented_files_are_read(tmp_path: Path, role: Any) -> None:
    text = (ROOT / "config" / f"{role}.toml").read_text().partition("# --- policy")[2]
    (tmp_path / "config.toml").write_text("\n".join(re.findall(r"^# ?((?:\[|\w+ = ).*)$", text, re.MULTILINE)))
    assert len(load(role, tmp_path / "config.toml", {}).config.policy) == 2
