"""The coordinator alters, exchanges, forges and replays what it passes on; what it sees; what a thief of keys gets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.evil import COMMAND, GREETING_BYTES, LONG
from tests.support.evil_coordinator import principal_in
from tests.support.evil_fleet import EvilFleet, error_of
from tests.support.looking import log_of
from tests.support.waiting import wait_until
from zkc.coordinator.identity import load as load_coordinator
from zkc.crypto.cards import verify_card
from zkc.crypto.chunks import token, xid_tag
from zkc.crypto.primitives import Secret, extract
from zkc.crypto.suites import KemPrivateKey, kem_decapsulate, read_private, suite_named
from zkc.crypto.transcript import Transcript
from zkc.errors import IdentityError, PeerViolation
from zkc.protocol.delivery_recipient import Complete, Data, DeliveryRecipient
from zkc.protocol.session import Session, session_key
from zkc.stores.keydb import KeyDb
from zkc.testing import Done
from zkc.wire import messages
from zkc.wire.codec import decode, encode
from zkc.wire.messages import DeliverKey, Endpoints, Key, Notify, Req, Resp, TransferGrant

FORWARDED = {
    "Notify": ("request", "signature", "card", "certificate"),
    "TransferGrant": ("response", "signature", "card", "certificate"),
    "DeliverKey": ("key", "signature"),
    "TransferConfirm": ("confirmation",),
}
"""Every byte string that the coordinator passes on in a transfer whose key the sender makes."""


@pytest.fixture
def refused(fleet: EvilFleet) -> Iterator[EvilFleet]:
    """The fleet; nothing that is sent while the coordinator lies arrives anywhere, and no data port is ever used."""
    names = ("bob", "carol")
    before = {name: (fleet.texts(name), fleet.data_connections(name)) for name in names}
    pins = {name: fleet.pin(name, "alice") for name in names}
    yield fleet
    for name in names:
        texts, connections = before[name]
        assert fleet.texts(name) == texts
        assert fleet.data_connections(name) <= connections
        assert fleet.pin(name, "alice") == pins[name]


def refusal(fleet: EvilFleet, recipient: str = "bob", **options: Any) -> IdentityError:
    """What alice is told when she sends, by her daemon's handshake."""
    with pytest.raises(IdentityError) as caught:
        fleet.client("alice").send(recipient, b"never to arrive", timeout=60, **options)
    return caught.value


def both(fleet: EvilFleet, *recipients: str) -> list[Done]:
    """Two commands of alice at once."""
    started = [
        fleet.popen(
            "alice", "send", recipient, "-m", "swapped", "--json", "--timeout", "60s", stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for recipient in recipients
    ]
    ended = [(process.communicate(timeout=90), process.returncode) for process in started]
    return [Done(code, out, err) for (out, err), code in ended]


def test_the_watch_sees_a_transfer_that_is_not_refused(fleet: EvilFleet) -> None:
    """Else 'no data port was used' would mean nothing."""
    before = fleet.data_connections("bob")
    assert fleet.send("alice", "bob", "true").code == 0
    assert fleet.texts("bob")[-1] == b"true"
    assert fleet.data_connections("bob") - before


# --- the channel's handshake --------------------------------------------------------------------------------------


@pytest.mark.attack("C01", "C03", "P01")
def test_damaged_and_replayed_answers_to_a_greeting_are_nothing_and_the_true_one_still_counts(fleet: EvilFleet) -> None:
    """A client that answers none of them is no oracle: it goes on as if they had not come."""
    fleet.join("erin")
    fleet.evil.lie("garble", message="ChannelAnswer", step=64)
    done = fleet.zkc("erin", "peers", "--json")
    assert (done.code, done.err) == (0, b"")
    assert "bob" in {row["name"] for row in done.events}
    assert fleet.evil.report()["garbled"] > 30


@pytest.mark.attack("C01")
def test_a_greeting_whose_answer_is_damaged_was_not_answered(fleet: EvilFleet) -> None:
    fleet.join("frieda")
    fleet.evil.lie("alter", message="ChannelAnswer", to="frieda", fields={"ct_c": {"flip": [-1, 1]}})
    error = error_of(fleet.send("frieda", "bob", "never"))
    assert (error["code"], error["detail"]) == (10, "no-answer")
    fleet.evil.lie("truth")
    assert fleet.send("frieda", "bob", "now").code == 0


@pytest.mark.attack("C04")
def test_a_record_that_comes_twice_ends_the_channel_of_a_client_which_makes_another(fleet: EvilFleet) -> None:
    def links(event: str) -> int:
        return len([each for each in log_of(fleet, "alice") if each["event"] == event])

    lost, linked = links("link-lost"), links("linked")
    fleet.evil.lie("stutter")
    wait_until(lambda: links("link-lost") > lost)  # the answer to its next heartbeat
    fleet.evil.lie("truth")
    wait_until(lambda: links("linked") > linked, within=60)
    for recipient in ("bob", "carol"):
        assert fleet.zkc("alice", "send", recipient, "-m", "over a new channel", "--wait", "60s").code == 0


# --- altered ------------------------------------------------------------------------------------------------------


@pytest.mark.attack("H03")
@pytest.mark.parametrize(
    ("source", "message", "field_name", "grammar", "key"),
    [
        ("sender", "TransferGrant", "response", "Resp", "recipient_one_time_key"),
        ("coordinator", "TransferGrant", "response", "Resp", "recipient_one_time_key"),
        ("coordinator", "Notify", "request", "Req", "sender_one_time_key"),
    ],
)
def test_a_one_time_key_of_the_coordinator_is_refused_before_any_key_is_made(
    refused: EvilFleet, source: Any, message: str, field_name: str, grammar: str, key: str
) -> None:
    suite = principal_in(refused.home("alice")).coordinator.suite
    own = suite.generate_one_time().public.encode().hex()
    seen = len(refused.evil.records)
    refused.evil.lie("alter", message=message, fields={field_name: {"inner": [grammar, {key: {"hex": own}}]}})
    assert refusal(refused, key_source=source).detail == "forged"
    assert refused.evil.report() == {"altered": 1}
    assert "DeliverKey" not in [kind for _, kind, _ in refused.evil.records[seen:]]


@pytest.mark.attack("H03")
def test_a_command_tells_of_an_altered_handshake_in_one_line(refused: EvilFleet) -> None:
    refused.evil.lie("alter", message="TransferGrant", fields={"signature": {"flip": [0, 1]}})
    error = error_of(refused.send("alice", "bob", "never"))
    assert (error["code"], error["reason"], error["detail"]) == (12, "identity", "forged")
    assert "bob" in error["message"]
    assert "nothing was sent" in error["message"]
    assert "zkc verify" in error["message"]


@pytest.mark.attack("H08")
@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("Notify", {"key_source": "coordinator"}),
        ("Notify", {"key_order": "sender-first"}),
        ("Notify", {"cipher": "chacha20-poly1305"}),
        ("Notify", {"presence": "authorised"}),
        ("Notify", {"size_class": 0}),
        ("Notify", {"pin": {"hex": ""}}),
        ("Notify", {"fresh": False}),
        ("TransferGrant", {"key_source": "coordinator"}),
        ("TransferGrant", {"max_bytes": 1 << 60}),
        ("TransferGrant", {"chunk": 64 * 1024}),
        ("TransferGrant", {"presence": "authorised"}),
        ("TransferGrant", {"live": True}),
        ("TransferGrant", {"verdict": "have"}),
        ("TransferGrant", {"verdict": "refuse", "code": 24}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_terms_that_the_coordinator_changes_are_refused(
    refused: EvilFleet, message: str, changes: Mapping[str, Any]
) -> None:
    """All ends allow keys of the coordinator's making: only the signatures stand against it."""
    field_name, grammar = ("request", "Req") if message == "Notify" else ("response", "Resp")
    # What two keys of the coordinator's making would need.
    own = principal_in(refused.home("alice")).coordinator.suite.generate_one_time().public.encode().hex()
    if changes == {"key_source": "coordinator"}:
        changes = {**changes, "sender_one_time_key": {"hex": own}}
    refused.evil.lie("alter", message=message, fields={field_name: {"inner": [grammar, changes]}})
    assert refusal(refused).detail == "forged"
    assert refused.evil.report() == {"altered": 1}


@pytest.mark.attack("P01")
@pytest.mark.parametrize(
    ("message", "field_name"), [(message, name) for message, names in FORWARDED.items() for name in names]
)
def test_a_flipped_bit_of_whatever_is_passed_on_is_refused(refused: EvilFleet, message: str, field_name: str) -> None:
    """Samples here; in memory every byte, by the soak of tests/protocol."""
    to = "alice" if message in ("TransferGrant", "TransferConfirm") else "bob"
    encoded = refused.evil.records[newest(refused, to, message)][2]
    data: bytes = getattr(decode(encoded, getattr(messages, message)), field_name)
    for number, place in enumerate((0, 1, len(data) // 3, len(data) // 2, -2, -1)):
        refused.evil.lie("alter", message=message, to=to, fields={field_name: {"flip": [place, 1 << number]}})
        assert refusal(refused).code == 12
        assert refused.evil.report() == {"altered": 1}


# --- exchanged and forged -----------------------------------------------------------------------------------------


@pytest.mark.attack("H04")
@pytest.mark.parametrize("recipients", [("bob", "bob"), ("bob", "carol")], ids="-".join)
@pytest.mark.parametrize("rewrite", [False, True], ids=["as they came", "with the other id"])
def test_answers_of_two_transfers_cannot_be_exchanged(
    refused: EvilFleet, recipients: tuple[str, str], rewrite: bool
) -> None:
    refused.evil.lie("swap", message="TransferGrant", field="response", grammar="Resp", rewrite=rewrite)
    for done in both(refused, *recipients):
        assert error_of(done)["code"] == 12
    assert refused.evil.report() == {"swapped": 1, "held": 0}


@pytest.mark.attack("H05")
@pytest.mark.parametrize("recipients", [("bob", "bob"), ("bob", "carol")], ids="-".join)
@pytest.mark.parametrize("rewrite", [False, True], ids=["as they came", "with the other id"])
def test_keys_of_two_transfers_cannot_be_exchanged(
    refused: EvilFleet, recipients: tuple[str, str], rewrite: bool
) -> None:
    refused.evil.lie("swap", message="DeliverKey", field="key", grammar="Key", rewrite=rewrite)
    for done in both(refused, *recipients):
        assert error_of(done)["code"] == 12
    assert refused.evil.report() == {"swapped": 1, "held": 0}


@pytest.mark.attack("H05")
def test_a_request_to_one_recipient_is_refused_by_another(refused: EvilFleet) -> None:
    request = newest(refused, "bob", "Notify")
    answer = refused.evil.command("replay", record=request, to="carol")["answer"]
    assert answer == ["Failure", 12, "identity"]
    key = newest(refused, "bob", "DeliverKey")
    assert refused.evil.command("replay", record=key, to="carol")["answer"] == ["Failure", 12, "unexpected"]


@pytest.mark.attack("H05")
def test_a_key_that_the_coordinator_made_itself_is_not_the_senders(refused: EvilFleet) -> None:
    """It seals to both keys of the recipient, under the right transcript: only the sender's signature is missing."""
    refused.evil.lie("own-key")
    assert refusal(refused).code == 12
    assert refused.evil.report() == {"answers": [["Failure", 12, "forged"]]}


@pytest.mark.attack("H07")
@pytest.mark.parametrize("withheld", [True, False], ids=["the key never arrives", "the key arrives"])
def test_a_forged_confirmation_makes_the_sender_send_nothing(refused: EvilFleet, withheld: bool) -> None:
    if withheld:
        refused.evil.lie("confirm-for-others")
    else:
        refused.evil.lie("alter", message="TransferConfirm", fields={"confirmation": {"inner": [
            "Conf", {"mac": {"hex": "5a" * 32}}
        ]}})
    error = error_of(refused.send("alice", "bob", "never"))
    assert (error["code"], error["detail"]) == (12, "forged")
    assert refused.evil.report() in ({"forged": 1}, {"altered": 1})


@pytest.mark.attack("H10")
@pytest.mark.parametrize(
    ("message", "fields", "made_into"),
    [
        ("TransferGrant", {"response": ["Notify", "request"], "signature": ["Notify", "signature"]}, ""),
        ("TransferGrant", {"signature": ["Notify", "signature"]}, ""),
        ("TransferGrant", {"certificate": ["Notify", "certificate"]}, ""),
        ("DeliverKey", {"signature": ["Notify", "signature"]}, ""),
        ("DeliverKey", {"key": ["TransferGrant", "response"], "signature": ["TransferGrant", "signature"]}, ""),
        ("DeliverKey", {"confirmation": ["DeliverKey", "key"]}, "DeliverConfirmation"),
        ("DeliverKey", {"wrapped": ["DeliverKey", "key"], "confirmation": ["DeliverKey", "key"]}, "DeliverSessionKey"),
        (
            "Notify",
            {
                "request": ["TransferGrant", "response"], "signature": ["TransferGrant", "signature"],
                "card": ["TransferGrant", "card"], "certificate": ["TransferGrant", "certificate"],
            },
            "",
        ),
        ("TransferConfirm", {"confirmation": ["DeliverKey", "key"]}, ""),
        ("TransferConfirm", {}, "Ok"),
        ("TransferGrant", {"confirmation": ["TransferConfirm", "confirmation"]}, "TransferConfirm"),
    ],
)
def test_a_message_of_one_kind_is_not_taken_for_another(
    refused: EvilFleet, message: str, fields: Mapping[str, list[str]], made_into: str
) -> None:
    refused.evil.lie(
        "alter", message=message, fields={name: {"from": origin} for name, origin in fields.items()},
        **({"as": made_into} if made_into else {}),
    )
    assert refusal(refused).code == 12
    assert refused.evil.report()["altered"] == 1


# --- replayed -----------------------------------------------------------------------------------------------------


def newest(fleet: EvilFleet, to: str, kind: str) -> int:
    """The number of the newest message of that type to ``to``."""
    return max(i for i, (name, known, _) in enumerate(fleet.evil.records) if (name, known) == (to, kind))


@pytest.mark.attack("H06")
def test_what_comes_twice_at_once_is_done_once(fleet: EvilFleet) -> None:
    before = fleet.texts("bob")
    fleet.evil.lie("double")
    assert fleet.send("alice", "bob", "once").code == 0
    wait_until(lambda: len(fleet.evil.report()["second"]) == 2)
    key, notify = sorted(fleet.evil.report()["second"])
    # None while the first is judged, the same answer while the transfer lives, and again none once it is over.
    assert notify in (["Notify", "Failure", 12, "replay"], ["Notify", "TransferResponse", "accept"])
    assert key in (["DeliverKey", "TransferConfirm"], ["DeliverKey", "Failure", 12, "unexpected"])
    assert fleet.texts("bob") == [*before, b"once"]


@pytest.mark.attack("H06")
def test_a_finished_transfer_is_not_done_again_now_or_after_a_restart(fleet: EvilFleet) -> None:
    assert fleet.send("alice", "bob", "finished").code == 0
    texts, connections = fleet.texts("bob"), fleet.data_connections("bob")
    request, key = newest(fleet, "bob", "Notify"), newest(fleet, "bob", "DeliverKey")
    for after_restart in (False, True):
        if after_restart:
            fleet.program("bob").kill()
            fleet.start_daemon("bob")
        answer = fleet.evil.command("replay", record=request, to="bob")["answer"]
        assert answer == (["TransferResponse", "have"] if after_restart else ["Failure", 12, "replay"])
        assert fleet.evil.command("replay", record=key, to="bob")["answer"] == ["Failure", 12, "unexpected"]
    assert fleet.texts("bob") == texts
    assert fleet.data_connections("bob") <= connections


@pytest.mark.attack("H06")
def test_a_key_that_a_restart_has_outlived_opens_nothing(refused: EvilFleet) -> None:
    """The handshake was agreed at the recipient, no data came, and it restarts: its one-time key is gone for good."""
    refused.evil.lie("alter", message="TransferConfirm", fields={"confirmation": {"flip": [-1, 1]}})
    assert refusal(refused).code == 12
    request, key = newest(refused, "bob", "Notify"), newest(refused, "bob", "DeliverKey")
    refused.evil.lie("truth")
    refused.program("bob").kill()
    refused.start_daemon("bob")
    assert refused.evil.command("replay", record=request, to="bob")["answer"] == ["TransferResponse", "accept"]
    assert refused.evil.command("replay", record=key, to="bob")["answer"] == ["Failure", 12, "forged"]
    # The answer that it got already: no second handshake.
    assert refused.evil.command("replay", record=request, to="bob")["answer"] == ["TransferResponse", "accept"]
    assert refused.evil.command("replay", record=key, to="bob")["answer"] == ["Failure", 12, "forged"]


@pytest.mark.attack("H06")
@pytest.mark.parametrize("kind", ["TransferGrant", "TransferConfirm"])
def test_an_earlier_answer_is_refused_by_the_sender(refused: EvilFleet, kind: str) -> None:
    refused.evil.lie("replace", message=kind, record=newest(refused, "alice", kind))
    assert refusal(refused).code == 12
    assert refused.evil.report() == {"replaced": 1}


# --- what is seen, and what a thief gets --------------------------------------------------------------------------


@dataclass
class Recorded:
    """One transfer of alice to bob, as everybody saw it."""

    name: str
    note: str
    payload: bytes = field(repr=False)
    k: bytes
    where: tuple[str, int, int]
    frames: list[bytes] = field(repr=False)
    """What alice pushed to bob's data socket."""
    notify: Notify
    grant: TransferGrant
    key: DeliverKey
    control: bytes = field(repr=False)
    """What passed the wire before the coordinator, either way."""
    relayed: bytes = field(repr=False)
    """What passed inside the channels, opened by the coordinator."""

    @property
    def transcripts(self) -> tuple[Transcript, Transcript]:
        """Before KEY, and after it and its signature."""
        at = Transcript.start("xfer", "hybrid").absorb(
            self.notify.request, self.notify.signature, self.grant.response, self.grant.signature
        )
        return at, at.absorb(self.key.key, self.key.signature)

    @property
    def secrets(self) -> dict[str, bytes]:
        """What nobody but the two ends may see."""
        k = Secret(self.k)
        host, data_port, ack_port = self.where
        return {
            "payload": self.payload[:64], "name": self.name.encode(), "note": self.note.encode(), "k": self.k,
            "k in hex": self.k.hex().encode(), "tag": xid_tag(k), "tag in hex": xid_tag(k).hex().encode(),
            "token": token(k, "data", 0).encode(), "token of acknowledgements": token(k, "ack", 0).encode(),
            "endpoints": encode(Endpoints([host], data_port, ack_port, 0, "", b""))[:-1],
            "data endpoint": f"{host}:{data_port}".encode(), "ack endpoint": f"{host}:{ack_port}".encode(),
        }

    def opened(self, k: Secret) -> bytes | None:
        """The payload, as a recipient with the key ``k`` reads it in the recorded frames; None where it reads none."""
        req: Req = decode(self.notify.request, Req)
        resp: Resp = decode(self.grant.response, Resp)
        peer = verify_card(self.notify.card, suite_named("hybrid"))
        machine = DeliveryRecipient(Session(k, self.transcripts[1].value, req, resp, peer, b"", None))
        data = bytearray()
        try:
            for frame in self.frames:
                event = machine.receive(frame)
                if isinstance(event, Data | Complete):
                    data += event.data
                if isinstance(event, Complete):
                    machine.done(b"")  # said to nobody: BYE comes after it
        except PeerViolation:
            return None
        return bytes(data)


@pytest.fixture(scope="module")
def recorded(running: EvilFleet, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A transfer of 4 MiB with name and note, recorded on the control wire, in the coordinator and on the data wire."""
    folder = tmp_path_factory.mktemp("recorded")
    running.evil.lie("truth")
    name, note = "quarterly-figures-of-the-works.ods", "please keep these figures to yourself"
    payload = os.urandom(4 * 1024 * 1024)
    (folder / name).write_bytes(payload)
    wire, inside = running.wire_marks(), len(running.evil.plaintexts)
    out = folder / "tapped.json"
    subprocess.run(
        [
            sys.executable, "-m", "tests.support.tapped_send", str(out), "send", "bob", str(folder / name), "--note",
            note,
        ],
        env=running.environment("alice"), check=True, timeout=60, cwd=folder,
    )
    control = running.wire_since(wire)
    seen = json.loads(out.read_text())
    assert running.texts("bob")[-1] == payload
    records = running.evil.records
    host, data_port, ack_port = seen["where"]
    return Recorded(
        name, note, payload, bytes.fromhex(seen["k"]), (host, data_port, ack_port),
        frames_of(bytes.fromhex(seen["data"][0])), decode(records[newest(running, "bob", "Notify")][2], Notify),
        decode(records[newest(running, "alice", "TransferGrant")][2], TransferGrant),
        decode(records[newest(running, "bob", "DeliverKey")][2], DeliverKey), control,
        b"".join(running.evil.plaintexts[inside:]),
    )


def frames_of(stream: bytes) -> list[bytes]:
    """The messages in what one ZMTP peer sent."""
    found, at = [], GREETING_BYTES
    while at < len(stream):
        flags = stream[at]
        width = 8 if flags & LONG else 1
        begin = at + 1 + width
        at = begin + int.from_bytes(stream[at + 1 : begin], "big")
        if not flags & COMMAND:
            found.append(stream[begin:at])
    return found


@dataclass
class Loot:
    """Every permanent secret on the disks of the sender, the recipient and the coordinator."""

    private_keys: list[KemPrivateKey] = field(default_factory=list)
    recipient_key: KemPrivateKey | None = None
    secrets: list[bytes] = field(default_factory=list)


def stolen(fleet: EvilFleet) -> Loot:
    loot = Loot()
    for name in ("alice", "bob"):
        principal = principal_in(fleet.home(name))
        registration = principal.registration
        loot.private_keys.append(principal.kem_key)
        loot.secrets += [registration.identity_private, registration.kem_private, registration.curve_secret]
        if name == "bob":
            loot.recipient_key = principal.kem_key
    home = fleet.home("coordinator")
    identity = load_coordinator(home)
    loot.private_keys.append(identity.general_key)
    loot.secrets += [identity.mac_key, identity.curve.secret, identity.general_key.encode()]
    db = KeyDb.open(f"sqlite:///{home / 'keys.db'}", identity.mac_key, create=False)
    for client in db.clients():
        loot.private_keys.append(read_private(client.perm_server_private))
        loot.secrets.append(client.perm_server_private)
    for invitation in db.invitations():
        loot.secrets += [invitation.psk, invitation.psk_private or b""]
    db.close()
    return loot


@pytest.mark.attack("H09")
@pytest.mark.claims("C5")
def test_all_permanent_keys_together_open_nothing_that_was_recorded(running: EvilFleet, recorded: Recorded) -> None:
    """The transfer is over; then the disks of all three are stolen, and every message and frame was kept."""
    loot = stolen(running)
    assert len(loot.private_keys) >= 6
    assert loot.recipient_key is not None
    before, after = recorded.transcripts
    key: Key = decode(recorded.key.key, Key)
    # What the theft does give: the half that is sealed to the recipient's permanent key.
    ss1 = kem_decapsulate(loot.recipient_key, "xfer-perm", before.value, key.ct1)
    # The other half was sealed to a key that is gone: none of those that are left opens it.
    for private_key, label in itertools.product(loot.private_keys, ("xfer-eph", "xfer-perm")):
        with pytest.raises(PeerViolation):
            kem_decapsulate(private_key, label, before.value, key.ct2)
    # And nothing that is left stands in for what was in it.
    assert recorded.opened(extract(after.value, ss1)) is None
    for guess in [bytes(32), ss1.reveal(), *(part for secret in loot.secrets for part in parts_of(secret))]:
        assert recorded.opened(session_key(after, ss1, Secret(guess))) is None
        assert recorded.opened(extract(after.value, Secret(guess), ss1)) is None
        if len(guess) == 32:
            assert recorded.opened(Secret(guess)) is None
    # With K itself it opens: nothing else was in the way.
    assert recorded.opened(Secret(recorded.k)) == recorded.payload


def parts_of(secret: bytes) -> set[bytes]:
    """A secret, and its first and last 32 bytes: seeds and halves of keys."""
    return {secret, secret[:32], secret[-32:]} - {b""}


@pytest.mark.attack("H09")
def test_the_session_key_is_in_no_file(running: EvilFleet, recorded: Recorded) -> None:
    files = [path for path in running.folder.rglob("*") if path.is_file()]
    for word in ("k", "k in hex", "token", "token of acknowledgements"):
        assert not [path for path in files if recorded.secrets[word] in path.read_bytes()], word


@pytest.mark.attack("H15", "H09")
@pytest.mark.claims("C5")
def test_a_coordinators_memory_holds_nothing_of_a_transfer(running: EvilFleet, recorded: Recorded) -> None:
    """All of its memory, right after the transfer; it has kept every message that it passed on."""
    memory = memory_of(running.coordinator.process.pid)
    xid: bytes = decode(recorded.notify.request, Req).xid
    for known in (xid, recorded.notify.request, recorded.grant.response, recorded.key.key):
        assert any(known in region for region in memory), "the search finds nothing at all"
    found = [word for word, secret in recorded.secrets.items() if any(secret in region for region in memory)]
    assert not found


def memory_of(pid: int) -> list[bytes]:
    """What a process has in its writable memory."""
    regions = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            if mode.startswith("rw") and "[v" not in line:
                start, end = (int(each, 16) for each in span.split("-"))
                with contextlib.suppress(OSError):
                    regions.append(os.pread(memory.fileno(), end - start, start))
    return regions


@pytest.mark.attack("H15")
@pytest.mark.claims("B4", "C5", 65, 89)
def test_what_passes_the_coordinator_tells_nothing_and_is_short(running: EvilFleet, recorded: Recorded) -> None:
    assert recorded.notify.request in recorded.relayed, "the record is not what the coordinator saw"
    found = [word for word, secret in recorded.secrets.items() if secret in recorded.relayed]
    assert not found
    # Before it, on the wire: not even who sends to whom, in any connection since the first registration.
    assert 0 < len(recorded.control) < 200_000
    everything = running.proxy.recorded()
    readable = [*recorded.secrets.values(), recorded.notify.request, b"alice", b"carol", b"computer"]
    assert not [word for word in readable if word in everything]
    # Nor on the data wire, where bob's name and alice's have no place.
    data = b"".join(recorded.frames)
    assert len(data) > len(recorded.payload)
    assert not [
        word for word in ("payload", "name", "note", "k", "endpoints", "token") if recorded.secrets[word] in data
    ]
