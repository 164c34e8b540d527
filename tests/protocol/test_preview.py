"""What a person is shown before he decides: for the recipient alone, of one length, and of this handshake."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.parties import World
from tests.support.talks import terms
from zkc.constants import PREVIEW_BYTES
from zkc.errors import PeerViolation
from zkc.protocol import transfer_sender as ts
from zkc.protocol.session import is_as_shown, make_preview, open_preview
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Manifest, Preview, Req

texts = st.text(st.characters(codec="utf-8"), max_size=600)


@given(name=texts, note=texts, size=st.none() | st.integers(0, 2**63 - 1))
def test_every_preview_is_as_long_as_any_other_and_fits_what_is_sent(name: str, note: str, size: int | None) -> None:
    encoded = make_preview(name, note, size)
    assert len(encoded) == PREVIEW_BYTES
    preview = decode(encoded, Preview)
    assert name.startswith(preview.name)
    assert note.startswith(preview.note)
    assert is_as_shown(Manifest("stream", name, note, size, 0, 0), preview)


def asked(world: World, *, pinned: bool, serial: int = 1) -> Req:
    sender = world.alice.sender()
    known = msgspec.structs.replace(sender.known, card=world.bob.card.encoded if pinned else b"")
    wanted = dataclasses.replace(terms("bob", serial=serial), preview=make_preview("secret.txt", "", 3))
    made = ts.create_request(dataclasses.replace(sender, known=known), wanted)
    req: Req = made.state.req
    return req


def test_it_opens_for_the_recipient_alone_and_there_is_none_at_first_contact(default_world: World) -> None:
    req = asked(default_world, pinned=True)
    assert b"secret" not in encode(req)
    preview = open_preview(default_world.bob.kem_key, req)
    assert preview is not None
    assert preview.name == "secret.txt"
    with pytest.raises(PeerViolation):
        open_preview(default_world.alice.kem_key, req)
    assert open_preview(default_world.bob.kem_key, asked(default_world, pinned=False)) is None


def test_that_of_another_handshake_is_none_of_this_one(default_world: World) -> None:
    one, other = (asked(default_world, pinned=True, serial=serial) for serial in (1, 2))
    moved = Req(**{name: getattr(one, name) for name in Req.__struct_fields__} | {"preview": other.preview})
    with pytest.raises(PeerViolation):
        open_preview(default_world.bob.kem_key, moved)
