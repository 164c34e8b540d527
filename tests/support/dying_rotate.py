"""``python -m tests.support.dying_rotate MOMENT WORDS``: ``zkc rotate WORDS`` by a process that dies meanwhile.

``application``: when the coordinator has the new keys of the home's application, and this home has not.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

from zkc.client.link import Link
from zkc.stores.key_rows import Registration, Renewed
from zkc.stores.keystore import KeyStore
from zkc.ui.cli.main import main

Moment = Literal["kept", "told", "stored"]
"""The new keys are in the key store, and nobody has heard of them; the coordinator has them; they are in use."""
MOMENTS: Final[tuple[Moment, ...]] = get_args(Moment)


def die(*_args: Any, **_options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(before: Callable[..., Any]) -> Callable[..., Any]:
    """``before``, and then the end."""

    def then_die(*args: Any, **options: Any) -> None:
        before(*args, **options)
        die()

    return then_die


def dying_at_an_application(real: Callable[..., Any]) -> Callable[..., Any]:
    def complete(store: KeyStore, renewed: Renewed, registration: Registration, former: bytes) -> None:
        if registration.owner is not None:
            die()
        real(store, renewed, registration, former)

    return complete


if __name__ == "__main__":
    match sys.argv[1]:
        case "kept":
            KeyStore.begin_renewal = dying(KeyStore.begin_renewal)  # type: ignore[method-assign]
        case "told":
            KeyStore.complete_renewal = die  # type: ignore[method-assign]
        case "stored":
            Link.adopt = die  # type: ignore[method-assign]
        case "application":
            KeyStore.complete_renewal = dying_at_an_application(KeyStore.complete_renewal)  # type: ignore[method-assign]
        case _:
            raise SystemExit(f"no such moment: {sys.argv[1]}")
    sys.exit(main(["rotate", *sys.argv[2:]]))
