"""Joining: a coordinator that is another, or lies, or dies; damaged invitations; bad keys; where secrets never show."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.support.again import Again
from tests.support.coordinator import Newcomer, RefusedError
from tests.support.evil_fleet import EvilFleet, error_of
from tests.support.link import flipped
from tests.support.looking import stopped
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, wait_until
from zkc.client.join import _Pending
from zkc.coordinator import admin
from zkc.coordinator.identity import load as load_identity
from zkc.crypto.cards import make_coordinator_card, sign_coordinator_card
from zkc.crypto.invitations import invitation_curve_secret, invitation_psk, parse_invitation
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey
from zkc.net.sockets import split_endpoint, to_z85
from zkc.stores.home import Home
from zkc.stores.key_rows import Registration
from zkc.stores.keydb import ClientRow, InvitationRow, KeyDb
from zkc.stores.keystore import KeyStore
from zkc.testing import Done, Fleet
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, CardBody, RegPermClient


@pytest.fixture(scope="module")
def again(running: EvilFleet) -> Iterator[Again]:
    """A process that runs ``zkc`` over and over."""
    with Again() as program:
        yield program


def join(fleet: Fleet, name: str, invitation: str) -> Done:
    """``zkc join`` in a process of its own."""
    return fleet.zkc(name, "join", "--invite-file", "-", "--json", stdin=invitation.encode())


class Joining:
    """A home, its invitation in a file, and ``zkc join`` with it, in a process that outlives it."""

    def __init__(self, fleet: EvilFleet, again: Again, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.home = fleet.home(name)
        self.text = fleet.invite(name)
        self.invitation = parse_invitation(self.text)
        self._again = again
        self._file = fleet.folder / f"{name}.invitation"
        self._file.write_text(self.text)

    def zkc(self, *words: str) -> Done:
        return self._again.zkc(self.home, *words, "--json")

    def join(self) -> Done:
        return self.zkc("join", "--invite-file", str(self._file))

    @property
    def registration(self) -> Registration | None:
        """What its home holds of a registration."""
        with KeyStore.open(Home.resolve("client", str(self.home))) as store:
            return store.registration(self.name)

    @property
    def pending(self) -> _Pending | None:
        """What its home has kept of a try that broke off."""
        with KeyStore.open(Home.resolve("client", str(self.home))) as store:
            blob = store.pending(self.invitation.invite_id)
        return None if blob is None else decode(blob, _Pending)

    def is_registered(self) -> None:
        """Both sides say so, once, and a channel opens."""
        registration, known = self.registration, Known.of(self.fleet, self.name)
        assert registration is not None
        assert [row.uid for row in known.rows] == [registration.uid]
        assert [row.card for row in known.rows] == [registration.card]
        assert known.invitation.used_by == registration.uid
        assert known.entries == 1
        assert self.zkc("peers").code == 0


@dataclass(frozen=True)
class Known:
    """What the coordinator's database has of a name."""

    rows: list[ClientRow]
    invitation: InvitationRow
    entries: int
    """In its log."""

    @classmethod
    def of(cls, fleet: Fleet, name: str) -> Known:
        home = fleet.home("coordinator")
        db = KeyDb.open(f"sqlite:///{home / 'keys.db'}", load_identity(home).mac_key, create=False)
        try:
            (invitation,) = [row for row in db.invitations() if row.name == name]
            rows = [row for row in db.clients() if row.name == name]
            return cls(rows, invitation, len([entry for entry in db.log_entries(0) if entry.name == name]))
        finally:
            db.close()


def refused(fleet: EvilFleet, done: Done, name: str, detail: str) -> None:
    """The join ended with 12, in one line that says where, and nobody was registered on either side."""
    error = error_of(done)
    assert (error["code"], error["reason"], error["detail"]) == (12, "identity", detail)
    assert "coordinator" in error["message"]
    assert Known.of(fleet, name).rows == []
    with KeyStore.open(Home.resolve("client", str(fleet.home(name)))) as store:
        assert store.registrations() == []


# --- a coordinator that is another ----------------------------------------------------------------------------------


@pytest.mark.attack("R01")
def test_another_identity_at_the_pinned_address_is_told_no_name(fleet: EvilFleet) -> None:
    """The impostor has the address, the CURVE key and every invitation's secret: all but the coordinator's identity."""
    invitation = fleet.invite("r01")
    true = load_identity(fleet.home("coordinator"))
    impostor, general = IdentityKey.from_seed(os.urandom(64)), true.suite.generate()
    card = make_coordinator_card(impostor, general.public, true.curve_public, true.suite.name, 1)
    fields = {"card": {"hex": card.hex()}, "signature": {"hex": sign_coordinator_card(impostor, card).hex()}}
    heard = len(fleet.evil.heard)
    fleet.evil.lie("alter", message="RegCoordinator", fields=fields)
    refused(fleet, join(fleet, "r01", invitation), "r01", "identity")
    assert fleet.evil.report() == {"altered": 1}
    assert fleet.evil.heard[heard:] == ["RegHello"], "it was told nothing but which invitation this is"
    fleet.evil.lie("truth")
    assert join(fleet, "r01", invitation).code == 0, "the invitation was not spent on an impostor"


@pytest.mark.attack("R02")
@pytest.mark.parametrize("how", ["replayed from an earlier registration", "of the coordinator's making, unsigned"])
def test_a_temporary_key_that_was_not_signed_for_this_registration_is_answered_by_nothing(
    fleet: EvilFleet, how: str
) -> None:
    name = "r02-replayed" if "replayed" in how else "r02-unsigned"
    if "replayed" in how:
        assert join(fleet, "r02-earlier", fleet.invite("r02-earlier")).code == 0
        kinds = [kind for _, kind, _ in fleet.evil.records]
        record = len(kinds) - 1 - kinds[::-1].index("RegTempServer")
        fleet.evil.lie("replace", message="RegTempServer", record=record)
    else:
        key = load_identity(fleet.home("coordinator")).suite.generate().public.encode()
        fleet.evil.lie("alter", message="RegTempServer", fields={"temp_server_key": {"hex": key.hex()}})
    invitation, heard = fleet.invite(name), len(fleet.evil.heard)
    refused(fleet, join(fleet, name, invitation), name, "forged")
    assert list(fleet.evil.report().values()) == [1]
    assert fleet.evil.heard[heard:] == ["RegHello", "RegName"], "no R3"
    fleet.evil.lie("truth")
    assert join(fleet, name, invitation).code == 0


@pytest.mark.attack("R02")
def test_temporary_keys_of_two_registrations_cannot_be_exchanged(fleet: EvilFleet) -> None:
    """Both are signed by the right identity, at the same time, each over the other's R1."""
    invitations = {name: fleet.invite(name) for name in ("r02-one", "r02-other")}
    heard = len(fleet.evil.heard)
    fleet.evil.lie("swap", message="RegTempServer")
    started = {}
    for name, invitation in invitations.items():
        (fleet.folder / name).with_suffix(".invitation").write_text(invitation)
        words = ["join", "--invite-file", f"{name}.invitation", "--json"]
        started[name] = fleet.popen(name, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for name, process in started.items():
        out, err = process.communicate(timeout=60)
        refused(fleet, Done(process.returncode, out, err), name, "forged")
    assert fleet.evil.report() == {"swapped": 1, "held": 0}
    assert sorted(fleet.evil.heard[heard:]) == ["RegHello", "RegHello", "RegName", "RegName"]


@pytest.mark.attack("P01", "R02")
def test_a_flipped_bit_of_whatever_the_coordinator_says_is_refused_and_costs_nothing(
    fleet: EvilFleet, again: Again
) -> None:
    """Each field of R0's answer, R2, R4 and R6; in memory every byte, by the soak of tests/protocol."""
    said = {
        "RegCoordinator": ("card", "signature"), "RegTempServer": ("temp_server_key", "signature"),
        "RegPermServer": ("ct2", "sealed_perm_server_key", "mac"), "RegDone": ("sealed_done", "mac"),
    }
    answer = {"RegCoordinator": "RegHello", "RegTempServer": "RegName", "RegPermServer": "RegTempClient",
              "RegDone": "RegPermClient"}
    joining = Joining(fleet, again, "p01")
    for message, fields in said.items():
        for number, field in enumerate(fields):
            for place in (0, -1):
                fleet.evil.lie("alter", message=message, fields={field: {"flip": [place, 1 << number]}})
                error = error_of(joining.join())
                assert error["code"] == 12, (message, field, place)
                assert fleet.evil.report() == {"altered": 1}
                assert fleet.evil.heard[-1] == answer[message], "what comes after it was said all the same"
                assert joining.registration is None
    fleet.evil.lie("truth")
    assert joining.join().code == 0
    joining.is_registered()


# --- a coordinator that dies ----------------------------------------------------------------------------------------

DEATHS: Final = [
    ("heard", "RegHello"), ("unsent", "RegCoordinator"), ("heard", "RegName"), ("unsent", "RegTempServer"),
    ("heard", "RegTempClient"), ("unsent", "RegPermServer"), ("heard", "RegPermClient"),
    pytest.param("unsent", "RegDone", marks=pytest.mark.attack("P04")),
]
"""After each message of the newcomer and before each of the coordinator; before R6, the registration is committed."""


@pytest.mark.claims("A5", "A6", "A7")
@pytest.mark.attack("R06")
@pytest.mark.parametrize(("how", "message"), DEATHS)
def test_a_coordinator_killed_at_any_step_registers_the_retry_once(
    running: EvilFleet, again: Again, how: str, message: str
) -> None:
    joining = Joining(running, again, f"killed-{how}-{message}".lower())
    running.evil.lie("die", **{how: message})
    error = error_of(joining.join())
    assert error["code"] == 10, error
    assert running.coordinator.process.wait(DEADLINE) == -signal.SIGKILL

    # What lies on the disks: the invitation is used and the client there, or neither; the newcomer knows of nothing.
    between, pending = Known.of(running, joining.name), joining.pending
    is_committed = message == "RegDone"
    assert (len(between.rows), between.entries) == ((1, 1) if is_committed else (0, 0))
    assert (between.invitation.used_by is not None) is is_committed
    assert joining.registration is None
    # Its keys were kept before they were sent, and not earlier: what broke off before that leaves nothing.
    assert (pending is not None) is (message in {"RegPermClient", "RegDone"})

    running.restart_coordinator()
    assert joining.join().code == 0
    joining.is_registered()
    registration = joining.registration
    assert registration is not None
    assert between.invitation.uid in (None, registration.uid), "an identifier that was reserved is the client's"
    if pending is not None:
        assert (pending.identity, pending.card) == (registration.identity_private, registration.card)
    for name in ("bob", "carol"):
        running.wait_linked(name)
    running.client("bob").send("carol", os.urandom(1 << 20), timeout=60)


# --- a newcomer with bad keys ---------------------------------------------------------------------------------------


class BreakOffError(Exception):
    """The newcomer goes away here."""


def before_the_card(when: str, message: Any, body: bytes) -> bytes:
    """A tap that breaks off where the card would be sent."""
    if when == "sending" and isinstance(message, RegPermClient):
        raise BreakOffError
    return body


IDENTITY_POINT: Final = b"\1" + bytes(31)
"""Under this Ed25519 key anybody signs anything."""
BAD_KEYS: Final[dict[str, Callable[[CardBody], CardBody]]] = {
    "small order": lambda body: msgspec.structs.replace(body, ed25519=IDENTITY_POINT),
    "another kind of key": lambda body: msgspec.structs.replace(body, kem_key=b"\7" + body.kem_key[1:]),
    "coefficients of q and more": lambda body: msgspec.structs.replace(
        body, kem_key=body.kem_key[:1] + b"\xff" * 1184 + body.kem_key[1185:]
    ),
    "X25519 zero point": lambda body: msgspec.structs.replace(body, kem_key=body.kem_key[:-32] + bytes(32)),
    "short KEM key": lambda body: msgspec.structs.replace(body, kem_key=body.kem_key[:-1]),
    "long KEM key": lambda body: msgspec.structs.replace(body, kem_key=body.kem_key + b"\0"),
    "short ML-DSA key": lambda body: msgspec.structs.replace(body, ml_dsa=body.ml_dsa[:-1]),
}


@pytest.mark.attack("R09")
@pytest.mark.parametrize("what", BAD_KEYS)
def test_a_card_with_a_bad_key_is_refused_and_leaves_no_row(fleet: EvilFleet, what: str) -> None:
    name = "r09-" + what.lower().replace(" ", "-")
    newcomer = Newcomer(parse_invitation(fleet.invite(name)), fleet.proxy.endpoint)
    with pytest.raises(BreakOffError):
        newcomer.register(before_the_card)
    true = newcomer.kept_card
    # Its uid is reserved by now, so the newcomer sends whatever card it has kept for that uid.
    card: Card = decode(true, Card)
    body = encode(BAD_KEYS[what](decode(card.body, CardBody)))
    signature = newcomer.identity.sign_durable("card", digest(body))
    newcomer.kept_card = encode(msgspec.structs.replace(card, body=body, signature=signature))
    with pytest.raises(RefusedError) as caught:
        newcomer.register()
    assert (caught.value.code, caught.value.detail) == (12, "bad-key")
    assert Known.of(fleet, name).rows == []
    newcomer.kept_card = true
    newcomer.register()
    assert len(Known.of(fleet, name).rows) == 1


# --- the invitation -------------------------------------------------------------------------------------------------


@pytest.mark.attack("R12", "R07")
def test_a_damaged_invitation_is_refused_before_any_connection(
    fleet: EvilFleet, again: Again, tmp_path: Path
) -> None:
    """Cut at each place, and one bit of each character turned over; the error does not repeat what it was given."""
    home = Home.resolve("coordinator", str(fleet.home("coordinator")))
    with TcpProxy(split_endpoint(fleet.proxy.endpoint)) as proxy:  # that of the daemons is theirs too
        invitation = admin.invite(home, "r12", "computer", endpoints=[proxy.endpoint]).invitation.encode()
        cuts = [invitation[:length] for length in range(len(invitation))]
        flips = [flipped(invitation, place, 1 << place % 7) for place in range(len(invitation))]
        file, words = tmp_path / "invitation", ["join", "--invite-file", str(tmp_path / "invitation"), "--json"]
        for number, text in enumerate([*cuts, *flips]):
            file.write_bytes(text)
            done = again.zkc(fleet.home("r12"), *words)
            error = error_of(done)
            assert (error["code"], error["detail"]) == (2, "bad-invite"), number
            assert len(text) < 40 or text[5:40] not in done.out + done.err
        assert proxy.connections == []
        file.write_bytes(invitation)
        assert again.zkc(fleet.home("r12"), *words).code == 0
        assert proxy.connections


@pytest.mark.attack("R07")
def test_an_invitation_is_no_argument_and_the_refusal_does_not_repeat_it(fleet: EvilFleet) -> None:
    """What stands on a command line stands in `ps` and in the shell's history."""
    invitation = fleet.invite("r07-argument")
    for words in (["join", invitation], ["join", f"--invite={invitation}"], ["join", "--invite", invitation]):
        done = fleet.zkc("r07-argument", *words)
        assert done.code == 2
        assert invitation.encode()[5:40] not in done.out + done.err, done
    assert Known.of(fleet, "r07-argument").rows == []


# --- where secrets never show ---------------------------------------------------------------------------------------


def spellings(secret: bytes) -> set[bytes]:
    """A secret as it might be written somewhere."""
    return {
        secret, secret.hex().encode(), repr(secret)[2:-1].encode(), base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="), *([to_z85(secret)] if len(secret) == 32 else []),
    }


def secrets_of(fleet: Fleet, names: list[str], invitations: list[str]) -> dict[str, bytes]:
    """Everything on the disks that nobody else may know, and the invitations."""
    found: dict[str, bytes] = {}
    for name, text in zip(names, invitations, strict=True):
        invitation = parse_invitation(text)
        found[f"{name}'s invitation"] = text.partition("-")[2].encode()
        found[f"{name}'s invitation's secret"] = invitation.secret
        found[f"{name}'s psk"] = invitation_psk(invitation.secret).reveal()
        found[f"{name}'s invitation's CURVE key"] = invitation_curve_secret(invitation.secret).reveal()
        with KeyStore.open(Home.resolve("client", str(fleet.home(name)))) as store:
            for registration in store.registrations():
                found[f"{registration.name}'s identity"] = registration.identity_private
                found[f"{registration.name}'s KEM key"] = registration.kem_private[1:33]
                found[f"{registration.name}'s CURVE key"] = registration.curve_secret
    home = fleet.home("coordinator")
    identity = load_identity(home)
    found["the coordinator's CURVE key"] = identity.curve.secret
    found["the coordinator's general key"] = identity.general_key.encode()[1:33]
    found["the database's MAC key"] = identity.mac_key
    db = KeyDb.open(f"sqlite:///{home / 'keys.db'}", identity.mac_key, create=False)
    live = db.clients(live=True)
    found |= {f"the server key for {row.name}": row.perm_server_private[1:33] for row in live}
    db.close()
    return found


class ProcessTable:
    """Looks at every process's command line, again and again, as `ps` does."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> ProcessTable:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(path.read_bytes())


@pytest.mark.attack("R07")
def test_no_secret_is_in_the_process_table_a_log_at_debug_level_or_anything_printed() -> None:
    """A registration from a file, from the environment and for an application; daemons, a transfer, a revocation."""
    debug = {"log.level": "debug"}
    names, invitations, told = ["alice", "carol"], [], []
    with Fleet("bob", coordinator=debug, client=debug) as fleet, Again() as again:

        def run(name: str, *words: str) -> bytes:
            done = again.zkc(fleet.home(name), *words)
            assert done.code == 0, (words, done)
            told.append(done)
            return done.out

        for name in names:
            invitations.append(run("coordinator", "coordinator", "invite", name).decode().strip())
            told.pop()  # the one place where it is meant to be shown
            fleet.configure(name, debug)
        file = fleet.folder / "invitation"
        file.write_text(invitations[0])
        with ProcessTable() as table:
            # Held up, so that it is looked at while it has the secret.
            with stopped(fleet.coordinator.process.pid):
                joining = fleet.popen(
                    "alice", "join", "--invite-file", str(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
                wait_until(lambda: any(bytes(file) in line for line in table.seen))
            out, err = joining.communicate(timeout=60)
            assert joining.returncode == 0, err
            told.append(Done(0, out, err))
            told.append(fleet.zkc("carol", "join", env={"ZKC_INVITE": invitations[1]}))
        fleet.start_daemon("alice")
        for name, *words in (
            ("alice", "join", "--app", "backup"), ("alice", "send", "bob", "-m", "hello"), ("bob", "inbox", "--json"),
            ("alice", "verify", "bob"), ("alice", "peers", "--json"), ("alice", "config", "--json"),
            ("carol", "peers"), ("alice", "status", "--json"), ("coordinator", "coordinator", "status", "--json"),
            ("coordinator", "coordinator", "clients", "--json"), ("coordinator", "config", "--json"),
            ("coordinator", "coordinator", "invite", "--list", "--json"),
            ("coordinator", "coordinator", "revoke", "carol"),
        ):
            run(name, *words)
        secrets = secrets_of(fleet, names, invitations)
        shown = {path.name: path.read_bytes() for path in fleet.folder.glob("*.log")}
        shown |= {str(path): path.read_bytes() for path in fleet.folder.rglob("config.toml")}
        assert b'"ready"' in shown["coordinator.log"], "the search looks at nothing"
    shown["printed"] = b"\n".join(done.out + done.err for done in told)
    shown["command lines"] = b"\n".join(table.seen)
    assert len([key for key in secrets if "alice" in key]) >= 9, sorted(secrets)
    found = [
        (secret, place) for secret, value in secrets.items() for place, text in shown.items()
        if any(spelling in text for spelling in spellings(value))
    ]
    assert not found
