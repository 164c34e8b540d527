from __future__ import annotations

import base64
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from zkc.crypto.invitations import (
    format_invitation,
    invitation_curve_secret,
    invitation_psk,
    parse_invitation,
)
from zkc.crypto.primitives import digest
from zkc.errors import UsageError, VersionMismatch
from zkc.wire.codec import encode
from zkc.wire.messages import Answer, Invitation, InvitationText

INVITATION: Final = InvitationText(
    endpoints=["tcp://192.0.2.7:7670", "tcp://[2001:db8::7]:7670"], fingerprint=bytes(range(32)),
    curve_key=bytes(range(32, 64)), suite="hybrid", invite_id=b"i" * 16, name="bob", kind="computer",
    secret=b"a secret of 16 b",
)
TEXT: Final = format_invitation(INVITATION)


def refused(text: str) -> bool:
    """Whether ``text`` is refused as an invitation, and in the way that the command line promises."""
    try:
        parse_invitation(text)
    except UsageError as error:
        assert (error.code, error.detail) == (2, "bad-invite")
        assert INVITATION.secret.decode() not in str(error)
        assert len(text) < 20 or text[5:20] not in str(error)
        return True
    return False


def text_of(body: bytes, prefix: str = "zkc1-") -> str:
    """Any body behind a checksum that is right."""
    checksum = digest(b"zkc invite checksum\0", prefix.encode(), body)[:8]
    return prefix + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


def test_an_invitation_is_one_line_that_parses_to_what_was_put_in() -> None:
    assert parse_invitation(TEXT) == INVITATION
    assert TEXT.startswith("zkc1-")
    assert TEXT.isascii()
    assert not set(TEXT) & set(" \n\t=+/'\"$&;|")
    assert text_of(encode(INVITATION)) == TEXT


@given(
    st.builds(
        InvitationText,
        endpoints=st.lists(st.text(max_size=40), min_size=1, max_size=5),
        fingerprint=st.binary(min_size=32, max_size=32), curve_key=st.binary(min_size=32, max_size=32),
        suite=st.sampled_from(["hybrid", "x25519", "rsa"]), invite_id=st.binary(min_size=16, max_size=16),
        name=st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,62}\Z"), kind=st.sampled_from(["computer", "user"]),
        secret=st.binary(min_size=16, max_size=16),
    )
)
def test_every_invitation_comes_back(invitation: InvitationText) -> None:
    assert parse_invitation(format_invitation(invitation)) == invitation


@pytest.mark.parametrize("around", ["{}\n", "  {}", "\r\n{}\r\n", "\t{} \n\n"])
def test_white_space_around_it_is_ignored(around: str) -> None:
    assert parse_invitation(around.format(TEXT)) == INVITATION


@pytest.mark.parametrize("version", [0, 2, 10])
def test_a_whole_invitation_of_another_version_is_told_as_that(version: int) -> None:
    with pytest.raises(VersionMismatch, match=f"version {version}"):
        parse_invitation(text_of(b"whatever stands there then", f"zkc{version}-"))
    assert refused(TEXT.replace("zkc1", f"zkc{version}"))


@pytest.mark.attack("R12")
def test_an_invitation_cut_at_any_place_is_refused() -> None:
    for n in range(len(TEXT)):
        assert refused(TEXT[:n]), n
        assert refused(TEXT[n + 1 :]), n


@pytest.mark.attack("R12")
def test_an_invitation_with_any_bit_flipped_is_refused() -> None:
    """Each bit of each character: never another endpoint, never a half-read secret."""
    for at, character in enumerate(TEXT):
        for bit in range(8):
            assert refused(TEXT[:at] + chr(ord(character) ^ 1 << bit) + TEXT[at + 1 :]), (at, bit)


@pytest.mark.attack("R12")
def test_an_invitation_with_a_character_lost_doubled_swapped_or_put_in_is_refused() -> None:
    for at in range(len(TEXT)):
        assert refused(TEXT[:at] + TEXT[at + 1 :])
        assert refused(TEXT[:at] + TEXT[at] + TEXT[at:])
        for extra in "A= \n":
            if at > 0:
                assert refused(TEXT[:at] + extra + TEXT[at:])
        if at and TEXT[at - 1] != TEXT[at]:
            assert refused(TEXT[: at - 1] + TEXT[at] + TEXT[at - 1] + TEXT[at + 1 :])


@pytest.mark.attack("R12")
@pytest.mark.parametrize(
    "text",
    ["", "\n", "zkc1-", "zkc1", "zkc2-" + TEXT[5:], TEXT.upper(), TEXT + "=", TEXT + "==", TEXT + TEXT, TEXT + "A",
     "zkc1-AAAA", "zkc1-" + "A" * 11, "zkc1-\u00e9", "zkc1-\ud800", "\0" + TEXT, "zkc1-" + "A" * 100_000],
    ids=range(16),
)
def test_what_is_no_invitation_is_refused(text: str) -> None:
    assert refused(text)


@pytest.mark.attack("R12")
@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    assert refused(text)
    assert refused("zkc1-" + text)


@pytest.mark.parametrize(
    "change",
    [{"endpoints": []}, {"name": "Bob"}, {"name": ""}, {"name": "bob\x1b[31m"}, {"name": "../bob"},
     {"secret": b"short"}, {"kind": "daemon"}, {"fingerprint": bytes(31)}, {"endpoints": ["x"] * 33}],
    ids=str,
)
def test_a_right_checksum_over_wrong_fields_is_refused(change: dict[str, object]) -> None:
    """The checksum finds mishaps; the form is checked as any peer's is."""
    assert refused(text_of(encode(msgspec.structs.replace(INVITATION, **change))))


def test_a_right_checksum_over_other_bytes_is_refused() -> None:
    body = encode(INVITATION)
    for wrong in (b"", b"\xc0", body + b"\0", body[:-1], b"\xdc\0\x08" + body[1:], b"\x91" * 5000):
        assert refused(text_of(wrong))


# --- what is derived from the secret ----------------------------------------------------------------------------


def test_psk_and_curve_key_are_separate_derivations_of_the_secret() -> None:
    """H10 core; and no derived value begins with the secret or its hash (R08)."""
    secret = INVITATION.secret
    psk, curve = invitation_psk(secret).reveal(), invitation_curve_secret(secret).reveal()
    assert len({psk, curve, digest(secret)}) == 3
    assert len(psk) == len(curve) == 32
    assert psk == invitation_psk(secret).reveal()
    assert psk != invitation_psk(secret[::-1]).reveal()


def test_an_invitation_s_secret_does_not_show() -> None:
    """Not in repr, str, an answer that carries the line, or rich's own way of printing objects."""
    answer = Answer(bytes(16), Invitation(TEXT))
    for thing in (INVITATION, [INVITATION], Invitation(TEXT), answer):
        for shown in (repr(thing), str(thing), pretty_repr(thing)):
            assert INVITATION.secret.decode() not in shown
            assert TEXT[5:60] not in shown
    assert "bob" in repr(INVITATION)
