"""X1 to X6 and G1 to G4 between sender, coordinator and recipient (figures 2, 8-10, 13-16)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import pytest

from tests.support.parties import World
from tests.support.talks import HERE, THERE, TransferTalk, Turn, is_wiped, secrets_in, snapshot, terms
from zkc.constants import CHUNK_MIN, CONTROL_MESSAGE_MAX, ID_BYTES, TERMS_VERSION
from zkc.crypto.primitives import Secret, expand, mac
from zkc.crypto.signing import IdentityPublic
from zkc.crypto.suites import kem_decapsulate
from zkc.errors import (
    IdentityError,
    NobodyThere,
    PeerViolation,
    PolicyRefused,
    Refused,
    VersionMismatch,
    ZkcError,
)
from zkc.ids import KeyOrder, KeySource
from zkc.protocol import transfer_coordinator as tc
from zkc.protocol import transfer_recipient as tr
from zkc.protocol import transfer_sender as ts
from zkc.protocol.session import level_met, read_req, read_resp, session_key
from zkc.protocol.step import erase, step
from zkc.protocol.trust import Known
from zkc.wire.codec import decode, encode
from zkc.wire.frames import RECORD_HEADER_BYTES
from zkc.wire.messages import (
    Answer,
    Conf,
    ConfS,
    DeliverConfirmation,
    DeliverKey,
    DeliverSessionKey,
    Endpoints,
    Key,
    Notify,
    Ok,
    Req,
    Request,
    Resp,
    TransferConfirm,
    TransferConfirmKey,
    TransferGrant,
    TransferKey,
    TransferRequest,
    TransferResponse,
    WrappedKey,
)

SENDER_MADE: Final = ("sender", "recipient-first")
RECIPIENT_FIRST: Final = ("coordinator", "recipient-first")
SENDER_FIRST: Final = ("coordinator", "sender-first")
FORMS: Final = (SENDER_MADE, RECIPIENT_FIRST, SENDER_FIRST)
Form = tuple[KeySource, KeyOrder]

each_form = pytest.mark.parametrize("form", FORMS, ids=["sender-made", "recipient-first", "sender-first"])


def asked(form: Form, serial: int = 1, recipient: str = "bob") -> ts.Terms:
    return terms(recipient, serial=serial, key_source=form[0], key_order=form[1])


def finished(talk: TransferTalk) -> TransferTalk:
    """``talk``, through to its end."""
    talk.run()
    assert talk.agreed == (True, True)
    return talk


def replacing(kind: type, make: Callable[[Turn], object]) -> Callable[[Turn], object]:
    """A tap that puts ``make(turn)`` in the place of the first message of a kind."""
    done: list[object] = []

    def tap(turn: Turn) -> object:
        if isinstance(turn.message, kind) and not done:
            done.append(make(turn))
            return done[0]
        return turn.message

    return tap


def remade(message: msgspec.Struct, field: str, inner: type, **changes: object) -> msgspec.Struct:
    """``message`` with some fields changed of the structure that stands encoded in one of its fields."""
    value = decode(getattr(message, field), inner)
    return msgspec.structs.replace(message, **{field: encode(msgspec.structs.replace(value, **changes))})


def all_secrets(talk: TransferTalk, *sides: str) -> Iterator[tuple[str, Secret]]:
    for name in sides or talk.sides:
        for state in talk.sides[name].states:
            yield from secrets_in(state, f"{name}.{type(state).__name__}")


# --- the way through ------------------------------------------------------------------------------------------------


@pytest.mark.claims("C1", "C2", "C3", 58, 68, 69, 70, 76, 82, 92, 93, 94, 106)
def test_a_sender_made_key_is_agreed_in_the_documents_order(each_world: World) -> None:
    """Request, notification, answer, the recipient's permanent key, the sealed key, the confirmation: then data."""
    talk = finished(each_world.transfer(asked(SENDER_MADE)))
    assert [(to, type(message)) for (to, _), message in zip(talk.wire, talk.messages(object), strict=True)] == [
        ("coordinator", TransferRequest), ("recipient", Notify), ("coordinator", TransferResponse),
        ("sender", TransferGrant), ("coordinator", TransferKey), ("recipient", DeliverKey),
        ("coordinator", TransferConfirm), ("sender", TransferConfirm),
    ]  # fmt: skip
    sender, recipient = talk.sessions
    assert sender.k.reveal() == recipient.k.reveal()
    assert (sender.th, sender.req, sender.resp) == (recipient.th, recipient.req, recipient.resp)
    assert sender.endpoints == HERE
    assert sender.peer.fingerprint == each_world.bob.fingerprint == recipient.own_fingerprint


@pytest.mark.claims("B1", "B2", "B3", 1, 2, 5, 17, 18, 26, 39, 49, 110)
def test_a_coordinator_made_key_goes_to_the_recipient_and_only_then_to_the_sender(each_world: World) -> None:
    """Nothing reaches the sender before the recipient's confirmation has verified (figure 2, 204-208)."""
    talk = finished(each_world.transfer(asked(RECIPIENT_FIRST)))
    assert [(to, type(message)) for (to, _), message in zip(talk.wire, talk.messages(object), strict=True)] == [
        ("coordinator", TransferRequest), ("recipient", Notify), ("coordinator", TransferResponse),
        ("recipient", DeliverSessionKey), ("coordinator", TransferConfirm), ("sender", TransferGrant),
        ("coordinator", TransferConfirmKey), ("recipient", DeliverConfirmation), ("coordinator", Ok), ("sender", Ok),
    ]  # fmt: skip
    sender, recipient = talk.sessions
    assert sender.k.reveal() == recipient.k.reveal()
    assert sender.th == recipient.th


@pytest.mark.claims("B7")
def test_the_key_can_go_to_the_sender_first(each_world: World) -> None:
    """The other order of figure 2: the recipient gets its key together with the sender's confirmation."""
    talk = finished(each_world.transfer(asked(SENDER_FIRST)))
    assert [(to, type(message)) for (to, _), message in zip(talk.wire, talk.messages(object), strict=True)] == [
        ("coordinator", TransferRequest), ("recipient", Notify), ("coordinator", TransferResponse),
        ("sender", TransferGrant), ("coordinator", TransferConfirmKey), ("recipient", DeliverSessionKey),
        ("coordinator", TransferConfirm), ("sender", TransferConfirm),
    ]  # fmt: skip
    assert talk.sessions[0].k.reveal() == talk.sessions[1].k.reveal()


@pytest.mark.claims("B2", "C4", 52, 79, 103)
@each_form
def test_the_recipient_knows_who_sends_before_it_answers(default_world: World, form: Form) -> None:
    talk = finished(default_world.transfer(asked(form)))
    notified = next(state for state in talk.sides["recipient"].states if isinstance(state, tr.Notified))
    assert (notified.sender.name, notified.sender.fingerprint) == ("alice", default_world.alice.fingerprint)


@each_form
def test_pinned_peers_reach_each_other_as_strangers_do(quick_world: World, form: Form) -> None:
    talk = TransferTalk(
        quick_world.alice.sender(quick_world.bob.pin), quick_world.broker(),
        quick_world.bob.recipient(quick_world.alice.pin), asked(form),
    )  # fmt: skip
    assert finished(talk).sessions[0].req.pin == quick_world.bob.fingerprint


@each_form
def test_a_client_can_send_to_itself(quick_world: World, form: Form) -> None:
    alice = quick_world.alice
    talk = TransferTalk(
        alice.sender(alice.pin), quick_world.broker(alice, alice), alice.recipient(alice.pin),
        asked(form, recipient="alice"),
    )  # fmt: skip
    finished(talk)


@pytest.mark.claims("A9")
@each_form
def test_an_application_receives_under_its_own_keys(quick_world: World, form: Form) -> None:
    backup = quick_world.backup
    talk = TransferTalk(
        quick_world.alice.sender(), quick_world.broker(quick_world.alice, backup), backup.recipient(),
        asked(form, recipient="bob/backup"),
    )  # fmt: skip
    assert finished(talk).sessions[0].peer.owner_fingerprint == quick_world.bob.fingerprint


@pytest.mark.claims("A10", 48, 56, 57)
def test_one_registration_serves_any_number_of_transfers_in_any_form(quick_world: World) -> None:
    before = snapshot(quick_world.bob.recipient())
    for serial, form in enumerate(FORMS * 2):
        finished(quick_world.transfer(asked(form, serial)))
    assert snapshot(quick_world.bob.recipient()) == before


@each_form
def test_every_handshake_message_fits_in_a_record(each_world: World, form: Form) -> None:
    """Within a record: the id around it, its header and its tag included."""
    talk = finished(each_world.transfer(asked(form)))
    for to, message in zip((to for to, _ in talk.wire), talk.messages(object), strict=True):
        around = Request if to == "recipient" or type(message) in (TransferRequest, TransferKey) else Answer
        assert RECORD_HEADER_BYTES + 16 + len(encode(around(bytes(16), message))) <= CONTROL_MESSAGE_MAX


def test_ids_of_another_length_are_a_defect_of_the_caller(default_world: World) -> None:
    for changes in ({"xid": bytes(ID_BYTES - 1)}, {"tid": b""}):
        wrong = dataclasses.replace(asked(SENDER_MADE), **changes)
        with pytest.raises(ValueError, match="16 bytes"):
            ts.create_request(default_world.alice.sender(), wrong)


# --- what is answered instead ---------------------------------------------------------------------------------------


@pytest.mark.claims("B2", "C1")
@each_form
@pytest.mark.parametrize(("code", "detail"), [(25, "limit"), (24, "refused"), (33, "no-space")])
def test_a_refusal_gives_no_card_and_no_key(default_world: World, form: Form, code: int, detail: str) -> None:
    talk = default_world.transfer(asked(form), decision=tr.Decline(code, detail))
    talk.run()
    assert talk.failure == tc.FailSender(code, detail)
    assert isinstance(talk.state("recipient"), tr.Closed)
    assert not talk.messages(TransferGrant, DeliverSessionKey, DeliverKey)
    answer, passed = talk.messages(TransferResponse)
    assert answer == passed == talk.refusal
    resp = decode(answer.response, Resp)
    assert (resp.recipient_one_time_key, resp.sealed_endpoints) == (b"", b"")


@each_form
@pytest.mark.parametrize("code", [0, 1, 12, 41, 255])
def test_a_refusal_with_a_code_that_refuses_nothing_is_told_as_policy(
    default_world: World, form: Form, code: int
) -> None:
    """A recipient chooses among the codes of a refusal; it cannot make the sender report a defect or an alarm."""
    talk = default_world.transfer(asked(form), decision=tr.Decline(code, "x"))
    talk.run()
    assert talk.failure == tc.FailSender(25, "x")


@pytest.mark.parametrize(
    ("code", "error"), [(24, Refused), (22, NobodyThere), (12, PolicyRefused), (99, PolicyRefused)]
)
def test_a_refusal_is_the_recipients_word_where_its_key_is_pinned(
    default_world: World, code: int, error: type[ZkcError]
) -> None:
    """Whatever the coordinator makes of it: the sender ends with the recipient's own code, and its person's words."""
    talk = default_world.transfer(asked(SENDER_MADE), decision=tr.Decline(code, "why", "not \x1b[2Jtoday"))
    talk.run()
    assert talk.refusal is not None
    assert b"today" not in talk.refusal.response
    unpinned = talk.state("sender").error
    assert isinstance(unpinned, error)
    assert "today" not in unpinned.message
    alice = talk.sides["sender"].context
    for card, signature, believed in (
        (default_world.bob.card, talk.refusal.signature, True),
        (default_world.bob.card, bytes(len(talk.refusal.signature)), False),
        (default_world.alice.card, talk.refusal.signature, False),
    ):
        knowing = dataclasses.replace(alice, known=Known(card.fingerprint, card=card.encoded))
        message = TransferResponse(talk.refusal.response, signature)
        told = step(ts.TABLE, knowing, talk.sides["sender"].states[0], message).state.error
        assert (type(told), told.detail) == (error, "why")
        assert ("not \\x1b[2Jtoday" in told.message) is believed


def test_a_refusal_of_another_transfer_or_one_that_comes_with_a_card_is_none(default_world: World) -> None:
    talk = default_world.transfer(asked(SENDER_MADE), decision=tr.Decline(24, ""))
    talk.run()
    other = default_world.transfer(asked(SENDER_MADE, serial=2), decision=tr.Decline(24, ""))
    other.run()
    accepted = default_world.transfer(asked(SENDER_MADE))
    accepted.run()
    (grant,) = accepted.messages(TransferGrant)
    assert talk.refusal is not None
    assert other.refusal is not None
    bob = default_world.bob
    for message in (
        other.refusal,
        TransferResponse(grant.response, grant.signature),
        TransferGrant(talk.refusal.response, talk.refusal.signature, bob.card.encoded, bob.certificate, b"", b""),
    ):
        with pytest.raises(PeerViolation):
            step(ts.TABLE, talk.sides["sender"].context, talk.sides["sender"].states[0], message)


@each_form
def test_a_finished_delivery_is_answered_with_its_receipt_and_no_key(default_world: World, form: Form) -> None:
    """Verdict `have`: the receipt, readable by the sender alone; nobody makes a key."""
    talk = default_world.transfer(asked(form), decision=tr.AlreadyHave(b"the receipt of last week"))
    talk.run()
    assert talk.state("sender").receipt == b"the receipt of last week"
    assert isinstance(talk.state("sender"), ts.AlreadyDelivered)
    assert isinstance(talk.state("recipient"), tr.Closed)
    assert isinstance(talk.state("coordinator"), tc.Finished)
    assert not talk.messages(TransferKey, DeliverSessionKey)
    assert b"last week" not in b"".join(data for _, data in talk.wire)
    assert not [path for path, secret in all_secrets(talk) if not is_wiped(secret)]


def test_levels_are_ordered() -> None:
    levels = ("online", "present", "authorised")
    assert [[level_met(stated, required) for required in levels] for stated in levels] == [
        [True, False, False], [True, True, False], [True, True, True],
    ]  # fmt: skip


@pytest.mark.claims("D2", "D3", "D4")
@each_form
@pytest.mark.parametrize(("required", "code"), [("present", 22), ("authorised", 23)])
def test_no_key_passes_before_the_level_asked_for_is_stated(
    default_world: World, form: Form, required: str, code: int
) -> None:
    """The coordinator holds the answer back and tells the sender why."""
    talk = default_world.transfer(asked(form))
    alice = default_world.alice
    first = talk.sides["sender"].state
    req = msgspec.structs.replace(first.req, presence=required)
    signed = _signed_request(default_world, req)
    assert req.presence == required
    talk.tap = replacing(TransferRequest, lambda _: signed)
    talk.run()
    assert talk.failure == tc.FailSender(code, "")
    assert not talk.messages(TransferGrant, DeliverSessionKey)
    assert alice.name == req.sender


@pytest.mark.claims("D2", "D3", "D4")
@each_form
@pytest.mark.parametrize(("required", "code"), [("present", 22), ("authorised", 23)])
def test_a_sender_takes_no_grant_below_the_level_that_it_asked_for(
    default_world: World, form: Form, required: str, code: int
) -> None:
    """Whatever the coordinator passes on: a key that comes means that the level is met."""
    talk = default_world.transfer(asked(form))
    side = talk.sides["sender"]
    req = msgspec.structs.replace(side.state.req, presence=required)
    signed = _signed_request(default_world, req)
    th = ts.Transcript.start("xfer", default_world.suite.name).absorb(signed.request).absorb(signed.signature)
    side.state = dataclasses.replace(side.state, req=req, th=th)
    talk.tap = replacing(TransferRequest, lambda _: signed)
    talk.run()
    (answer,) = talk.messages(TransferResponse)
    bob = default_world.bob
    grant = TransferGrant(answer.response, answer.signature, bob.card.encoded, bob.certificate, b"", b"")
    with pytest.raises(ZkcError) as caught:
        talk.feed("sender", grant)
    assert caught.value.code == code


def _signed_request(world: World, req: Req) -> TransferRequest:
    """REQ as alice signs it."""
    encoded = encode(req)
    th = ts.Transcript.start("xfer", world.suite.name).absorb(encoded)
    return TransferRequest(encoded, world.alice.identity.sign("xfer-req", th.value))


# --- the coordinator's own rules ------------------------------------------------------------------------------------


@pytest.mark.attack("C09")
def test_a_request_in_another_clients_name_is_refused(default_world: World) -> None:
    """carol's channel, a REQ that says alice sends, even alice's own true one."""
    first = ts.create_request(default_world.alice.sender(), asked(SENDER_MADE))
    broker = default_world.broker(default_world.carol)
    with pytest.raises(PeerViolation) as caught:
        step(tc.TABLE, broker, tc.Idle(), first.effects[0].message)
    assert caught.value.detail == "identity"


@pytest.mark.parametrize("key", [b"", b"\x01short", bytes(33)])
def test_a_bad_one_time_key_of_the_sender_is_the_senders_fault_at_its_request(default_world: World, key: bytes) -> None:
    """Not the recipient's, whose answer would otherwise be what fails, and not after he was notified."""
    first = ts.create_request(default_world.alice.sender(), asked(RECIPIENT_FIRST))
    req = msgspec.structs.replace(first.state.req, sender_one_time_key=key)
    with pytest.raises(PeerViolation) as caught:
        step(tc.TABLE, default_world.broker(), tc.Idle(), _signed_request(default_world, req))
    assert caught.value.detail in {"bad-key", "malformed"}


def test_a_one_time_key_where_none_belongs_is_refused_at_the_request(default_world: World) -> None:
    first = ts.create_request(default_world.alice.sender(), asked(SENDER_MADE))
    req = msgspec.structs.replace(first.state.req, sender_one_time_key=default_world.bob.kem_key.public.encode())
    with pytest.raises(PeerViolation, match="malformed"):
        step(tc.TABLE, default_world.broker(), tc.Idle(), _signed_request(default_world, req))


@pytest.mark.parametrize("form", [RECIPIENT_FIRST, SENDER_FIRST])
def test_a_bad_one_time_key_of_the_recipient_is_its_fault_at_its_answer(default_world: World, form: Form) -> None:
    talk = default_world.transfer(
        asked(form),
        tap=replacing(
            TransferResponse, lambda turn: remade(turn.message, "response", Resp, recipient_one_time_key=b"\x01no")
        ),
    )
    with pytest.raises(PeerViolation, match="bad-key"):
        talk.run()
    assert isinstance(talk.state("coordinator"), tc.Notified)


@pytest.mark.attack("H06")
def test_a_key_passes_once(default_world: World) -> None:
    """The same bytes again pass, and go nowhere a second time; another KEY on the xid is refused."""
    talk = default_world.transfer(
        asked(SENDER_MADE), tap=lambda turn: None if isinstance(turn.message, TransferConfirm) else turn.message
    )
    talk.run()
    (key,) = talk.messages(TransferKey)
    broker, state = talk.sides["coordinator"].context, talk.state("coordinator")
    again = step(tc.TABLE, broker, state, key)
    assert (again.state, again.effects) == (state, ())
    for other in (msgspec.structs.replace(key, signature=bytes(64)), remade(key, "key", Key, ct1=b"other")):
        with pytest.raises(PeerViolation, match="replay"):
            step(tc.TABLE, broker, state, other)


def test_an_answer_of_another_transfer_stops_at_the_coordinator(default_world: World) -> None:
    talk = default_world.transfer(
        asked(SENDER_MADE),
        tap=replacing(TransferResponse, lambda turn: remade(turn.message, "response", Resp, xid=bytes(16))),
    )
    with pytest.raises(PeerViolation, match="identity"):
        talk.run()
    assert not talk.messages(TransferGrant)


@each_form
@pytest.mark.parametrize("field", ["key_source", "key_order"])
def test_an_answer_with_another_key_source_or_order_is_refused_by_policy_and_no_key_passes(
    default_world: World, form: Form, field: str
) -> None:
    other = {"sender": "coordinator", "coordinator": "sender", "recipient-first": "sender-first"}
    changes = {field: other.get(form[field == "key_order"], "recipient-first")}
    talk = default_world.transfer(
        asked(form), tap=replacing(TransferResponse, lambda turn: remade(turn.message, "response", Resp, **changes))
    )
    talk.run()
    assert talk.failure == tc.FailSender(25, "key-source")
    assert not talk.messages(TransferGrant, DeliverSessionKey)
    assert isinstance(talk.state("coordinator"), tc.Finished)
    assert not [path for path, secret in all_secrets(talk, "coordinator") if not is_wiped(secret)]


def test_later_messages_of_the_sender_tell_their_transfer(default_world: World) -> None:
    one, two = (finished(default_world.transfer(asked(form))) for form in (SENDER_MADE, RECIPIENT_FIRST))
    assert tc.xid_of(one.messages(TransferKey)[0]) == one.sides["sender"].states[0].req.xid
    assert tc.xid_of(two.messages(TransferConfirmKey)[0]) == two.sides["sender"].states[0].req.xid


# --- fields that must be empty --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "field"),
    [(SENDER_MADE, "wrapped"), (SENDER_MADE, "confirmation"), (SENDER_FIRST, "confirmation")],
)
def test_a_grant_with_a_key_or_a_confirmation_where_none_belongs_is_refused(
    default_world: World, form: Form, field: str
) -> None:
    talk = default_world.transfer(
        asked(form),
        tap=replacing(TransferGrant, lambda turn: msgspec.structs.replace(turn.message, **{field: b"surplus"})),
    )
    with pytest.raises(PeerViolation, match="unexpected"):
        talk.run()
    assert isinstance(talk.state("sender"), ts.Requested)


@pytest.mark.parametrize("form", [RECIPIENT_FIRST, SENDER_FIRST])
@pytest.mark.parametrize("field", ["wrapped", "confirmation"])
def test_a_receipt_comes_without_a_key(default_world: World, form: Form, field: str) -> None:
    talk = default_world.transfer(
        asked(form), decision=tr.AlreadyHave(b"receipt"),
        tap=replacing(TransferGrant, lambda turn: msgspec.structs.replace(turn.message, **{field: b"surplus"})),
    )
    with pytest.raises(PeerViolation, match="unexpected"):
        talk.run()


@pytest.mark.parametrize(
    ("form", "kind", "field", "inner"),
    [
        (SENDER_MADE, DeliverKey, "key", Key), (RECIPIENT_FIRST, DeliverConfirmation, "confirmation", ConfS),
        (SENDER_FIRST, DeliverSessionKey, "confirmation", ConfS),
    ],
)  # fmt: skip
def test_endpoints_of_a_sender_are_refused(
    default_world: World, form: Form, kind: type, field: str, inner: type
) -> None:
    """Of a sender that was not asked to listen: nothing is ignored that it says of where it would."""
    talk = default_world.transfer(
        asked(form),
        tap=replacing(kind, lambda turn: remade(turn.message, field, inner, sealed_endpoints=b"somewhere")),
    )
    with pytest.raises(PeerViolation, match="unexpected"):
        talk.run()


# --- a sender that listens -----------------------------------------------------------------------------------------

YOU_LISTEN: Final = tr.Accept(Endpoints([], 0, 0, 0, "", b""), CHUNK_MIN, 0)


def to_listen(form: Form) -> ts.Terms:
    return dataclasses.replace(asked(form), can_listen=True)


@each_form
def test_a_recipient_that_cannot_be_reached_learns_where_its_sender_listens(default_world: World, form: Form) -> None:
    """In KEY, or in CONFS; nobody else can read it, the coordinator least of all."""
    talk = finished(default_world.transfer(to_listen(form), decision=YOU_LISTEN))
    sender, recipient = talk.sessions
    assert recipient.endpoints == THERE
    assert sender.endpoints is not None
    assert not sender.endpoints.addresses
    assert not any(b"40003" in said or encode(THERE)[1:] in said for _, said in talk.wire)


@each_form
def test_a_sender_that_could_listen_and_need_not_says_nothing_of_where(default_world: World, form: Form) -> None:
    talk = finished(default_world.transfer(to_listen(form)))
    assert [session.endpoints for session in talk.sessions] == [HERE, None]


@pytest.mark.parametrize(
    ("form", "kind", "field", "inner"),
    [
        (SENDER_MADE, DeliverKey, "key", Key), (RECIPIENT_FIRST, DeliverConfirmation, "confirmation", ConfS),
        (SENDER_FIRST, DeliverSessionKey, "confirmation", ConfS),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("sealed", "why"), [(b"", "unexpected"), (b"somewhere", "forged")])
def test_a_sender_that_was_asked_to_listen_says_where(
    default_world: World, form: Form, kind: type, field: str, inner: type, sealed: bytes, why: str
) -> None:
    """And what it says is covered by its signature, or by its confirmation."""
    talk = default_world.transfer(
        to_listen(form), decision=YOU_LISTEN,
        tap=replacing(kind, lambda turn: remade(turn.message, field, inner, sealed_endpoints=sealed)),
    )
    with pytest.raises(PeerViolation, match=why):
        talk.run()


@each_form
@pytest.mark.parametrize(
    "changes", [{"addresses": []}, {"data_port": 0}, {"ack_port": 0}, {"relay": "relay1", "rv": bytes(16)}], ids=str
)
def test_a_sender_that_listens_nowhere_is_refused(
    default_world: World, form: Form, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.talks.THERE", msgspec.structs.replace(THERE, **changes))
    with pytest.raises(PeerViolation, match="malformed"):
        default_world.transfer(to_listen(form), decision=YOU_LISTEN).run()


@each_form
def test_a_sender_that_cannot_listen_is_not_asked_to(
    default_world: World, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No honest recipient does; one that does is found out before any key is made."""
    with pytest.raises(ValueError, match="is not asked to"):
        default_world.transfer(asked(form), decision=YOU_LISTEN).run()
    talk = default_world.transfer(asked(form))
    monkeypatch.setattr(tr, "encode", lambda value: encode(YOU_LISTEN.endpoints if value is HERE else value))
    with pytest.raises(PeerViolation, match="unexpected"):
        talk.run()


@each_form
@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({}, True), ({"relay": "Not A Name\x1b[2J"}, False), ({"rv": b""}, False), ({"rv": b"short"}, False),
        ({"addresses": []}, False),
    ],
)  # fmt: skip
def test_a_relay_has_a_name_a_place_and_a_meeting(
    default_world: World, form: Form, changes: dict[str, object], fine: bool
) -> None:
    """What the sender is told of it is the recipient's word, and is shown to a person."""
    told = msgspec.structs.replace(HERE, relay="relay1", rv=b"r" * 16)
    decision = tr.Accept(msgspec.structs.replace(told, **changes), CHUNK_MIN, 0)
    talk = default_world.transfer(to_listen(form), decision=decision)
    if fine:
        assert finished(talk).sessions[0].endpoints == told
        return
    with pytest.raises(PeerViolation, match="malformed"):
        talk.run()


# --- other versions ------------------------------------------------------------------------------------------------


def upgraded(encoded: bytes) -> bytes:
    """A REQ or RESP of the next version, which has a field more than this one."""
    assert encoded[0] == 0xDC, "an array of 16 fields or more"
    assert encoded[3] == TERMS_VERSION
    fields = int.from_bytes(encoded[1:3], "big") + 1
    return encoded[:1] + fields.to_bytes(2, "big") + bytes((TERMS_VERSION + 1,)) + encoded[4:] + b"\xc4\x05asker"


@pytest.mark.parametrize(
    ("kind", "field"),
    [(TransferRequest, "request"), (Notify, "request"), (TransferGrant, "response")],
)
def test_terms_of_a_later_version_are_no_attack(default_world: World, kind: type, field: str) -> None:
    """At the coordinator and at either end: code 40, though the later version has fields that this one does not."""

    def grown(turn: Turn) -> object:
        return msgspec.structs.replace(turn.message, **{field: upgraded(getattr(turn.message, field))})

    talk = default_world.transfer(asked(SENDER_MADE), tap=replacing(kind, grown))
    with pytest.raises(VersionMismatch, match=f"version {TERMS_VERSION + 1}") as caught:
        talk.run()
    assert (caught.value.code, caught.value.detail) == (40, "version")


@each_form
def test_an_answer_of_a_later_version_fails_at_the_coordinator_with_40(default_world: World, form: Form) -> None:
    talk = default_world.transfer(
        asked(form),
        tap=replacing(
            TransferResponse,
            lambda turn: msgspec.structs.replace(turn.message, response=upgraded(turn.message.response)),
        ),
    )
    talk.run()
    assert talk.failure == tc.FailSender(40, "version")
    assert not talk.messages(TransferGrant, DeliverSessionKey)
    assert not [path for path, secret in all_secrets(talk, "coordinator") if not is_wiped(secret)]


@pytest.mark.parametrize("encoded", [b"", b"\x90", b"\x91\xc0", b"\x01", b"\x91\xa11", b"\xdc\x00"])
def test_terms_without_a_version_are_malformed(encoded: bytes) -> None:
    for read in (read_req, read_resp):
        with pytest.raises(PeerViolation, match="malformed"):
            read(encoded)


# --- who holds which key --------------------------------------------------------------------------------------------


@pytest.mark.claims("C3", "C5")
def test_the_coordinator_never_holds_a_key_that_opens_a_sender_made_transfer(quick_world: World) -> None:
    """Its states hold no secret at all, and with every key that it owns neither half of KEY opens."""
    talk = finished(quick_world.transfer(asked(SENDER_MADE)))
    assert not list(all_secrets(talk, "coordinator"))
    owned = [quick_world.coordinator.general_key]
    clients = (quick_world.alice, quick_world.bob, quick_world.carol, quick_world.backup)
    owned += [client.perm_server for client in clients]
    key = decode(talk.messages(TransferKey)[0].key, Key)
    at = next(s for s in talk.sides["recipient"].states if isinstance(s, tr.Responded)).th.value
    for private in owned:
        for label, ct in (("xfer-perm", key.ct1), ("xfer-eph", key.ct2)):
            with pytest.raises(PeerViolation, match="forged"):
                kem_decapsulate(private, label, at, ct)


@pytest.mark.claims("C5")
@each_form
def test_random_bytes_for_a_key_are_erased_however_the_handshake_ends(default_world: World, form: Form) -> None:
    """Used or not: nothing that could become K stays at the coordinator."""
    for decision in (None, tr.Decline(25, "policy"), tr.AlreadyHave(b"receipt")):
        talk = default_world.transfer(asked(form), decision=decision)
        talk.run()
        assert is_wiped(talk.sides["coordinator"].context.fresh_key)


@each_form
def test_one_time_keys_are_erased_once_the_session_key_is_open(quick_world: World, form: Form) -> None:
    """What is left at the ends is K alone, the same object in every state that names it."""
    talk = finished(quick_world.transfer(asked(form)))
    sender, recipient = talk.sessions
    left = {
        path for path, secret in all_secrets(talk) if not is_wiped(secret) and secret not in (sender.k, recipient.k)
    }
    assert not left


@each_form
def test_a_handshake_that_broke_off_is_erased_at_every_step(default_world: World, form: Form) -> None:
    """`erase` on the three last states leaves no key, wherever the conversation broke off."""
    length = len(finished(default_world.transfer(asked(form))).wire)
    for broken_at in range(length):
        count = iter(range(length))
        talk = default_world.transfer(
            asked(form), tap=lambda turn, count=count, end=broken_at: turn.message if next(count) < end else None
        )
        talk.run()
        for side in talk.sides.values():
            erase(side.state)
        ended = [
            state.session.k for state in (talk.state("sender"), talk.state("recipient")) if hasattr(state, "session")
        ]
        left = [path for path, secret in all_secrets(talk) if not is_wiped(secret) and secret not in ended]
        assert not left, f"broken off before message {broken_at}"


@pytest.mark.attack("H09")
def test_a_thief_of_every_permanent_key_opens_no_recorded_transfer(quick_world: World) -> None:
    """All that was recorded and all that lies on disks of S, R and C: half of the session key opens, K does not."""
    talk = finished(quick_world.transfer(asked(SENDER_MADE)))
    k = talk.sessions[0].k.reveal()
    stolen = [quick_world.coordinator.general_key]
    for client in (quick_world.alice, quick_world.bob):
        stolen += [client.kem_key, client.perm_server]
    responded = next(s for s in talk.sides["recipient"].states if isinstance(s, tr.Responded))
    key = decode(talk.messages(TransferKey)[0].key, Key)
    opened = []
    for private in stolen:
        for label in ("xfer-perm", "xfer-eph"):
            for ct in (key.ct1, key.ct2):
                try:
                    opened.append((label, kem_decapsulate(private, label, responded.th.value, ct)))
                except PeerViolation as violation:
                    assert violation.detail == "forged"
    assert [label for label, _ in opened] == ["xfer-perm"]
    th = responded.th.absorb(talk.messages(TransferKey)[0].key, talk.messages(TransferKey)[0].signature)
    half = opened[0][1]
    for guess in (Secret(bytes(32)), half):
        assert session_key(th, half, guess).reveal() != k
    assert is_wiped(responded.one_time.secret)


@pytest.mark.attack("H09")
@pytest.mark.parametrize("form", [RECIPIENT_FIRST, SENDER_FIRST])
def test_a_thief_of_every_permanent_key_opens_no_recorded_coordinator_made_key(quick_world: World, form: Form) -> None:
    talk = finished(quick_world.transfer(asked(form)))
    stolen = [quick_world.coordinator.general_key]
    for client in (quick_world.alice, quick_world.bob):
        stolen += [client.kem_key, client.perm_server]
    th_c = talk.sessions[0].th
    wrapped = [decode(message.wrapped, WrappedKey) for message in talk.messages(TransferGrant, DeliverSessionKey)]
    opened = 0
    for each in wrapped:
        for end in ("R", "S"):
            for private in stolen:
                with pytest.raises(PeerViolation, match="forged"):
                    kem_decapsulate(private, f"ck-eph-{end}", th_c, each.p2)
                try:
                    kem_decapsulate(private, f"ck-perm-{end}", th_c, each.p1)
                    opened += 1
                except PeerViolation:
                    continue
    assert opened == len(wrapped) == 2
    for state in talk.sides["coordinator"].states:
        assert not [path for path, secret in secrets_in(state) if not is_wiped(secret)]


# --- substitution, replay, confusion --------------------------------------------------------------------------------


@pytest.mark.attack("H02")
@each_form
def test_a_key_substituted_after_pinning_stops_the_transfer(default_world: World, form: Form) -> None:
    """The coordinator certifies another identity as bob: the pin wins, nothing is sent."""
    impostor = _impostor(default_world)
    talk = TransferTalk(
        default_world.alice.sender(default_world.bob.pin), default_world.broker(recipient=impostor),
        impostor.recipient(), asked(form),
    )  # fmt: skip
    with pytest.raises(IdentityError) as caught:
        talk.run()
    assert caught.value.code == 12
    assert not talk.messages(TransferKey, TransferConfirmKey)


@pytest.mark.attack("H02")
def test_a_coordinator_that_swaps_both_answer_and_card_is_caught_by_the_pin(default_world: World) -> None:
    """As it would: bob's true answer replaced by the impostor's own, well signed. bob's end sees nothing."""
    impostor = _impostor(default_world)
    bob = default_world.bob
    pinned = msgspec.structs.replace
    talk = TransferTalk(
        default_world.alice.sender(bob.pin), default_world.broker(), bob.recipient(), asked(SENDER_MADE),
        tap=replacing(
            TransferGrant,
            lambda turn: pinned(turn.message, card=impostor.card.encoded, certificate=impostor.certificate),
        ),
    )  # fmt: skip
    with pytest.raises(IdentityError, match="CHANGED"):
        talk.run()


def _impostor(world: World):  # type: ignore[no-untyped-def]
    """Another identity that the same coordinator certifies as bob."""
    from tests.support.parties import identity_of
    from zkc.crypto.cards import certify, make_card, verify_card

    identity, kem_key = identity_of("impostor"), world.suite.generate()
    encoded = make_card(
        name="bob", kind="computer", uid=world.bob.uid, identity=identity, kem_key=kem_key.public, epoch=1,
        not_after=world.bob.card.body.not_after,
    )  # fmt: skip
    card = verify_card(encoded, world.suite)
    certificate = certify(world.coordinator.identity, "bob", world.bob.uid, card.hash, 1)
    return dataclasses.replace(world.bob, identity=identity, kem_key=kem_key, card=card, certificate=certificate)


@pytest.mark.attack("P08")
@each_form
@pytest.mark.parametrize("pinned", [False, True])
def test_the_card_of_another_pinned_peer_is_not_taken_for_the_name_asked(
    default_world: World, form: Form, pinned: bool
) -> None:
    """The coordinator answers a request for bob with carol, whom alice knows."""
    carol = default_world.carol
    known = msgspec.structs.replace(carol.pin, names=("carol",)) if pinned else ts.Known()
    as_bob = dataclasses.replace(
        carol.recipient(),
        card=msgspec.structs.replace(carol.card, body=msgspec.structs.replace(carol.card.body, name="bob")),
    )
    talk = TransferTalk(default_world.alice.sender(known), default_world.broker(recipient=carol), as_bob, asked(form))
    with pytest.raises(IdentityError) as caught:
        talk.run()
    assert caught.value.code == 12
    assert not talk.messages(TransferKey, TransferConfirmKey)


@pytest.mark.attack("H03", "H08")
@each_form
@pytest.mark.parametrize(
    "changes",
    [
        {"recipient_one_time_key": None}, {"max_bytes": 2**40}, {"chunk": CHUNK_MIN + 1}, {"live": True},
        {"presence": "authorised"}, {"presence_age": 9}, {"card_hash": bytes(32)}, {"sealed_endpoints": b""},
        {"sender_one_time_key": None}, {"verdict": "have"},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_an_answer_changed_on_its_way_is_refused(
    default_world: World, form: Form, changes: dict[str, object]
) -> None:
    """One-time key, limits, chunk size, level, verdict: by whoever carries it, the coordinator included.

    At the signature, if not before at what it contradicts.
    """
    detail = "identity" if "card_hash" in changes else "forged"
    stolen = default_world.suite.generate_one_time().public.encode()
    changes = {name: stolen if value is None else value for name, value in changes.items()}

    def change(turn: Turn) -> object:
        return remade(turn.message, "response", Resp, **changes)

    talk = default_world.transfer(asked(form), tap=replacing(TransferGrant, change))
    with pytest.raises(PeerViolation) as caught:
        talk.run()
    assert caught.value.detail == detail
    assert isinstance(talk.state("sender"), ts.Requested)


@pytest.mark.attack("H08")
@each_form
@pytest.mark.parametrize(
    "changes",
    [
        {"key_source": "other"}, {"key_order": "other"}, {"cipher": "3des"}, {"compression": "zstd"},
        {"presence": "present"}, {"wait": 3600},
        {"size_class": 0}, {"can_listen": True}, {"fresh": True}, {"tid": bytes(16)}, {"recipient": "carol"},
        {"pin": bytes(32)}, {"card_hash": bytes(32)},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_request_changed_on_its_way_is_refused(
    default_world: World, form: Form, changes: dict[str, object]
) -> None:
    """At the signature, if not before at what it contradicts."""
    details = {"recipient": "identity", "card_hash": "identity", "key_source": "malformed"}
    detail = details.get(next(iter(changes)), "forged")
    other = {"key_source": {"sender": "coordinator", "coordinator": "sender"}[form[0]],
             "key_order": {"sender-first": "recipient-first", "recipient-first": "sender-first"}[form[1]]}  # fmt: skip
    changes = {name: other.get(name, value) for name, value in changes.items()}

    def change(turn: Turn) -> object:
        return remade(turn.message, "request", Req, **changes)

    talk = default_world.transfer(asked(form), tap=replacing(Notify, change))
    with pytest.raises(PeerViolation) as caught:
        talk.run()
    assert caught.value.detail == detail
    assert isinstance(talk.state("recipient"), tr.Idle)


@pytest.mark.attack("P09")
@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"asked_by": "dave"}, "forged"), ({"asker": bytes(32)}, "forged"), ({"ask": bytes(32)}, "forged"),
        ({"asker": b"", "asked_by": "", "ask": b""}, "forged"), ({"asked_by": ""}, "malformed"),
        ({"asker": b""}, "malformed"), ({"ask": b""}, "malformed"), ({"asked_by": "Carol\x1b[2J"}, "malformed"),
    ],
)
def test_who_asked_is_the_senders_word_and_no_coordinators(
    default_world: World, changes: dict[str, object], detail: str
) -> None:
    """The recipient knows by whose request it comes; nobody in between puts another there, or none."""
    wanted = dataclasses.replace(asked(SENDER_MADE), asker=b"q" * 32, asked_by="carol", ask=b"a" * 32)
    honest = finished(default_world.transfer(wanted))
    req = honest.state("recipient").session.req
    assert (req.asker, req.asked_by, req.ask) == (b"q" * 32, "carol", b"a" * 32)
    talk = default_world.transfer(
        wanted, tap=replacing(Notify, lambda turn: remade(turn.message, "request", Req, **changes))
    )
    with pytest.raises(PeerViolation) as caught:
        talk.run()
    assert (caught.value.detail, type(talk.state("recipient"))) == (detail, tr.Idle)


@each_form
def test_what_costs_nothing_is_looked_at_before_any_signature(
    default_world: World, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom a request or an answer is for, and what it answers, stands in clear: no verification is spent on others'."""
    talk = finished(default_world.transfer(asked(form)))
    (notify,), (grant,) = talk.messages(Notify), talk.messages(TransferGrant)
    requested = next(state for state in talk.sides["sender"].states if isinstance(state, ts.Requested))
    spent: list[object] = []
    for method in ("verify", "verify_durable"):
        monkeypatch.setattr(IdentityPublic, method, lambda *seen: spent.append(seen))
    source = {"sender": "coordinator", "coordinator": "sender"}[form[0]]
    for changes in ({"recipient": "carol"}, {"key_source": source}):
        with pytest.raises(PeerViolation):
            step(tr.TABLE, default_world.bob.recipient(), tr.Idle(), remade(notify, "request", Req, **changes))
    for changes in ({"xid": bytes(16)}, {"key_source": source}):
        with pytest.raises(PeerViolation):
            step(ts.TABLE, default_world.alice.sender(), requested, remade(grant, "response", Resp, **changes))
    assert not spent


@pytest.mark.attack("H08")
@pytest.mark.parametrize(("source", "offered"), [("sender", DeliverSessionKey), ("coordinator", DeliverKey)])
def test_a_key_of_the_source_that_was_not_agreed_is_refused(
    default_world: World, source: KeySource, offered: type
) -> None:
    """A coordinator cannot make the key of a transfer whose ends agreed that the sender does, nor the other way."""
    forms = {
        "sender": (SENDER_MADE, DeliverKey, RECIPIENT_FIRST),
        "coordinator": (RECIPIENT_FIRST, DeliverSessionKey, SENDER_MADE),
    }
    form, kind, other_form = forms[source]
    (stolen,) = finished(default_world.transfer(asked(other_form))).messages(offered)
    talk = default_world.transfer(asked(form), tap=replacing(kind, lambda _: stolen))
    with pytest.raises(PeerViolation, match="unexpected"):
        talk.run()
    assert isinstance(talk.state("recipient"), tr.Responded)


@pytest.mark.attack("H04")
@each_form
def test_the_answers_of_two_parallel_transfers_cannot_be_swapped(default_world: World, form: Form) -> None:
    """Same ends, same terms, another xid."""
    (other,) = finished(default_world.transfer(asked(form, 2))).messages(TransferGrant)
    talk = default_world.transfer(asked(form, 1), tap=replacing(TransferGrant, lambda _: other))
    with pytest.raises(PeerViolation) as caught:
        talk.run()
    assert caught.value.detail in {"forged", "identity"}
    assert isinstance(talk.state("sender"), ts.Requested)


@pytest.mark.attack("H04")
@each_form
def test_the_answer_of_another_recipient_is_refused(default_world: World, form: Form) -> None:
    carol = default_world.carol
    talk = TransferTalk(
        default_world.alice.sender(), default_world.broker(recipient=carol), carol.recipient(),
        asked(form, recipient="carol"),
    )  # fmt: skip
    (other,) = finished(talk).messages(TransferGrant)
    talk = default_world.transfer(asked(form), tap=replacing(TransferGrant, lambda _: other))
    # Where the coordinator makes the key, the answer names the one-time key that the sender has asked under.
    with pytest.raises((IdentityError, PeerViolation)) as caught:
        talk.run()
    assert caught.value.detail == ("name" if form == SENDER_MADE else "forged")
    assert isinstance(talk.state("sender"), ts.Requested)


@pytest.mark.attack("H05")
def test_a_key_of_another_transfer_is_refused(default_world: World) -> None:
    """As it came, and with this transfer's xid written into it."""
    (other,) = finished(default_world.transfer(asked(SENDER_MADE, 2))).messages(DeliverKey)
    this = asked(SENDER_MADE, 1)
    for offered, detail in (
        (other, "identity"), (remade(other, "key", Key, xid=this.xid), "forged"),
    ):  # fmt: skip
        talk = default_world.transfer(this, tap=replacing(DeliverKey, lambda _, offered=offered: offered))
        with pytest.raises(PeerViolation) as caught:
            talk.run()
        assert caught.value.detail == detail
        assert isinstance(talk.state("recipient"), tr.Responded)


@pytest.mark.attack("H05")
def test_a_key_for_another_recipient_is_refused(default_world: World) -> None:
    """KEY of alice to bob, brought to carol who has answered alice under the same xid."""
    (for_bob,) = finished(default_world.transfer(asked(SENDER_MADE))).messages(DeliverKey)
    carol = default_world.carol
    talk = TransferTalk(
        default_world.alice.sender(), default_world.broker(recipient=carol), carol.recipient(),
        asked(SENDER_MADE, recipient="carol"), tap=replacing(DeliverKey, lambda _: for_bob),
    )  # fmt: skip
    with pytest.raises(PeerViolation, match="forged"):
        talk.run()


@pytest.mark.attack("H05")
@pytest.mark.parametrize("form", [RECIPIENT_FIRST, SENDER_FIRST])
def test_a_coordinator_made_key_of_another_transfer_or_end_is_refused(default_world: World, form: Form) -> None:
    other = finished(default_world.transfer(asked(form, 2)))
    this = asked(form, 1)
    (for_sender,), (for_recipient,) = other.messages(TransferGrant), other.messages(DeliverSessionKey)
    for kind, wrong in (
        (DeliverSessionKey, for_recipient.wrapped), (DeliverSessionKey, for_sender.wrapped),
        (TransferGrant, for_sender.wrapped), (TransferGrant, for_recipient.wrapped),
    ):  # fmt: skip
        renamed = encode(msgspec.structs.replace(decode(wrong, WrappedKey), xid=this.xid))
        for offered in (wrong, renamed):
            talk = default_world.transfer(
                this,
                tap=replacing(
                    kind, lambda turn, offered=offered: msgspec.structs.replace(turn.message, wrapped=offered)
                ),
            )
            with pytest.raises(PeerViolation):
                talk.run()
            assert talk.agreed == (False, False)


@pytest.mark.attack("H06")
@each_form
def test_what_was_recorded_is_refused_when_it_comes_again(default_world: World, form: Form) -> None:
    """Every message of a finished handshake, again, to the side that took it: no state takes it twice."""
    talk = finished(default_world.transfer(asked(form)))
    before = {name: snapshot(side.state) for name, side in talk.sides.items()}
    for (to, _), message in zip(talk.wire, talk.messages(object), strict=True):
        with pytest.raises(PeerViolation, match="unexpected"):
            talk.feed(to, message)
    assert {name: snapshot(side.state) for name, side in talk.sides.items()} == before


@pytest.mark.attack("H06")
@each_form
def test_a_recording_played_to_a_recipient_that_has_forgotten_gives_no_transfer(
    default_world: World, form: Form
) -> None:
    """REQ replayed after a restart gets a new one-time key; the recorded KEY, KEYR and CONFS fit no other."""
    recorded = finished(default_world.transfer(asked(form)))
    bob = default_world.bob.recipient()
    (notify,) = recorded.messages(Notify)
    state = step(tr.TABLE, bob, tr.Idle(), notify).state
    state = step(tr.TABLE, bob, state, tr.Accept(HERE, CHUNK_MIN, 0)).state
    before = snapshot(state)
    for message in recorded.messages(DeliverKey, DeliverSessionKey, DeliverConfirmation):
        with pytest.raises(PeerViolation):
            step(tr.TABLE, bob, state, message)
    assert snapshot(state) == before


@pytest.mark.attack("H07")
@each_form
def test_a_forged_confirmation_lets_no_data_flow(default_world: World, form: Form) -> None:
    """By whoever does not hold K: random, of another transfer, under another label, of the other end."""
    other = finished(default_world.transfer(asked(form, 2)))
    k, th, xid = other.sessions[0].k, other.sessions[0].th, asked(form, 1).xid
    forged = [
        bytes(32),
        mac(expand(k, "conf", 32), th),
        mac(expand(k, "confR", 32), th),
        mac(expand(k, "confS", 32), th),
    ]
    for tag in forged:
        confirmation = encode(Conf(xid, tag))
        talk = default_world.transfer(
            asked(form, 1),
            tap=lambda turn, confirmation=confirmation: (
                TransferConfirm(confirmation) if isinstance(turn.message, TransferConfirm) else turn.message
            ),
        )
        with pytest.raises(PeerViolation, match="forged"):
            talk.run()
        assert not talk.agreed[0]


@pytest.mark.attack("H07")
@pytest.mark.parametrize("form", [RECIPIENT_FIRST, SENDER_FIRST])
def test_a_forged_confirmation_of_the_sender_is_refused_by_the_recipient(default_world: World, form: Form) -> None:
    confirmation = encode(ConfS(asked(form).xid, b"", bytes(32)))
    other = encode(ConfS(asked(form, 2).xid, b"", bytes(32)))
    for offered, detail in ((confirmation, "forged"), (other, "identity")):
        talk = default_world.transfer(
            asked(form), tap=replacing(TransferConfirmKey, lambda _, offered=offered: TransferConfirmKey(offered))
        )
        with pytest.raises(PeerViolation) as caught:
            talk.run()
        assert caught.value.detail == detail
        assert talk.agreed == (False, False)


@pytest.mark.claims("B3", 5)
@pytest.mark.attack("H07")
def test_the_confirmation_of_the_recipient_is_checked_before_anything_goes_to_the_sender(default_world: World) -> None:
    """Coordinator-made, recipient first: G2 forged, and no KEYS leaves."""
    talk = default_world.transfer(
        asked(RECIPIENT_FIRST),
        tap=replacing(TransferConfirm, lambda turn: remade(turn.message, "confirmation", Conf, mac=bytes(32))),
    )
    with pytest.raises(PeerViolation, match="forged"):
        talk.run()
    assert not talk.messages(TransferGrant)
    assert isinstance(talk.state("coordinator"), tc.KeyWithRecipient)


def test_a_confirmation_before_its_time_is_refused(default_world: World) -> None:
    """Recipient first: CONFS inside KEYR."""
    talk = default_world.transfer(
        asked(RECIPIENT_FIRST),
        tap=replacing(DeliverSessionKey, lambda turn: msgspec.structs.replace(turn.message, confirmation=b"early")),
    )
    with pytest.raises(PeerViolation, match="unexpected"):
        talk.run()


@pytest.mark.attack("H10")
def test_a_signature_of_one_message_does_not_stand_under_another(default_world: World) -> None:
    """The same key over the same transcript under each other label."""
    labels = ("xfer-req", "xfer-resp", "xfer-key", "reg-client", "card", "cert", "receipt")
    alice, bob = default_world.alice, default_world.bob

    def relabelled(label: str, kind: type, who) -> Callable[[Turn], object]:  # type: ignore[no-untyped-def]
        def change(turn: Turn) -> object:
            state, message = turn.state, turn.message
            first = {Notify: "request", TransferGrant: "response", DeliverKey: "key"}[kind]
            start = state.th if hasattr(state, "th") else ts.Transcript.start("xfer", default_world.suite.name)
            th = start.absorb(getattr(message, first))
            return msgspec.structs.replace(message, signature=who.identity.sign(label, th.value))

        return replacing(kind, change)

    for kind, right, who in (
        (Notify, "xfer-req", alice),
        (TransferGrant, "xfer-resp", bob),
        (DeliverKey, "xfer-key", alice),
    ):
        for label in labels:
            talk = default_world.transfer(asked(SENDER_MADE), tap=relabelled(label, kind, who))
            if label == right:
                finished(talk)
                continue
            with pytest.raises(PeerViolation, match="forged"):
                talk.run()


@pytest.mark.attack("H10")
def test_the_halves_of_a_key_are_not_exchangeable(default_world: World) -> None:
    """ct1 in the place of ct2 with a valid signature: the labels differ."""

    def change(turn: Turn) -> object:
        key = decode(turn.message.key, Key)
        swapped = encode(Key(key.xid, key.ct2, key.ct1, b""))
        signature = default_world.alice.identity.sign("xfer-key", turn.state.th.absorb(swapped).value)
        return DeliverKey(swapped, signature)

    talk = default_world.transfer(asked(SENDER_MADE), tap=replacing(DeliverKey, change))
    with pytest.raises(PeerViolation, match="forged"):
        talk.run()


def test_a_request_for_somebody_else_is_refused_by_the_recipient(default_world: World) -> None:
    """A true REQ of alice to carol, brought to bob."""
    first = ts.create_request(default_world.alice.sender(), asked(SENDER_MADE, recipient="carol"))
    message, alice = first.effects[0].message, default_world.alice
    notify = Notify(message.request, message.signature, alice.card.encoded, alice.certificate, "online")
    with pytest.raises(PeerViolation, match="identity"):
        step(tr.TABLE, default_world.bob.recipient(), tr.Idle(), notify)


def test_a_sender_that_pinned_another_key_of_the_recipient_is_told_so(default_world: World) -> None:
    talk = TransferTalk(
        default_world.alice.sender(default_world.carol.pin), default_world.broker(), default_world.bob.recipient(),
        asked(SENDER_MADE),
    )  # fmt: skip
    with pytest.raises(IdentityError):
        talk.run()
    assert isinstance(talk.state("recipient"), tr.Idle)


@pytest.mark.attack("H02")
def test_a_sender_whose_key_is_not_the_pinned_one_is_refused(default_world: World) -> None:
    talk = TransferTalk(
        default_world.alice.sender(), default_world.broker(),
        default_world.bob.recipient(msgspec.structs.replace(default_world.alice.pin, fingerprint=bytes(32))),
        asked(SENDER_MADE),
    )  # fmt: skip
    with pytest.raises(IdentityError, match="CHANGED"):
        talk.run()
    assert isinstance(talk.state("recipient"), tr.Idle)


# --- verify into locals, commit last --------------------------------------------------------------------------------


def test_a_grant_that_fails_at_its_last_check_leaves_the_senders_state_whole(default_world: World) -> None:
    """G3 with a damaged CONFR: refused, and the true G3 still counts."""
    whole: list[object] = []

    def tap(turn: Turn) -> object:
        if isinstance(turn.message, TransferGrant):
            before = snapshot(turn.state)
            bad = remade(turn.message, "confirmation", Conf, mac=bytes(32))
            with pytest.raises(PeerViolation, match="forged"):
                step(turn.table, turn.context, turn.state, bad)
            whole.append(snapshot(turn.state) == before)
        return turn.message

    finished(default_world.transfer(asked(RECIPIENT_FIRST), tap=tap))
    assert whole == [True]
