"""What a refusal of somebody else is told as: who, what, and what to do. One table, by code and finer word.

A wire carries a code of the contract and a word. The sender's end of a handshake or a delivery makes its line of them
here, and so does the recipient's.
"""

from __future__ import annotations

from typing import Final

from zkc.errors import ZkcError, error_for
from zkc.rules.names import escape

COORDINATOR: Final = "the coordinator"
_AGAIN: Final = "run the same command again"
_LATER: Final = "try it later, or with a longer wait"
_LOOK: Final = "somebody in between alters messages, or a version is defective: see zkc verify"

_SENTENCES: Final[dict[tuple[int, str], tuple[str, str]]] = {
    (1, ""): ("{either} failed at this request", "the log there says why"),
    (2, "bad-name"): ("the coordinator does not accept this name for an application", "choose another name"),
    (2, "collision"): (
        "{0} has two names in that folder that some file systems take for one", "leave one of them out"
    ),
    (2, "excluded"): ("what is left out leaves nothing for {0} to send", "leave less of it out"),
    (2, "limit"): ("it is too much for one transfer from {0}", "ask for it in parts, or leave some of it out"),
    (10, "keydb"): ("the coordinator cannot read or write its key database", "its log says why; run it again later"),
    (11, ""): ("the coordinator no longer knows this client's registration", "zkc join --force, with a new invitation"),
    (11, "name-taken"): (
        "the coordinator has a registration of this name", "zkc coordinator revoke NAME, at the coordinator, ends it"
    ),
    (12, ""): ("a message did not verify at {either} ({detail})", _LOOK),
    (12, "identity"): ("{0} does not accept this client's key", "ask {0}: zkc verify there shows what it has pinned"),
    (12, "epoch"): ("{0} has seen a newer card of this client", "ask {0}: zkc verify there shows what it has pinned"),
    (12, "expired"): ("the card of this client or of {0} has expired, or a clock is wrong", "compare both dates"),
    (12, "two-names"): ("{0} has pinned this client's key under another name", "ask {0} to look at zkc peers there"),
    (20, ""): ("there is no {0} at this coordinator", "zkc peers lists who is there"),
    (20, "recipient"): ("there is no recipient of that name at this coordinator", "zkc peers lists who is there"),
    (21, ""): ("{0} is offline", _LATER),
    (22, ""): ("nobody is present at {0}", _LATER),
    (23, "not-enrolled"): (
        "no person at {0} can prove that he may receive (nothing is enrolled there)", "zkc person enrol, at {0}"
    ),
    (23, ""): ("the person at {0} may not receive it", "ask {0} who may"),
    (24, ""): ("a person at {0} refused it", "ask {0} why"),
    (25, ""): ("{either} refused it by policy", "ask its administrator"),
    (25, "accept"): ("{0} takes no transfers (inbox.accept there)", "ask {0} to allow them"),
    (25, "cipher"): (
        "{either} does not allow this cipher",
        "transfer.ciphers must name the cipher at the coordinator and at both ends",
    ),
    (25, "key-source"): (
        "{either} does not allow a key from this source",
        "coordinator-made keys need transfer.key_sources to name them at the coordinator and at both ends",
    ),
    (25, "key-order"): (
        "the coordinator does not hand out keys of its own making in this order",
        "set transfer.key_order to another, or let transfer.key_orders name it at the coordinator",
    ),
    (25, "limit"): (
        "a limit of {either} was reached: too large, too many at once, or too many in a second",
        "run it again later, or ask {0} to raise inbox.max_bytes, inbox.per_sender or transfer.listen",
    ),
    (25, "rate"): ("a rule of {either} lets in no more of this client's at the moment", "run it again later"),
    (25, "too-many"): (
        "{0} makes no more deliveries on request at once, for this client, to this recipient, or in all",
        "run it again once one of them has ended",
    ),
    (25, "unreachable"): (
        "neither this client nor {0} lets the other connect (transfer.listen is off at both)",
        "set transfer.listen at one of them to an address and ports that the other reaches, or use a relay (zkc relay)",
    ),
    (25, "no-relay"): (
        "neither this client nor {0} lets the other connect, and no relay is there at the moment",
        "start one of those that the coordinator names: zkc relay; a longer wait waits for one",
    ),
    (25, "not-a-relay"): ("the coordinator does not name this client as a relay", "add it to [relay] clients there"),
    (25, "not-as-shown"): (
        "name, note or size are not what the person at {0} was shown before he accepted", "send it anew"
    ),
    (25, "share"): (
        "{0} shares nothing of that name and path with this client, for that recipient", "zkc shares {0} lists it"
    ),
    (25, "withdrawn"): (
        "{0} withdrew the right to it while it was under way; nothing of it was delivered",
        "zkc shares {0} lists what may be asked for",
    ),
    (25, "recipient"): ("{0} has pinned another key of that recipient", "compare both: zkc verify"),
    (25, "replay"): ("this request to {0} was answered before", _AGAIN),
    (30, ""): ("{0} did not answer in time", _AGAIN),
    (30, "unanswered"): ("nobody at {0} answered whether to accept it", "ask {0} to look at zkc inbox there"),
    (31, ""): ("{0} gave the transfer up", _AGAIN),
    (31, "asker-gone"): ("{0} gave it up, as nobody asked any more how far it is", _AGAIN),
    (31, "broken-stream"): (
        "it went to a process at {0} that took it as a stream, and that has gone; what it took is not sent again",
        "run the same command again, once {0} waits for it or is to keep it",
    ),
    (31, "interrupted"): (
        "the registration of this client ended during the handshake with {0}", "zkc status tells what became of it"
    ),
    (31, "link"): ("{0} lost the link", _AGAIN),
    (31, "reader-gone"): ("the process at {0} that was to take it has gone", _AGAIN),
    (31, "shutdown"): ("the daemon of {0} ended", _AGAIN),
    (31, "signal"): ("somebody at {0} interrupted the transfer", _AGAIN),
    (31, "timeout"): ("the time that {0} gave the transfer is over", _AGAIN),
    (31, "unknown-request"): ("{0} knows nothing of this request any more", "was its daemon started again? ask anew"),
    (31, "unknown-transfer"): ("the coordinator no longer knows the handshake with {0}", _AGAIN),
    (32, ""): ("{0} found that the data did not verify ({detail}); nothing of it was delivered", _AGAIN),
    (33, ""): ("{0} cannot read or write what is sent ({detail})", "the log or the command there says why"),
    (33, "no-space"): (
        "{0} has no space left for it (inbox.min_free there)", "ask {0} to make room, and send it again"
    ),
    (33, "source-changed"): ("the file changed at {0} while it was sent", "it must be sent again"),
    (40, ""): ("{either} speaks no version that this client does", "upgrade the older of the two"),
}


def refused_by(who: str, code: int, detail: str, *, signed: bool = False, reason: str = "") -> ZkcError:
    """The error of the contract for a refusal that came from, or was about, ``who`` (a name, or `COORDINATOR`).

    ``signed``: by ``who``; else the coordinator may have said it. ``reason``: words of a person there.
    """
    message, hint = _SENTENCES.get((code, detail)) or _SENTENCES.get((code, "")) or _SENTENCES[1, ""]
    either = who if signed or who == COORDINATOR else f"{who} or the coordinator"
    told = message.format(who, either=either, detail=detail or "no reason") + (f": {escape(reason)}" if reason else "")
    return error_for(code, told, detail=detail, hint=hint.format(who))
