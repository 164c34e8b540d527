"""Key files that others could have read or written, and damaged ones, as the programs meet them."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.again import Again
from tests.support.evil_fleet import error_of
from tests.support.link import flipped, places
from zkc.coordinator.identity import load as load_identity
from zkc.stores.home import Home
from zkc.stores.keydb import KeyDb
from zkc.stores.keystore import KeyStore
from zkc.testing import Done, Fleet

SAMPLES = 16
"""Flips spread over a file, beside those in the keys themselves."""
SAMPLES_OF_SOAK = 2000
INVITE = ["coordinator", "invite", "carol", "--endpoint", "tcp://127.0.0.1:1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The homes of alice (who has pinned bob), bob and their coordinator; nothing runs in them."""
    folder = tmp_path_factory.mktemp("homes") / "fleet"
    with Fleet("alice", "bob", folder=folder) as fleet:
        done = fleet.zkc("alice", "send", "bob", "-m", "hello")
        assert done.code == 0, done
    return folder


@pytest.fixture
def homes(folder: Path, tmp_path: Path) -> Iterator[Fleet]:
    """A copy of them, with nobody running."""
    shutil.copytree(folder, tmp_path / "copy")
    fleet = Fleet(folder=tmp_path / "copy")
    yield fleet
    fleet.close()


# --- who may read and write ---------------------------------------------------------------------------------------


def readable(path: Path) -> None:
    path.chmod(0o644)


def writable_by_the_group(path: Path) -> None:
    path.chmod(0o620)


def home_writable_by_the_group(path: Path) -> None:
    path.parent.chmod(0o770)


def elsewhere(path: Path) -> None:
    """A link to the file, which is otherwise as it should be."""
    real = path.parent.with_name("real-" + path.name)
    path.rename(real)
    path.symlink_to(real)


LOOSE = [readable, writable_by_the_group, home_writable_by_the_group, elsewhere]


@pytest.mark.attack("K01")
@pytest.mark.parametrize(
    ("home", "file", "commands"),
    [
        ("alice", "keys.db", [["daemon"], ["send", "bob", "-m", "x"], ["verify", "bob"], ["peers"]]),
        ("coordinator", "identity.key", [["coordinator", "run"], INVITE]),
        ("coordinator", "keys.db", [["coordinator", "run"], ["coordinator", "clients"]]),
    ],
    ids=["client", "identity", "key database"],
)
def test_keys_that_others_may_have_had_are_refused_with_the_command_that_mends_it(
    homes: Fleet, home: str, file: str, commands: list[list[str]]
) -> None:
    path = homes.home(home) / file
    before = path.lstat(), path.parent.stat().st_mode & ~0o044
    for loosen, words in zip(LOOSE, itertools.cycle(commands), strict=False):
        loosen(path)
        error = error_of(homes.zkc(home, *words, "--json"))
        assert (error["code"], error["detail"]) == (33, "permission"), (loosen, words)
        _, _, mend = error["message"].partition("to mend it: ")
        assert mend, error
        subprocess.run(mend, shell=True, check=True)
        after = path.lstat(), path.parent.stat().st_mode & ~0o044
        assert (after[0].st_ino, after[0].st_mode, after[1] & 0o022) == (before[0].st_ino, before[0].st_mode, 0)
    assert works(homes, home, file).code == 0


def works(fleet: Fleet, home: str, file: str) -> Done:
    return fleet.zkc(home, *reading(home, file))


def reading(home: str, file: str) -> list[str]:
    """A command that reads the whole of that file, and needs nobody else."""
    if home == "alice":
        return ["verify", "bob", "--json"]
    return [*(INVITE if file == "identity.key" else ["coordinator", "clients"]), "--json"]


# --- damage -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A file of keys, and how to see with a program which keys are in it."""

    home: str
    file: str
    keys: Callable[[Path], list[bytes]]
    """What stands in it and must never be another."""


def client_keys(home: Path) -> list[bytes]:
    with KeyStore.open(Home.resolve("client", str(home))) as store:
        (registration,) = store.registrations()
        (pin,) = store.pins()
    return [
        registration.identity_private, registration.kem_private, registration.curve_secret, registration.card,
        registration.coordinator_card, registration.coordinator_fingerprint, registration.perm_server_public,
        registration.uid, pin.fingerprint, pin.card,
    ]


def identity_keys(home: Path) -> list[bytes]:
    identity = load_identity(home)
    return [identity.general_key.encode()]


def database_keys(home: Path) -> list[bytes]:
    db = KeyDb.open(f"sqlite:///{home / 'keys.db'}", load_identity(home).mac_key, create=False)
    try:
        return [
            part
            for row in db.clients()
            for part in (
                row.uid, row.card, row.certificate, row.curve_public, row.perm_server_private, row.fingerprint,
            )
        ]
    finally:
        db.close()


KEPT = [
    Kept("alice", "keys.db", client_keys),
    Kept("coordinator", "identity.key", identity_keys),
    Kept("coordinator", "keys.db", database_keys),
]


@pytest.fixture(params=KEPT, ids=lambda kept: f"{kept.home} {kept.file}")
def kept(request: pytest.FixtureRequest) -> Kept:
    found: Kept = request.param
    return found


def shown(done: Done) -> list[Any]:
    """What a command tells of keys, without what differs each time."""
    assert done.code == 0, done
    if done.events[0]["event"] != "invite":
        return done.events
    from zkc.crypto.invitations import parse_invitation

    text = parse_invitation(done.events[0]["invitation"])
    return [text.fingerprint, text.curve_key, text.suite]


def try_damage(
    folder: Path, tmp_path: Path, kept: Kept, variants: list[tuple[str, bytes]]
) -> tuple[list[str], list[str]]:
    """The program on each variant of the file: which were refused, and which had no effect. Anything else fails."""
    words = reading(kept.home, kept.file)

    def run(program: Again, number: int, data: bytes) -> Done:
        copy = tmp_path / f"{kept.home}-{number}"
        shutil.copytree(folder / kept.home, copy)
        (copy / kept.file).write_bytes(data)
        try:
            return program.zkc(copy, *words)
        finally:
            shutil.rmtree(copy)

    refused, harmless = [], []
    with Again() as program:
        true = shown(run(program, 0, (folder / kept.home / kept.file).read_bytes()))
        for number, (what, data) in enumerate(variants, 1):
            done = run(program, number, data)
            if done.code == 0:
                assert shown(done) == true, f"{what}: another key, without a word"
                harmless.append(what)
            else:
                error = error_of(done)
                assert error["code"] == 33, f"{what}: {done}"
                assert "\n" not in error["message"]
                refused.append(what)
    return refused, harmless


@pytest.mark.attack("K03")
def test_damage_in_a_key_is_refused(folder: Path, tmp_path: Path, kept: Kept) -> None:
    """One flipped bit in each key that the file holds, wherever it stands in it."""
    data = (folder / kept.home / kept.file).read_bytes()
    keys = [key for key in kept.keys(folder / kept.home) if key in data]
    assert keys, "none of its keys stands in the file as it is"
    variants = [
        (f"key {number}", data.replace(key, flipped(key, len(key) // 2, 1 << number % 8)))
        for number, key in enumerate(keys)
    ]
    refused, harmless = try_damage(folder, tmp_path, kept, variants)
    assert not harmless
    assert len(refused) == len(keys)


@pytest.mark.attack("K03")
def test_damage_anywhere_is_refused_or_has_no_effect(folder: Path, tmp_path: Path, kept: Kept) -> None:
    """Samples here, thousands in the soak; the soak of tests/stores tries every byte in its own process."""
    variants = damaged(folder, kept, SAMPLES)
    refused, _ = try_damage(folder, tmp_path, kept, variants)
    assert {"cut to nothing", "cut in the middle"} <= set(refused)


@pytest.mark.soak
@pytest.mark.attack("K03")
def test_damage_at_thousands_of_places_is_refused_or_has_no_effect(folder: Path, tmp_path: Path, kept: Kept) -> None:
    try_damage(folder, tmp_path, kept, damaged(folder, kept, SAMPLES_OF_SOAK))


def damaged(folder: Path, kept: Kept, samples: int) -> list[tuple[str, bytes]]:
    data = (folder / kept.home / kept.file).read_bytes()
    cuts = {"cut to nothing": 0, "cut in the middle": len(data) // 2}
    return [
        *(
            (f"bit {place % 8} of byte {place}", flipped(data, place, 1 << place % 8))
            for place in places(0, len(data), samples)
        ),
        *((what, data[:length]) for what, length in cuts.items()),
    ]
