"""Whole handshakes: every message as it was sent, every private key, and what both ends derive from them at each step.

`registration_values`, `channel_values` and `transfer_values` compute all of it from messages and keys with the
primitives alone, not with the machines: as a second implementation would, in the order of ``docs/protocol.md``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tests.support.parties import coordinator_of, newcomer, world
from tests.support.talks import RegistrationTalk, Turn, greeted, hello_info, only, terms
from zkc.constants import TERMS_VERSION
from zkc.crypto.invitations import format_invitation, invitation_psk, parse_invitation
from zkc.crypto.primitives import ZERO_NONCE, Secret, aead_open, check_mac, digest, expand, extract, mac
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, kem_decapsulate, open_sealed, read_private
from zkc.crypto.transcript import Transcript
from zkc.protocol import channel as ch
from zkc.wire.codec import decode, encode
from zkc.wire.frames import split_record
from zkc.wire.messages import (
    AnswerBody,
    ChannelMessage,
    Conf,
    ConfS,
    DeliverSessionKey,
    Key,
    RegMessage,
    RegNameInClear,
    RegPermServer,
    Req,
    RequestBody,
    Resp,
    SealedPermClient,
    TransferGrant,
    WrappedKey,
)

Vector = dict[str, Any]
SUITES: Final = ("hybrid", "x25519")


# --- registration ---------------------------------------------------------------------------------------------------


def registrations() -> list[Vector]:
    """R0 to R6 with every private key: transcript, secrets, MAC keys at each step, SHA-256 of what each seal holds."""
    return [
        _registration("hybrid", False, "permanent"), _registration("x25519", True, "temporary"),
        _registration("x25519", False, "permanent", "clear"),
    ]


def _registration(suite_name: str, apart: bool, sealed_to: str, identifier: str = "sealed") -> Vector:
    coordinator = coordinator_of(suite_name)
    invitation = coordinator.invite("dave")
    new = newcomer(invitation, coordinator.suite, request_apart=apart, seal_to=sealed_to, identifier=identifier)
    held: dict[str, str] = {}

    def tap(turn: Turn) -> object:
        if isinstance(turn.message, RegPermServer):
            held["temp_client"] = turn.state.temp_client.encode().hex()
        if hasattr(turn.state, "temp_server") and isinstance(turn.state.temp_server, KemPrivateKey):
            held["temp_server"] = turn.state.temp_server.encode().hex()
        return turn.message

    talk = RegistrationTalk(new, coordinator.registrar(invitation), coordinator.register(invitation), tap)
    talk.run()
    reserved = talk.register.reserved
    if reserved is None:
        raise ValueError("the registration did not come to R4")
    vector: Vector = {
        "suite": suite_name, "sealed_to": sealed_to, "request_apart": apart,
        "invitation": format_invitation(invitation),
        "private": {
            "coordinator_seed": coordinator.identity.secret.reveal().hex(),
            "general": coordinator.general_key.encode().hex(), "client_seed": new.identity.secret.reveal().hex(),
            "perm_client": new.kem_key.encode().hex(), "perm_server": reserved.encode().hex(), **held,
        },
        "messages": [{"to": to, "message": message.hex()} for to, message in talk.wire],
    }  # fmt: skip
    return vector | {"values": registration_values(vector)}


def registration_values(vector: Vector) -> dict[str, str]:
    """Everything that follows from a recorded registration; every MAC and signature in it is checked."""
    private = {name: bytes.fromhex(value) for name, value in vector["private"].items()}
    keys = {name: read_private(value) for name, value in private.items() if not name.endswith("seed")}
    coordinator, client = (IdentityKey.from_seed(private[f"{who}_seed"]).public for who in ("coordinator", "client"))
    said: list[Any] = [decode(bytes.fromhex(each["message"]), RegMessage) for each in vector["messages"]]
    r0, r0c, r1, r2, r3, *apart, r4, r5, r6 = said
    register = apart[0].register if apart else r3.register
    psk = invitation_psk(parse_invitation(vector["invitation"]).secret)
    out: dict[str, str] = {"psk": psk.reveal().hex()}

    th = Transcript.start("reg", vector["suite"]).absorb(r0.invite_id, r0c.card, r0c.signature)
    out["th R0c"] = th.value.hex()
    th = th.absorb(r1.invite_id)
    if isinstance(r1, RegNameInClear):
        out["R1 holds"], th = digest(r1.name).hex(), th.absorb(r1.name)
    else:
        out["R1 holds"] = digest(open_sealed(keys["general"], "reg-name", th.value, r1.sealed_name)).hex()
        th = th.absorb(r1.sealed_name)
    _mac(out, "reg mac", expand(psk, "reg mac", 32), th, r1.mac)
    th = th.absorb(r1.mac)
    out["th R1"] = th.value.hex()
    th = th.absorb(r2.temp_server_key)
    coordinator.verify("reg-server", th.value, r2.signature)
    th = th.absorb(r2.signature)
    out["th R2"] = th.value.hex()
    opened = open_sealed(keys["temp_server"], "reg-tck", th.value, r3.sealed_temp_client_key)
    out["R3 holds"] = digest(opened).hex()
    th = th.absorb(r3.sealed_temp_client_key)
    ss1 = kem_decapsulate(keys["temp_server"], "reg1", th.value, r3.ct1)
    th = th.absorb(r3.ct1)
    prk = extract(th.value, ss1, psk)
    out |= {"ss1": ss1.reveal().hex(), "prk R3": prk.reveal().hex()}
    _mac(out, "reg k3", expand(prk, "reg k3", 32), th, r3.mac)
    th = th.absorb(r3.mac)
    _mac(out, "reg k3b", expand(prk, "reg k3b", 32), th, register)
    th = th.absorb(register)
    out["th R3b"] = th.value.hex()
    ss2 = kem_decapsulate(keys["temp_client"], "reg2", th.value, r4.ct2)
    th = th.absorb(r4.ct2)
    prk = extract(th.value, ss1, ss2, psk)
    out |= {"ss2": ss2.reveal().hex(), "prk R4": prk.reveal().hex()}
    opened = open_sealed(keys["temp_client"], "reg-perm-server", th.value, r4.sealed_perm_server_key)
    out["R4 holds"] = digest(opened).hex()
    th = th.absorb(r4.sealed_perm_server_key)
    _mac(out, "reg k4", expand(prk, "reg k4", 32), th, r4.mac)
    th = th.absorb(r4.mac, r5.sealed_to.encode())
    opener = keys["perm_server" if r5.sealed_to == "permanent" else "temp_server"]
    out["th R5 before the seal"] = th.value.hex()
    opened = open_sealed(opener, "reg-perm-client", th.value, r5.sealed_card)
    out["R5 holds"] = digest(opened).hex()
    offer: SealedPermClient = decode(opened, SealedPermClient)
    client.verify("reg-client", th.absorb(offer.card, offer.curve_key).value, offer.signature)
    th = th.absorb(r5.sealed_card)
    _mac(out, "reg k5", expand(prk, "reg k5", 32), th, r5.mac)
    th = th.absorb(r5.mac)
    out["th R5"] = th.value.hex()
    out["R6 holds"] = digest(open_sealed(keys["perm_client"], "reg-done", th.value, r6.sealed_done)).hex()
    _mac(out, "reg k6", expand(prk, "reg k6", 32), th.absorb(r6.sealed_done), r6.mac)
    return out


def _mac(out: dict[str, str], name: str, key: bytes, th: Transcript, tag: bytes) -> None:
    out[name] = key.hex()
    check_mac(mac(key, th.value), tag)


# --- channel --------------------------------------------------------------------------------------------------------


def channels() -> list[Vector]:
    """C1, S1 and the first two records each way, with every private key."""
    return [*(_channel(suite) for suite in SUITES), _channel("hybrid", sealed=True)]


def _channel(suite_name: str, *, sealed: bool = False) -> Vector:
    """``sealed``: the uid goes under the general key."""
    everyone = world(suite_name)
    alice, general = everyone.alice, everyone.coordinator.general_key
    keys = replace(alice.client_keys, general=general.public) if sealed else alice.client_keys
    sent = ch.create_hello(keys, hello_info(instance=b"i" * 16), 0.0)
    ephemeral = sent.state.ephemeral.encode()
    answered = greeted(alice.peer_keys, only(sent), general=general)
    client = ch.consume_answer(keys, sent.state, only(answered)).state.channel
    coordinator = answered.state.channel
    vector: Vector = {
        "suite": suite_name,
        "private": {
            "perm_server": alice.perm_server.encode().hex(), "perm_client": alice.kem_key.encode().hex(),
            "ephemeral": ephemeral.hex(), **({"general": general.encode().hex()} if sealed else {}),
        },
        "messages": [encode(only(sent)).hex(), encode(only(answered)).hex()],
        "up": [client.seal(b"up %d" % i).hex() for i in range(2)],
        "down": [coordinator.seal(b"down %d" % i).hex() for i in range(2)],
    }  # fmt: skip
    return vector | {"values": channel_values(vector)}


def channel_values(vector: Vector) -> dict[str, Any]:
    """Everything that follows from a recorded channel; the records are opened by hand."""
    keys = {name: read_private(bytes.fromhex(value)) for name, value in vector["private"].items()}
    c1, s1 = (decode(bytes.fromhex(each), ChannelMessage) for each in vector["messages"])
    th = Transcript.start("chan", vector["suite"])
    named = {"uid": open_sealed(keys["general"], "chan-uid", th.value, c1.uid).hex()} if "general" in keys else {}
    th = th.absorb(c1.uid)
    ss_s = kem_decapsulate(keys["perm_server"], "chan-s", th.value, c1.ct_s)
    th = th.absorb(c1.ct_s)
    k1 = expand(extract(th.value, ss_s), "chan c1", 32)
    th = th.absorb(c1.ephemeral_key)
    out: dict[str, Any] = named | {"ss_s": ss_s.reveal().hex(), "chan c1": k1.hex()}
    out["th C1 before the seal"] = th.value.hex()
    out["C1 sealed"] = aead_open(k1, ZERO_NONCE, c1.sealed, th.value).hex()
    th = th.absorb(c1.sealed)
    ss_e = kem_decapsulate(keys["ephemeral"], "chan-e", th.value, s1.ct_e)
    th = th.absorb(s1.ct_e)
    ss_c = kem_decapsulate(keys["perm_client"], "chan-c", th.value, s1.ct_c)
    th = th.absorb(s1.ct_c)
    prk = extract(th.value, ss_s, ss_e, ss_c)
    k2 = expand(prk, "chan s1", 32)
    out |= {
        "ss_e": ss_e.reveal().hex(), "ss_c": ss_c.reveal().hex(), "prk": prk.reveal().hex(), "chan s1": k2.hex(),
        "th S1 before the seal": th.value.hex(), "S1 sealed": aead_open(k2, ZERO_NONCE, s1.sealed, th.value).hex(),
        "chan id": expand(prk, "chan id", 32).hex(),
    }  # fmt: skip
    for way in ("up", "down"):
        key, iv = expand(prk, f"chan {way} key", 32), expand(prk, f"chan {way} iv", 12)
        out |= {f"chan {way} key": key.hex(), f"chan {way} iv": iv.hex(), way: []}
        for record in vector[way]:
            header, _, counter, ciphertext = split_record(bytes.fromhex(record))
            nonce = (int.from_bytes(iv, "big") ^ counter).to_bytes(12, "big")
            aad = bytes.fromhex(out["chan id"]) + way.encode() + header
            out[way].append(aead_open(key, nonce, ciphertext, aad).hex())
    return out


# --- transfer -------------------------------------------------------------------------------------------------------


def transfers() -> list[Vector]:
    """X1 to X6, and G1 to G4 in both orders, with every private key: up to K and the confirmations."""
    forms = (
        ("hybrid", "sender", "recipient-first"), ("x25519", "sender", "recipient-first"),
        ("hybrid", "coordinator", "recipient-first"), ("x25519", "coordinator", "sender-first"),
    )  # fmt: skip
    return [_transfer(*form) for form in forms]


def _transfer(suite_name: str, source: Any, order: Any) -> Vector:
    everyone = world(suite_name)
    held: dict[str, str] = {}

    def tap(turn: Turn) -> object:
        one_time = getattr(turn.state, "one_time", None)
        if one_time is not None:
            held[f"{turn.to}_one_time"] = one_time.encode().hex()
        return turn.message

    talk = everyone.transfer(terms("bob", key_source=source, key_order=order), tap)
    made = talk.sides["coordinator"].context.fresh_key.reveal() if source == "coordinator" else b""
    talk.run()
    vector: Vector = {
        "suite": suite_name, "key_source": source, "key_order": order,
        "private": {
            "sender_seed": everyone.alice.identity.secret.reveal().hex(),
            "recipient_seed": everyone.bob.identity.secret.reveal().hex(),
            "sender_permanent": everyone.alice.kem_key.encode().hex(),
            "recipient_permanent": everyone.bob.kem_key.encode().hex(), **held,
        },
        "coordinator_made": made.hex(),
        "messages": [{"to": to, "message": message.hex()} for to, message in talk.wire],
    }  # fmt: skip
    values = transfer_values(vector)
    if values["K"] != talk.sessions[0].k.reveal().hex():
        raise ValueError("the machines agreed on another key")
    return vector | {"values": values}


def transfer_values(vector: Vector) -> dict[str, str]:
    """Everything that follows from a recorded transfer handshake; every signature and MAC in it is checked."""
    private = {name: bytes.fromhex(value) for name, value in vector["private"].items()}
    keys = {name: read_private(value) for name, value in private.items() if not name.endswith("seed")}
    sender, recipient = (IdentityKey.from_seed(private[f"{who}_seed"]).public for who in ("sender", "recipient"))
    said: list[Any] = [decode(bytes.fromhex(each["message"]), RequestBody | AnswerBody) for each in vector["messages"]]
    x1, _, x3, *later = said
    th = Transcript.start("xfer", vector["suite"]).absorb(x1.request)
    sender.verify("xfer-req", th.value, x1.signature)
    th = th.absorb(x1.signature)
    req, resp = decode(x1.request, Req), decode(x3.response, Resp)
    out = {"th X1": th.value.hex()}
    out["endpoints"] = open_sealed(keys["sender_permanent"], "xfer-ep", th.value, resp.sealed_endpoints).hex()
    th = th.absorb(x3.response)
    recipient.verify("xfer-resp", th.value, x3.signature)
    th = th.absorb(x3.signature)
    out["th X3"] = th.value.hex()
    if vector["key_source"] == "sender":
        _, x5, _, x6, _ = later
        key = decode(x5.key, Key)
        ss1 = kem_decapsulate(keys["recipient_permanent"], "xfer-perm", th.value, key.ct1)
        ss2 = kem_decapsulate(keys["recipient_one_time"], "xfer-eph", th.value, key.ct2)
        th = th.absorb(x5.key)
        sender.verify("xfer-key", th.value, x5.signature)
        th = th.absorb(x5.signature)
        k = extract(th.value, ss1, ss2)
        out |= {"ss1": ss1.reveal().hex(), "ss2": ss2.reveal().hex(), "th": th.value.hex()}
        _confirmation(out, "conf", k, decode(x6.confirmation, Conf).mac, th.value)
    else:
        (to_sender,) = (each for each in later if isinstance(each, TransferGrant))
        (to_recipient,) = (each for each in later if isinstance(each, DeliverSessionKey))
        for end, who, wrapped in (("S", "sender", to_sender.wrapped), ("R", "recipient", to_recipient.wrapped)):
            unwrapped = unwrap(out, end, decode(wrapped, WrappedKey), th.value, keys, who)
            if unwrapped.hex() != vector["coordinator_made"]:
                raise ValueError("another key was wrapped")
        k = extract(th.value, Secret(bytes.fromhex(vector["coordinator_made"])))
        out["th"] = th.value.hex()
        first = vector["key_order"] == "recipient-first"
        conf_r = to_sender.confirmation if first else later[-1].confirmation
        conf_s = decode(later[3].confirmation if first else later[1].confirmation, ConfS)
        _confirmation(out, "confR", k, decode(conf_r, Conf).mac, th.value)
        _confirmation(out, "confS", k, conf_s.mac, th.value, conf_s.sealed_endpoints)
    if (req.version, resp.version) != (TERMS_VERSION, TERMS_VERSION):
        raise ValueError("another version")
    if req.xid != resp.xid:
        raise ValueError("another transfer")
    return out | {"K": k.reveal().hex()}


def _confirmation(out: dict[str, str], name: str, k: Secret, tag: bytes, *covered: bytes) -> None:
    key = expand(k, name, 32)
    out[name] = key.hex()
    check_mac(mac(key, *covered), tag)


def unwrap(
    out: dict[str, str], end: str, wrapped: WrappedKey, th_c: bytes, keys: dict[str, KemPrivateKey], who: str
) -> bytes:
    """What a WrappedKey holds."""
    ss1 = kem_decapsulate(keys[f"{who}_permanent"], f"ck-perm-{end}", th_c, wrapped.p1)
    ss2 = kem_decapsulate(keys[f"{who}_one_time"], f"ck-eph-{end}", th_c, wrapped.p2)
    key = expand(extract(th_c, ss1, ss2), f"ck {end}", 32)
    out |= {f"ss1 {end}": ss1.reveal().hex(), f"ss2 {end}": ss2.reveal().hex(), f"ck {end}": key.hex()}
    return aead_open(key, ZERO_NONCE, wrapped.w, th_c + wrapped.p1 + wrapped.p2)
