"""Writing what `zkc join` was told into a client's ``config.toml``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from zkc.config.keys import ClientConfig, keys_of
from zkc.config.reading import read_file, read_value
from zkc.config.toml import to_toml
from zkc.stores.files import write_private


def save_client(path: Path, changes: Mapping[str, object]) -> None:
    """Writes ``changes`` (``section.key`` -> value as TOML has it) and what the file already said to ``path``.

    What equals the default is left out; comments are not kept. The file is replaced whole, so a crash leaves the old or
    the new one. `UsageError` where the old file or a value is wrong, `LocalIOError` where it cannot be written.
    """
    keys = keys_of(ClientConfig)
    found, policy = read_file(ClientConfig, path)
    values = {name: value for name, (value, _) in found.items()}
    values |= {name: read_value(keys[name], value, str(path)) for name, value in changes.items()}
    sections: dict[str, list[str]] = {}
    for name, key in keys.items():
        value = values.get(name, key.default)
        if value != key.default:
            sections.setdefault(key.section, []).append(f"{key.name} = {to_toml(key.reader.show(value))}")
    text = "\n".join(f"[{section}]\n" + "".join(f"{line}\n" for line in lines) for section, lines in sections.items())
    text = "\n".join(filter(None, [text, policy.to_toml()]))
    write_private(Path(os.path.realpath(path)), f"# Written by zkc join.\n{text}".encode(), replace=True)


def put_back(path: Path, text: bytes | None) -> None:
    """What ``path`` had before `save_client`; None: it was not there."""
    if text is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != text:
        write_private(Path(os.path.realpath(path)), text, replace=True)
