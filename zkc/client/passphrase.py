"""Where a home's passphrase comes from where nobody is asked: a file that the environment names, or systemd."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from zkc.errors import LocalIOError
from zkc.stores import files

VARIABLE: Final = "ZKC_PASSPHRASE_FILE"
CREDENTIAL: Final = "zkc-passphrase"
"""Its name among systemd's: ``LoadCredential=zkc-passphrase:...``, or ``LoadCredentialEncrypted=``."""


def given(environ: Mapping[str, str] = os.environ) -> bytes | None:
    """The passphrase, without the end of its line; None where there is none. `LocalIOError`: unreadable, or readable
    for others."""
    path, check = environ.get(VARIABLE, ""), files.check_file
    if not path and (folder := environ.get("CREDENTIALS_DIRECTORY")):
        path, check = os.path.join(folder, CREDENTIAL), files.check_credential
        if not os.path.lexists(path):
            return None
    if not path:
        return None
    return files.read_private(Path(path), check=check).removesuffix(b"\n").removesuffix(b"\r")


def passphrase() -> bytes:
    """`given`, for programs that ask nobody; `LocalIOError` (``locked``) where there is none."""
    found = given()
    if found is None:
        raise LocalIOError(
            "the keys of this home are locked by a passphrase", detail="locked",
            hint=f"name a file that holds it in {VARIABLE}, or run it on a terminal",
        )
    return found
