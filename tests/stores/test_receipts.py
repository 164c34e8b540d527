"""Receipts that a client keeps."""

from __future__ import annotations

from tests.support.items import TID
from zkc.stores.home import Home
from zkc.stores.receipts import save_receipt


def test_a_receipt_of_the_sender_is_kept_by_delivery_and_replaced_whole(home: Home) -> None:
    path = save_receipt(home, TID, b"first")
    assert save_receipt(home, TID, b"second") == path
    assert path.read_bytes() == b"second"
    assert [found.name for found in home.receipts.iterdir()] == [f"{TID.hex()}.receipt"]
