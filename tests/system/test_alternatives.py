"""What the document leaves open, between real processes: who makes the key and who gets it first, which cipher, how one
registers. Off by default, and on only where coordinator, sender and recipient all say so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.support.evil_coordinator import principal_in
from tests.support.evil_fleet import EvilFleet, error_of
from zkc.coordinator.identity import load as load_coordinator
from zkc.crypto.cards import verify_card
from zkc.crypto.suites import read_private, suite_named, suite_of
from zkc.stores.keydb import KeyDb
from zkc.testing import Done, Fleet
from zkc.wire.codec import decode
from zkc.wire.messages import Notify, Receipt, ReceiptBody, RegPermClient, RegTempClient, Req

OLD: Final = ("3des", "idea")
ALLOWED: Final = {"transfer.key_sources": ["sender", "coordinator"], "transfer.ciphers": ["aes-256-gcm", *OLD]}
WITHHELD: Final = {"ZKC_TRANSFER_KEY_SOURCES": "sender", "ZKC_TRANSFER_CIPHERS": "aes-256-gcm"}
BY_COORDINATOR: Final = ("--key-source", "coordinator")
CHOICES: Final = [(("--cipher", "3des"), "cipher"), (("--cipher", "idea"), "cipher"), (BY_COORDINATOR, "key-source")]
DATA: Final = os.urandom(1_000_000)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvilFleet]:
    """Everything is allowed at the coordinator, at alice and bob, who have daemons, and at carol, who has none; nothing
    but the defaults at dave. The coordinator tells the truth, and what passes it is recorded."""
    with EvilFleet("alice", "bob", folder=tmp_path_factory.mktemp("open"), both=ALLOWED) as running:
        running.join("carol")
        assert running.zkc("dave", "join", env={"ZKC_INVITE": running.invite("dave")}).code == 0
        running.start_daemon("dave")
        yield running


@pytest.fixture(scope="module")
def strict() -> Iterator[Fleet]:
    """Everything is allowed at both ends, and at the coordinator nothing but the defaults."""
    with Fleet("alice", "bob", client=ALLOWED) as running:
        yield running


def sent(fleet: Fleet, sender: str, *words: str, recipient: str = "bob", **env: str) -> Done:
    return fleet.zkc(sender, "send", recipient, *words, "--json", stdin=DATA, env=env)


def arrived(fleet: Fleet, done: Done) -> tuple[str, ReceiptBody]:
    """Who made the key as the recipient's inbox has it, and what its receipt says of the delivery, which is whole."""
    assert done.code == 0, done
    (item,) = fleet.zkc("bob", "inbox", "--json").events
    assert fleet.zkc("bob", "recv", "-o", "-").out == DATA
    receipt: Receipt = decode(Path(done.events[-1]["receipt"]).read_bytes(), Receipt)
    return item["key_source"], decode(receipt.body, ReceiptBody)


# --- who makes the key ------------------------------------------------------------------------------------------------

KEYS: Final = {
    "recipient-first": [("bob", "DeliverSessionKey"), ("{}", "TransferGrant"), ("bob", "DeliverConfirmation")],
    "sender-first": [("{}", "TransferGrant"), ("bob", "DeliverSessionKey"), ("{}", "TransferConfirm")],
}
"""What the coordinator has to give after the recipient's answer, and to whom; ``{}``: the sender."""


@pytest.mark.claims("B3", "B4", "B5", "B7", 1, 14, 17, 23, 26, 27, 28, 36, 39, 49, 110)
@pytest.mark.parametrize("sender", ["alice", "carol"])
@pytest.mark.parametrize("order", KEYS)
def test_a_key_of_the_coordinators_making_delivers_in_either_order_and_everybody_is_told(
    fleet: EvilFleet, sender: str, order: str
) -> None:
    """From alice through her daemon, from carol by a link of her own; of what is sent the coordinator gets no byte."""
    before, marks = len(fleet.evil.records), fleet.wire_marks()
    done = sent(fleet, sender, *BY_COORDINATOR, ZKC_TRANSFER_KEY_ORDER=order)
    told = {event["event"]: event for event in done.events}
    in_inbox, body = arrived(fleet, done)
    assert {told["granted"]["key_source"], told["delivered"]["key_source"], in_inbox, body.key_source} == {
        "coordinator"
    }
    kinds = {"TransferGrant", "DeliverSessionKey", "DeliverKey", "DeliverConfirmation", "TransferConfirm"}
    given = [(to, kind) for to, kind, _ in fleet.evil.records[before:] if kind in kinds]
    assert given == [(to.format(sender), kind) for to, kind in KEYS[order]]
    through = fleet.wire_since(marks)
    assert 0 < len(through) < len(DATA) / 4, "what is sent cannot have passed the coordinator"
    assert not any(DATA[at : at + 16] in text for text in fleet.evil.plaintexts for at in range(0, len(DATA), 65536))


@pytest.mark.claims("B7")
def test_a_coordinator_hands_out_its_keys_in_the_orders_that_it_names(tmp_path: Path) -> None:
    coordinator = ALLOWED | {"transfer.key_orders": ["sender-first"]}
    with Fleet("alice", "bob", folder=tmp_path, coordinator=coordinator, client=ALLOWED) as running:
        error = error_of(sent(running, "alice", *BY_COORDINATOR))
        assert (error["code"], error["reason"], error["detail"]) == (25, "policy", "key-order")
        in_inbox, _ = arrived(running, sent(running, "alice", *BY_COORDINATOR, ZKC_TRANSFER_KEY_ORDER="sender-first"))
        assert in_inbox == "coordinator"
        # A key of the sender's making goes in no order.
        arrived(running, sent(running, "alice"))


# --- what all three must allow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("coordinator", marks=pytest.mark.claims("E2", 16, 25, 38, 46, 54)),
        pytest.param("sender", marks=pytest.mark.claims("E2", 67, 75, 81, 91, 99, 105)),
    ],
)
@pytest.mark.parametrize("cipher", OLD)
def test_an_old_cipher_carries_data_where_all_three_allow_it(fleet: EvilFleet, cipher: str, source: str) -> None:
    """Whoever makes the key."""
    done = sent(fleet, "alice", "--cipher", cipher, "--key-source", source)
    made_by, body = arrived(fleet, done)
    assert (done.events[-1]["cipher"], body.cipher, made_by, body.key_source) == (cipher, cipher, source, source)


@pytest.mark.claims("E2")
@pytest.mark.parametrize("withholding", ["coordinator", "sender", "recipient"])
@pytest.mark.parametrize(("words", "detail"), CHOICES)
def test_what_one_of_the_three_does_not_allow_is_refused_though_the_others_do(
    fleet: EvilFleet, strict: Fleet, words: Sequence[str], detail: str, withholding: str
) -> None:
    if withholding == "coordinator":
        done = sent(strict, "alice", *words)
    elif withholding == "sender":
        done = sent(fleet, "alice", *words, **WITHHELD)
    else:
        done = sent(fleet, "alice", *words, recipient="dave")
    error = error_of(done)
    assert (error["code"], error["reason"], error["detail"]) == (25, "policy", detail)


@pytest.mark.claims("E1", 15, 24, 37, 45, 53, 66, 74, 80, 90, 98, 104)
@pytest.mark.parametrize("suite", ["rsa", "x25519"])
def test_all_of_it_rests_on_the_suite_that_the_coordinator_was_started_with(suite: str, tmp_path: Path) -> None:
    """Both ends register with such keys, and send with keys of either making."""
    coordinator = ALLOWED | {"coordinator.suite": suite, "coordinator.key_pool": 0}
    with Fleet("alice", "bob", folder=tmp_path, coordinator=coordinator, client=ALLOWED) as running:
        for words in ((), BY_COORDINATOR):
            arrived(running, sent(running, "alice", *words))
        for name in ("alice", "bob"):
            mine = principal_in(running.home(name))
            for key in (mine.kem_key.public.encode(), mine.registration.perm_server_public):
                assert suite_of(key).name == suite


# --- how it is acknowledged -------------------------------------------------------------------------------------------


@pytest.mark.claims("B5")
@pytest.mark.parametrize(("sender", "size"), [("alice", 300_000), ("alice", 100), ("carol", 300_000)])
def test_a_receipt_sealed_to_the_senders_permanent_key_is_opened_where_the_bytes_are(
    fleet: EvilFleet, sender: str, size: int
) -> None:
    """By a command to which alice's daemon has handed the transfer over, by that daemon itself for a small payload, and
    by a command of carol's, who has none."""
    before = len(fleet.evil.records)
    done = fleet.zkc(
        sender, "send", "bob", "--json", stdin=DATA[:size], env={"ZKC_TRANSFER_ACKNOWLEDGEMENT": "permanent"}
    )
    assert done.code == 0, done
    (notify,) = [data for _, kind, data in fleet.evil.records[before:] if kind == "Notify"]
    assert decode(decode(notify, Notify).request, Req).acknowledgement == "permanent"
    receipt = Path(done.events[-1]["receipt"])
    assert fleet.zkc(sender, "receipt", "verify", str(receipt), "--json").code == 0
    body = decode(decode(receipt.read_bytes(), Receipt).body, ReceiptBody)
    assert (body.size, body.sender, body.recipient) == (size, sender, "bob")
    assert fleet.zkc("bob", "recv", "-o", "-").out == DATA[:size]


# --- how one registers ------------------------------------------------------------------------------------------------


@pytest.mark.claims("A1", "A4", "A6", "B1", 29, 30, 43, 50, 85)
@pytest.mark.parametrize(
    ("request_", "seal_to", "name_is", "uid_is"),
    [("apart", "permanent", "sealed", "clear"), ("together", "temporary", "clear", "sealed")],
)
def test_a_client_registers_and_says_who_it_is_as_its_configuration_says(
    fleet: EvilFleet, request_: str, seal_to: str, name_is: str, uid_is: str
) -> None:
    """The request with the temporary key or after it, the card sealed to either server key, its identifier in clear or
    under the general key, then and at every connection; it can send."""
    name = f"{request_}-{seal_to}"
    chosen = {"request": request_, "seal_to": seal_to, "identifier": name_is}
    fleet.configure(
        name, {f"registration.{key}": value for key, value in chosen.items()} | {"coordinator.identifier": uid_is}
    )
    before = len(fleet.evil.said)
    assert fleet.zkc(name, "join", env={"ZKC_INVITE": fleet.invite(name)}).code == 0
    said = fleet.evil.said[before:]
    apart = ["RegRegister"] if request_ == "apart" else []
    named = "RegName" if name_is == "sealed" else "RegNameInClear"
    assert [kind for kind, _ in said] == ["RegHello", named, "RegTempClient", *apart, "RegPermClient"]
    assert (name.encode() in dict(said)[named]) is (name_is == "clear")
    temporary: RegTempClient = decode(dict(said)["RegTempClient"], RegTempClient)
    permanent: RegPermClient = decode(dict(said)["RegPermClient"], RegPermClient)
    assert (bool(temporary.register), permanent.sealed_to) == (request_ == "together", seal_to)
    arrived(fleet, sent(fleet, name))
    uid = principal_in(fleet.home(name)).registration.uid
    greetings = [greeting for of, greeting in fleet.evil.greetings if of == uid]
    assert [uid in greeting for greeting in greetings] == [uid_is == "clear"] * len(greetings) != []


@pytest.mark.claims("A5", "A7", "A8", "A10", "F1", "F2", 6, 21, 33, 44, 47, 48, 55, 56, 57, 72, 96)
def test_a_registration_of_long_ago_serves_every_transfer_and_without_one_nothing_is_sent(fleet: EvilFleet) -> None:
    """Every program has ended since; of both kinds of keys, each as often as one likes; nobody registers again."""
    fleet.restart_coordinator()
    for name in ("alice", "bob"):
        fleet.program(name).terminate()
        fleet.start_daemon(name)
    for words in ((), BY_COORDINATOR) * 2:
        arrived(fleet, sent(fleet, "alice", *words))
    never = fleet.zkc("never", "send", "bob", "-m", "x", "--json")
    assert (never.code, never.events[-1]["detail"]) == (11, "no-registration")
    assert not [kind for kind, _ in fleet.evil.said if kind.startswith("Reg")]
    # What both key databases hold: a server key for each client alone, each half where it belongs.
    identity = load_coordinator(fleet.home("coordinator"))
    db = KeyDb.open(f"sqlite:///{fleet.home('coordinator') / 'keys.db'}", identity.mac_key, create=False)
    with closing(db):
        rows = {row.name: row for row in db.clients()}
    assert len({row.perm_server_private for row in rows.values()}) == len(rows)
    for name in ("alice", "bob"):
        mine = principal_in(fleet.home(name))
        assert read_private(rows[name].perm_server_private).public.encode() == mine.registration.perm_server_public
        card = verify_card(rows[name].card, suite_of(mine.registration.perm_server_public))
        assert card.kem_key == mine.kem_key.public


@pytest.mark.claims("A8", "A9", "E1")
def test_a_computer_an_application_and_a_user_register_each_with_keys_of_its_own(fleet: EvilFleet) -> None:
    """All three of the suite that is the default, and each can be sent to or sends."""
    fleet.join("zoe", kind="user")
    assert fleet.zkc("bob", "join", "--app", "backup").code == 0
    assert sent(fleet, "zoe", "--wait", "30s", recipient="bob/backup").code == 0
    assert fleet.zkc("bob", "recv", "--app", "backup", "-o", "-").out == DATA
    identity = load_coordinator(fleet.home("coordinator"))
    db = KeyDb.open(f"sqlite:///{fleet.home('coordinator') / 'keys.db'}", identity.mac_key, create=False)
    with closing(db):
        rows = [row for row in db.clients() if row.name in {"bob", "bob/backup", "zoe"}]
    assert {row.kind for row in rows} == {"computer", "application", "user"}
    cards = [verify_card(row.card, suite_named("hybrid")) for row in rows]
    for keys in (
        [row.perm_server_private for row in rows], [row.curve_public for row in rows],
        [card.kem_key.encode() for card in cards], [card.fingerprint for card in cards],
    ):
        assert len(set(keys)) == 3
    assert {suite_of(read_private(row.perm_server_private).public.encode()).name for row in rows} == {"hybrid"}
