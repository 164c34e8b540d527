"""What the seed document (WO 01/69843 A2) asks for: one row for each flow, alternative and component.

``docs/claims.md`` shows for each row, and for each of the document's claims, the tests that prove it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLAIMS: Final = range(1, 111)
"""The document's claims."""


@dataclass(frozen=True)
class Row:
    """``what`` in one sentence; ``claims`` of the document that ask for it (none where a figure or the text does).

    ``by``: the functions that do it, ``module:name`` below ``zkc.`` (a module alone where all of it does).
    """

    id: str
    what: str
    claims: tuple[int, ...] = ()
    by: tuple[str, ...] = ()


PARTS: Final = {
    "A": "Registration (figures 1, 4-7, 11, 12)",
    "B": "Transfer with a session key made by the coordinator (figures 2, 8-10, 13-16)",
    "C": "Transfer with a session key made by the sender",
    "D": "Presence, people and authority",
    "E": "Algorithms",
    "F": "Components (figure 3)",
}

ROWS: Final = (
    Row("A1", "A client asks for a temporary server key; its identifier travels encrypted", (109,),
        by=("protocol.registration_client:create_hello", "protocol.registration_client:consume_coordinator",
            "protocol.registration_coordinator:consume_request_for_temp_key")),
    Row("A2", "The coordinator makes a temporary pair for that client, or takes one from a pool", (109,),
        by=("protocol.registration_coordinator:consume_temporary_pair", "coordinator.keypool:KeyPool")),
    Row("A3", "The client sends its temporary public key under the temporary server key", (8, 9),
        by=("protocol.registration_client:consume_temp_server_key",
            "protocol.registration_coordinator:consume_temp_client_key")),
    Row("A4", "The registration request may follow apart, or come in the same message", (47, 55),
        by=("protocol.registration_client:consume_temp_server_key",
            "protocol.registration_coordinator:consume_registration_request")),
    Row("A5", "A permanent server pair for this client alone, stored, its public half sealed to the client",
        (10, 11, 26, 107, 110),
        by=("protocol.registration_coordinator:consume_registration_request",
            "protocol.registration_coordinator:consume_reservation")),
    Row("A6", "The client stores it and answers with its permanent public key, sealed",
        (8, 9, 10, 29, 30, 43, 50, 61, 85, 108, 109),
        by=("protocol.registration_client:consume_perm_server_key",)),
    Row("A7", "The coordinator stores that key; both sides destroy every temporary key", (8, 9, 10, 26, 61),
        by=("protocol.registration_coordinator:consume_perm_client_key",
            "protocol.registration_coordinator:consume_commit", "protocol.step:erase")),
    Row("A8", "No two clients get the same temporary or permanent server key", (11,),
        by=("coordinator.keypool:KeyPool", "stores.keydb:KeyDb")),
    Row("A9", "Computers, applications on them, and users register, each with keys of its own",
        by=("client.applications", "stores.key_rows:Registration")),
    Row("A10", "Registering comes long before any request; one registration serves any number of transfers",
        (6, 21, 33, 44, 47, 48, 55, 56, 57, 72, 96),
        by=("protocol.channel",)),
    Row("B1", "The sender's request, encrypted under its permanent server key", (2, 3, 18, 19, 39),
        by=("protocol.transfer_sender:create_request", "protocol.transfer_coordinator:consume_request")),
    Row("B2", "Notification sealed to the recipient, answer sealed to the coordinator", (4, 20, 31, 52, 79),
        by=("protocol.transfer_recipient:consume_notification", "protocol.transfer_recipient:create_response",
            "protocol.transfer_coordinator:consume_answer")),
    Row("B3", "Session key to the recipient, its confirmation, only then to the sender, whose confirmation follows",
        (1, 5, 17, 26, 27, 28, 32, 39, 40, 49, 110),
        by=("protocol.transfer_coordinator:consume_answer", "protocol.transfer_recipient:consume_session_key",
            "protocol.transfer_coordinator:consume_recipient_confirmation",
            "protocol.transfer_sender:create_sender_confirmation")),
    Row("B4", "Ciphertext goes straight from sender to recipient, no byte through the coordinator", (14, 23, 36),
        by=("protocol.delivery_sender", "net.pipe")),
    Row("B5", "The recipient's acknowledgement is opened by the sender before it reports delivery",
        by=("protocol.delivery_recipient", "protocol.delivery_sender:check_receipt")),
    Row("B6", "A new session key for every request, permanent keys unchanged", (6, 7, 21, 22, 33, 44, 51),
        by=("protocol.session:wrap_session_key",)),
    Row("B7", "The order of key deliveries can be the other way round",
        by=("protocol.transfer_coordinator:consume_sender_confirmation",
            "protocol.transfer_coordinator:consume_recipient_word")),
    Row("B8", "The request may come from a computer that is neither sender nor recipient", (1, 2),
        by=("protocol.fetching:create_ask", "protocol.fetching:consume_ask", "coordinator.fetching:Fetching")),
    Row("C1", "The coordinator gives the sender the recipient's permanent public key", (69, 70, 82, 93, 94, 106),
        by=("protocol.transfer_coordinator:consume_answer", "protocol.transfer_sender:consume_grant")),
    Row("C2", "The sender makes the session key, seals it to the recipient and wraps that for the coordinator",
        (58, 68, 71, 82, 92, 95),
        by=("protocol.transfer_sender:create_key",)),
    Row("C3", "The coordinator passes it on unread; recipient confirms, sender is told, only then data flows",
        (58, 59, 60, 68, 76, 77, 83, 84, 92, 100, 101),
        by=("protocol.transfer_coordinator:consume_key", "protocol.transfer_recipient:consume_key",
            "protocol.transfer_coordinator:consume_confirmation", "protocol.transfer_sender:consume_confirmation")),
    Row("C4", "A new session key for every transfer; the recipient is told who the sender is",
        (73, 78, 79, 97, 102, 103),
        by=("protocol.transfer_sender:create_key", "protocol.transfer_recipient:consume_notification")),
    Row("C5", "No data through the coordinator, which holds no key that opens it", (65, 89),
        by=("coordinator.transfers", "crypto.suites")),
    Row("D1", "The recipient is verified available before any session key leaves", (4, 20, 31, 32, 40, 62, 86),
        by=("protocol.transfer_coordinator:consume_answer", "coordinator.clients")),
    Row("D2", "A person is verified to be at the recipient", (12, 34, 41, 63, 87),
        by=("rules.presence:judge_person", "client.person", "client.lifesigns",
            "protocol.transfer_coordinator:consume_answer")),
    Row("D3", "That person is verified to be authorised to receive", (13, 35, 42, 64, 88),
        by=("rules.presence:stated_level", "client.person", "protocol.transfer_coordinator:consume_answer")),
    Row("D4", "Getting the session key tells the sender that D1, and where asked D2 and D3, hold", (40, 41, 42),
        by=("protocol.transfer_sender:consume_grant",)),
    Row("E1", "Asymmetric: RSA, X25519, and by default the hybrid of ML-KEM-768 and X25519",
        (15, 24, 37, 45, 53, 66, 74, 80, 90, 98, 104),
        by=("crypto.suites",)),
    Row("E2", "Symmetric: AES-256-GCM, ChaCha20-Poly1305; Triple-DES and IDEA behind a three-way opt-in",
        (16, 25, 38, 46, 54, 67, 75, 81, 91, 99, 105),
        by=("crypto.ciphers", "crypto.unsafe")),
    Row("F1", "Coordinator: engine, a handler for each of figures 4-10, key database",
        by=("coordinator.engine:Engine",)),
    Row("F2", "Client: engine, a handler for each of figures 11-16, key database",
        by=("client.daemon",)),
    Row("F3", "A user interface for people, like a mail program",
        by=("ui.tui.app:Face",)),
    Row("F4", "Any device: unprivileged, without a desktop, in a container",
        by=("stores.home:Home",)),
)

BY_ID: Final = {row.id: row for row in ROWS}
