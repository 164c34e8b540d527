"""The environment of a command that a person runs with what has arrived (``recv --exec``, hooks)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from zkc.rules.names import safe_name

if TYPE_CHECKING:
    from zkc.stores.items import Item

_OWN_SECRETS: Final = frozenset({"ZKC_PIN", "ZKC_INVITE", "ZKC_PASSPHRASE_FILE"})


def item_environment(item: Item) -> dict[str, str]:
    """What a command learns of an item. The name is one that is safe to give to a file."""
    return {
        "ZKC_SENDER": item.sender,
        "ZKC_NAME": safe_name(item.name),
        "ZKC_NOTE": item.note.replace("\0", ""),
        "ZKC_DIGEST": f"blake3:{item.digest.hex()}",
        "ZKC_TRANSFER": item.transfer,
        "ZKC_KEY_SOURCE": item.key_source,
        "ZKC_ASKED_BY": item.asked_by,
    }


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a command that is not ours may have of ``environment``."""
    return {name: value for name, value in environment.items() if name not in _OWN_SECRETS}
