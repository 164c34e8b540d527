"""Text that a peer chose, made safe: as a file name (`safe_name`) and on a terminal or in a log (`escape`).

Nothing else in zkc turns peer text into a part of a path, and nothing prints peer text that was not escaped here.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from zkc.constants import FILE_NAME_MAX
from zkc.errors import UsageError

UNNAMED: Final = "unnamed"
"""What a name of nothing becomes."""

_EXTENSION_MAX: Final = 32
"""Bytes of an extension that a shortened name keeps; what is longer is no extension."""

_FORBIDDEN: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    r"/\\"
    "\u2028\u2029"  # line and paragraph separator
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi: "exe.txt" can be shown for "txt.exe"
    "\ufeff\ufff9-\ufffb"
    "]"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DRIVE: Final = re.compile(r"([A-Za-z]):")
_DEVICE: Final = re.compile(
    r"(?:CON|PRN|AUX|NUL|CLOCK\$|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3])\s*(?:[.:].*)?",
    re.IGNORECASE | re.DOTALL,
)

_INVISIBLE: Final = re.compile(
    # Default_Ignorable_Code_Point that `str.isprintable` lets through, and a letter and a sign that look like a space.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def safe_name(peer_name: str) -> str:
    """One path component, of at most 255 bytes in UTF-8, for whatever name a peer gave (attacks F01, F05).

    Never raises and never answers with an empty name, ``.`` or ``..``. A harmless name stays as it is; what could mean
    more than a name to a file system, a shell or a reader becomes ``_`` or gets ``_`` before it: separators,
    control and bidi characters, drive letters, device names of Windows, a dot, ``~`` or ``-`` at the beginning (to a
    command whose argument it is ``-`` is standard input, and ``-rf`` an option; below the top of a folder names stay).
    Dots and spaces at the end go. A long name is shortened before its extension.
    ``safe_name(safe_name(x)) == safe_name(x)``.
    """
    name = _FORBIDDEN.sub("_", _SURROGATE.sub("\ufffd", peer_name))
    name = _DRIVE.sub(r"\1_", name, count=1) if _DRIVE.match(name) else name
    if not name:
        return UNNAMED
    if name[0] in ".~-" or _DEVICE.fullmatch(name):
        name = "_" + name
    return _cut(name, FILE_NAME_MAX).rstrip(". ") or "_"


def is_component(name: bytes) -> bool:
    """Whether these bytes of a peer can name something in a folder, and nothing outside it (attacks F01, F08).

    For names below the top of a tree, which stay as they are: they are used with a folder's descriptor alone.
    """
    return name not in {b"", b".", b".."} and len(name) <= FILE_NAME_MAX and b"/" not in name and b"\0" not in name


def folded(name: bytes) -> bytes:
    """What a file system may take ``name`` for that ignores case or the form of composed letters (attack F08).

    Unicode's canonical caseless match (D145), in UTF-8; bytes that are none stay as they are.
    """
    if name.isascii():
        return name.lower()
    text = unicodedata.normalize("NFD", name.decode(errors="surrogateescape")).casefold()
    return unicodedata.normalize("NFD", text).encode(errors="surrogateescape")


def numbered(name: str, number: int) -> str:
    """``name`` with a number before its extension, at most 255 bytes: ``a.txt`` -> ``a (2).txt``.

    For the user's own ``name`` (bytes that are not UTF-8 are kept), or a safe one, where a file of that name exists.
    """
    stem, extension = _split(name)
    mark = f" ({number})"
    return _cut_text(stem, FILE_NAME_MAX - len(_encoded(mark + extension))) + mark + extension


def own_name(text: str) -> str:
    """``text`` as the file name that this side sends: what our own file is called, or ``--name``.

    Bytes of a file name that are not UTF-8 travel as U+FFFD. `UsageError` for what is not the name of one file.
    """
    name = _SURROGATE.sub("\ufffd", text)
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise UsageError(f"'{escape(text[:80])}' is not a file name", hint="it is one name, without '/'")
    if len(name.encode()) > FILE_NAME_MAX:
        raise UsageError(f"the name {escape(text[:40])}... is too long", hint=f"at most {FILE_NAME_MAX} bytes in UTF-8")
    return name


def escape(text: str) -> str:
    r"""``text`` for a terminal or a line of a log: printable, one line, nothing invisible (attack F07). Never raises.

    Control characters (C0, C1), bidi and zero-width characters, line separators, spaces other than U+0020, lone
    surrogates, unassigned and private characters become ``\x1b``, ``\u202e``, ``\U000e0001``; a backslash is
    doubled, so two different texts are never shown alike. A combining mark at the beginning is escaped
    too: it would change the character that was printed before.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    shown = [_escaped(character) for character in text]
    if unicodedata.category(text[0]).startswith("M"):
        shown[0] = _code(text[0])
    return "".join(shown)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable() and not _INVISIBLE.match(character):
        return character
    return _code(character)


def _code(character: str) -> str:
    number = ord(character)
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _split(name: str) -> tuple[str, str]:
    """Stem and extension (with its dot; ``.tar.gz`` and its like whole), where there is one of a sensible length."""
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem or not extension or len(_encoded(extension)) >= _EXTENSION_MAX:
        return name, ""
    if stem.lower().endswith(".tar") and len(stem) > 4:
        return stem[:-4], f"{stem[-4:]}.{extension}"
    return stem, f".{extension}"


def _cut(name: str, limit: int) -> str:
    if len(_encoded(name)) <= limit:
        return name
    stem, extension = _split(name)
    return _cut_text(stem, limit - len(_encoded(extension))) + extension


def _cut_text(text: str, limit: int) -> str:
    """The longest beginning of ``text`` with at most ``limit`` bytes."""
    text = text[:limit]
    while len(_encoded(text)) > limit:
        text = text[:-1]
    return text


def _encoded(text: str) -> bytes:
    """As it is on disk: UTF-8, and the bytes of a user's file name that are none as they were."""
    return text.encode(errors="surrogateescape")
