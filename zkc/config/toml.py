"""Values as TOML writes them."""

from __future__ import annotations

from zkc.rules.names import escape


def to_toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + "".join(map(_in_string, value)) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    return str(value)


def _in_string(char: str) -> str:
    """One character of a TOML string, shown as `escape` would on a terminal, but in TOML's own way."""
    if char in '"\\':
        return f"\\{char}"
    if escape(char) == char:
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"
