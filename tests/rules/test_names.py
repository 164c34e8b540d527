from __future__ import annotations

import json
import re
from pathlib import Path

import pyte
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zkc.errors import UsageError
from zkc.rules.names import escape, numbered, own_name, safe_name

LONG_STEM = "n" * 300

NAMES = {
    "../x": "_.._x",
    "/etc/x": "_etc_x",
    "a/../../x": "a_.._.._x",
    "..\\x": "_.._x",
    "\\\\host\\share\\x": "__host_share_x",
    "C:x": "C_x",
    "c:\\x": "c__x",
    "~/.bashrc": "_~_.bashrc",
    "~root": "_~root",
    ".ssh/authorized_keys": "_.ssh_authorized_keys",
    ".bashrc": "_.bashrc",
    "-": "_-",
    "-rf": "_-rf",
    "--output=x": "_--output=x",
    "a\0b": "a_b",
    "": "unnamed",
    ".": "_",
    "..": "_",
    "...": "_",
    " ": "_",
    "/": "_",
    "x/": "x_",
    "x.": "x",
    "x ": "x",
    "x. . ": "x",
    "CON": "_CON",
    "con.txt": "_con.txt",
    "Lpt9.tar.gz": "_Lpt9.tar.gz",
    "aux ": "_aux",
    "NUL:x": "_NUL:x",
    "COM\u00b9": "_COM\u00b9",
    "\ud800x": "\ufffdx",
    "a\nb\tc\x1b[2J\x9b": "a_b_c_[2J_",
    "gpj.\u202eexe": "gpj._exe",
    LONG_STEM + ".tar.gz": "n" * 248 + ".tar.gz",
    LONG_STEM + ".txt": "n" * 251 + ".txt",
    LONG_STEM: "n" * 255,
    "\u00e9" * 200 + ".jpg": "\u00e9" * 125 + ".jpg",
    "a." + "e" * 300: "a." + "e" * 253,
}

HARMLESS = [
    "a", "report.pdf", "10:30.log", "console.txt", "a-b", "a b (1).txt", "\u65e5\u672c.txt", "a..b", "x~", "CO.N",
]  # fmt: skip

hostile = st.text(st.sampled_from("./\\~-: \0\n\x1b\x9b\u202e\u200b\ud800CONcon1aé日") | st.characters(), max_size=400)


@pytest.mark.attack("F01", "F05")
@pytest.mark.parametrize(("given_name", "safe"), NAMES.items())
def test_a_hostile_name_is_mapped(given_name: str, safe: str) -> None:
    assert safe_name(given_name) == safe


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_name_stays_as_it_is(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.attack("F01", "F05")
@given(hostile)
@example(".." + "/" * 300)
@example("." * 300)
@example(" ." * 200)
@example("CON." + "x" * 300)
@example("a" * 254 + ". b")
@example("a." + "é" * 30)
def test_a_safe_name_is_one_component_for_any_text(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 255
    assert not {"/", "\\", "\0"} & set(name)
    assert not any(char < " " or "\x7f" <= char <= "\x9f" or "\u202a" <= char <= "\u202e" for char in name)
    assert name[0] not in ".~-"
    assert name[-1] not in ". "
    assert not re.match(r"[A-Za-z]:", name)
    assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])", re.split("[.: ]", name)[0])
    assert Path("/inbox", name).parent == Path("/inbox")
    assert safe_name(name) == name


@given(hostile, st.integers(2, 10**6))
def test_a_numbered_name_is_another_safe_name(text: str, number: int) -> None:
    name = safe_name(text)
    other = numbered(name, number)
    assert other != name
    assert safe_name(other) == other


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "a (2).txt"), ("a.tar.gz", "a (2).tar.gz"), ("a", "a (2)"), ("_.bashrc", "_ (2).bashrc"),
        ("n" * 251 + ".txt", "n" * 247 + " (2).txt"), ("\u00e4" * 125 + ".txt", "\u00e4" * 123 + " (2).txt"),
        ("\udcff" * 255, "\udcff" * 251 + " (2)"),
    ],
)  # fmt: skip
def test_a_number_goes_before_the_extension(name: str, expected: str) -> None:
    assert numbered(name, 2) == expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "n" * 256, "\u00e9" * 128])
def test_what_is_not_the_name_of_one_file_is_not_sent(name: str) -> None:
    with pytest.raises(UsageError) as error:
        own_name(name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "sent"), [("a\nb", "a\nb"), ("..x", "..x"), ("a\udcffb", "a\ufffdb"), ("n" * 255, "n" * 255)]
)
def test_any_file_of_our_own_can_be_sent_under_its_name(name: str, sent: str) -> None:
    assert own_name(name) == sent


SHOWN = {
    "plain text, 100 %": "plain text, 100 %",
    "\u00fcber \u65e5\u672c \U0001f600": "\u00fcber \u65e5\u672c \U0001f600",
    "a\x1b[31mb": r"a\x1b[31mb",
    "a\x1b]52;c;aGk=\x07": r"a\x1b]52;c;aGk=\x07",
    "\x1bP$q\"p\x1b\\": r'\x1bP$q"p\x1b\\',
    "\x9b2J": r"\x9b2J",
    "\x85": r"\x85",
    "a\r\nb\tc\x08\x7f\0": r"a\x0d\x0ab\x09c\x08\x7f\x00",
    "\u202egpj.exe": r"\u202egpj.exe",
    "a\u200bb\u200dc\ufeff": r"a\u200bb\u200dc\ufeff",
    "a\u2028b\u2029c": r"a\u2028b\u2029c",
    "a\u00a0b\u3000c": r"a\xa0b\u3000c",
    "\u115fa\u3164b\u2800": r"\u115fa\u3164b\u2800",
    "\U000e0041": r"\U000e0041",
    "\ud800": r"\ud800",
    "\u0301a": r"\u0301a",
    "a\u0301": "a\u0301",
    r"a\x1b": r"a\\x1b",
    "": "",
}


@pytest.mark.attack("F07")
@pytest.mark.parametrize(("text", "shown"), SHOWN.items())
def test_what_is_not_plainly_visible_is_shown_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.attack("F07")
@given(st.text(st.characters(), max_size=60) | hostile)
def test_escaped_text_is_one_printable_line_from_which_the_text_can_be_read(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    shown.encode()
    assert json.loads(json.dumps(shown)) == shown
    back = re.sub(
        r"\\(?:\\|x(..)|u(....)|U(........))",
        lambda match: chr(int(match[1] or match[2] or match[3], 16)) if len(match[0]) > 2 else "\\",
        shown,
    )
    assert back == text


def _terminal(text: str) -> tuple[object, ...]:
    """What of a terminal must be the same after it showed a peer's text, and the lines below that text."""
    screen = pyte.HistoryScreen(200, 6, history=50)
    stream = pyte.Stream(screen)
    stream.feed("before\r\n")
    stream.feed(text)
    stream.feed("\x1b[6;1Hafter")
    return (
        frozenset(screen.mode), screen.charset, screen.g0_charset, screen.g1_charset, screen.title, screen.icon_name,
        screen.margins, frozenset(screen.tabstops), screen.cursor.attrs._replace(data=""), screen.cursor.hidden,
        screen.cursor.y, screen.display[0], screen.display[2:], len(screen.history.top), tuple(screen.savepoints),
    )  # fmt: skip


@pytest.mark.attack("F07")
@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J", "\x1b[31m", "\x1b[?25l", "\x1b]0;owned\x07", "\x1b]52;c;aGk=\x07", "\x9b31m", "\x0e", "\x1b(0",
        "\x1b7", "\x1b[2;3r", "\x1bH", "\x1bc", "\n\n\n\n\n\n\n", "\x1bP$q\"p\x1b\\", "\x1b[5;5Hfake prompt: ",
        "\r\x1b[A",
    ],
)  # fmt: skip
def test_escaped_text_leaves_a_terminal_as_it_was(text: str) -> None:
    assert _terminal(escape(text)) == _terminal("harmless")


@pytest.mark.attack("F07")
@given(st.text(st.sampled_from("\x1b\x9b\x9d\x07\x08\r\n\x0e\x0f[]()?;0123456789HJKmhlrABCDPc7 \u202e"), max_size=30))
def test_no_escaped_text_changes_a_terminal(text: str) -> None:
    assert _terminal(escape(text)) == _terminal("harmless")


@pytest.mark.attack("F07")
def test_the_terminal_of_these_tests_does_notice_text_that_was_not_escaped() -> None:
    for text in ("\x1b[31m", "\x1b]0;owned\x07", "\n\n\n\n\n\n\n", "\x1b[?25l", "\x1b[5;5Hfake prompt: "):
        assert _terminal(text) != _terminal("harmless")
