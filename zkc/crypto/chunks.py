"""The stream of frames: each one numbered, the last one marked, every key used for one stream of one attempt.

STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) over the transfer's ciphers: no truncation, reordering, splicing.
D(stream, attempt) = Expand(K, "zkc/1 " stream u32 attempt, 76) = key 32, nonce base 12, commitment 32.
nonce = base XOR (0^3 || u64 index || u8 last); AAD = header, in a stream's first frame header || commitment, which
stands in clear after the header and is compared before anything is opened (GCM does not commit to its key).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zkc.constants import AEAD_TAG_BYTES, COMMITMENT_BYTES, XID_TAG_BYTES
from zkc.crypto.ciphers import make_cipher
from zkc.crypto.primitives import NONCE_BYTES, Secret, check_mac, digest, expand
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import PeerViolation
from zkc.wire.frames import DATA_HEADER_BYTES, DataHeader, Flag, Stream

Sealed = bytearray | memoryview
"""A frame, sealed: in memory of our own, or in some that was allotted."""

_KEY: Final = 32


def xid_tag(k: Secret) -> bytes:
    """What the frames of a transfer carry in clear to be told apart: 16 bytes, says nothing of K."""
    return expand(k, "xid-tag", XID_TAG_BYTES)


def token(k: Secret, socket: str, attempt: int) -> str:
    """The PLAIN password for one connection: 32 hex digits, derived at both ends, never sent ahead."""
    return expand(k, b"token " + socket.encode() + attempt.to_bytes(4, "big"), 16).hex()


def rendezvous(rv: bytes, socket: str) -> bytes:
    """The name under which the two ends of one connection meet at a relay, 16 bytes; ``rv`` is 16 random bytes."""
    return digest(rv, socket.encode())[:16]


def frame_bytes(n: int) -> int:
    """Bytes of a frame of ``n`` bytes under an AEAD, unless it is a stream's first."""
    return DATA_HEADER_BYTES + n + AEAD_TAG_BYTES


class _StreamKeys:
    """Key, nonce base and commitment of one stream in one attempt, and the next index."""

    def __init__(self, k: Secret, stream: Stream, attempt: int, cipher: str) -> None:
        material = expand(k, stream.name.lower().encode() + b" " + attempt.to_bytes(4, "big"), 76)
        self._cipher = make_cipher(cipher, material[:_KEY])
        self._base = int.from_bytes(material[_KEY : _KEY + NONCE_BYTES], "big")
        self._commitment = material[-COMMITMENT_BYTES:]
        self._tag = xid_tag(k)
        self.stream = stream
        self.attempt = attempt
        self.index = 0
        self.bytes = 0

    def _nonce(self, last: bool) -> bytes:
        return (self._base ^ (self.index << 8 | last)).to_bytes(NONCE_BYTES, "big")

    def _advance(self, n: int) -> None:
        self.index += 1
        self.bytes += n

    @property
    def used_up(self) -> bool:
        """Whether the key has taken all the bytes that one may take."""
        return self.bytes >= self._cipher.rollover_bytes

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an owner of nonces is neither copied nor stored")


class StreamSealer(_StreamKeys):
    """Makes the frames of one stream, in order."""

    def __init__(
        self, k: Secret, stream: Stream, attempt: int, cipher: str, allot: Callable[[int], Sealed] = bytearray
    ) -> None:
        """``allot``: bytes of the next frame -> room for exactly as many, whatever is in it."""
        super().__init__(k, stream, attempt, cipher)
        self._allot = allot

    def seal(self, plaintext: Buffer, flags: Flag = Flag.NONE) -> Sealed:
        """The next frame: header, in the first one the commitment, ciphertext."""
        header = DataHeader(self.stream, flags, self.attempt, self.index, self._tag).pack()
        aad = header if self.index else header + self._commitment
        frame = self._allot(len(aad) + len(plaintext) + self._cipher.overhead(len(plaintext)))
        frame[: len(aad)] = aad
        self._cipher.seal_into(self._nonce(Flag.LAST in flags), aad, plaintext, memoryview(frame)[len(aad) :])
        self._advance(len(plaintext))
        return frame


class StreamOpener(_StreamKeys):
    """Opens the frames of one stream, in order, each once; after a failure nothing more."""

    def __init__(self, k: Secret, stream: Stream, attempt: int, cipher: str) -> None:
        super().__init__(k, stream, attempt, cipher)
        self._failed = False

    def open(self, header: DataHeader, frame: Buffer) -> Buffer:
        """The plaintext of ``frame``, whose header is ``header``; there until the next one is opened.

        `PeerViolation`: ``unexpected`` (another stream, attempt, transfer or index), ``forged``.
        """
        if self._failed:
            raise PeerViolation("unexpected", "a frame after a failure")
        self._failed = True
        if (header.stream, header.attempt, header.xid_tag) != (self.stream, self.attempt, self._tag):
            raise PeerViolation("unexpected", "a frame of another stream, attempt or transfer")
        if header.index != self.index:
            raise PeerViolation("unexpected", f"frame {header.index} in place of {self.index}")
        aad = bytes(frame[: DATA_HEADER_BYTES if self.index else DATA_HEADER_BYTES + COMMITMENT_BYTES])
        if not self.index:
            check_mac(self._commitment, aad[DATA_HEADER_BYTES:])
        plaintext = self._cipher.open(self._nonce(Flag.LAST in header.flags), aad, memoryview(frame)[len(aad) :])
        self._advance(len(plaintext))
        self._failed = False
        return plaintext
