"""``zkc receipt``: a receipt is checked with nothing but itself and a key; a changed byte anywhere is 12."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.program import PATIENCE, Done, environment, zkc
from zkc.client.principal import load_principal
from zkc.crypto.cards import make_card
from zkc.crypto.primitives import digest
from zkc.crypto.receipts import make_receipt, open_receipt
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import SUITES
from zkc.errors import PeerViolation
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.testing import Fleet
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, Receipt, ReceiptBody

DATA = b"hello, receipt\n" * 1000


class Kept:
    """alice has sent a file to bob and has its receipt; nothing runs any more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "report.pdf"
        self.receipt = folder / "report.receipt"
        self.file.write_bytes(DATA)
        with Fleet("alice", "bob", folder=folder / "fleet") as fleet:
            sent = fleet.zkc("alice", "send", "bob", str(self.file), "--receipt", str(self.receipt), "--json")
            assert sent.code == 0, sent
            self.delivered = sent.events[-1]
        self.bytes = self.receipt.read_bytes()
        self.bob = open_receipt(self.bytes).card.fingerprint.hex()

    def home(self, name: str) -> str:
        return str(self.folder / "fleet" / name)

    def run(self, *words: str, home: str | None = None, **options: Any) -> Done:
        """``zkc receipt ...`` in alice's home, or in a folder that does not exist."""
        return zkc("receipt", *words, env={"ZKC_HOME": home or self.home("alice")}, **options)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("receipts")
    yield Kept(folder)
    shutil.rmtree(folder)


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A home that does not exist, and must not exist afterwards."""
    return str(tmp_path / "nowhere")


def failed(done: Done) -> tuple[int, str]:
    """Code and detail of an error that is one object."""
    (error,) = done.objects
    assert (error["event"], error["code"]) == ("error", done.code)
    return done.code, error["detail"]


def test_a_kept_receipt_verifies_offline_in_its_home(kept: Kept) -> None:
    """No daemon, no coordinator, no network: the receipt and the pinned key."""
    done = kept.run("verify", str(kept.receipt))
    assert done.code == 0
    assert done.out == f"genuine: bob has received {len(DATA)} bytes from alice, {kept.delivered['digest']}\n"
    assert kept.bob in done.err


def test_the_receipt_in_the_home_is_the_same(kept: Kept) -> None:
    assert kept.run("verify", kept.delivered["receipt"]).code == 0


def test_json_has_every_field_of_it(kept: Kept) -> None:
    (told,) = kept.run("verify", str(kept.receipt), "--json").objects
    assert (told["v"], told["event"], told["verified"], told["why"]) == (1, "receipt", True, None)
    assert told["transfer"] == kept.delivered["transfer"]
    assert (told["recipient"], told["recipient_fingerprint"], told["sender"]) == ("bob", kept.bob, "alice")
    assert (told["bytes"], told["digest"]) == (len(DATA), kept.delivered["digest"])
    assert (told["key_source"], told["durable"], told["asker"]) == ("sender", True, None)
    assert told["began"] <= told["ended"]
    assert kept.run("show", str(kept.receipt), "--json").objects == [told]


def test_without_a_subcommand_it_is_shown(kept: Kept) -> None:
    shown = kept.run(str(kept.receipt))
    assert shown == kept.run("show", str(kept.receipt))
    assert shown.code == 0
    rows = dict(line.split(":", 1) for line in shown.out.splitlines())
    assert rows["verified"].strip() == "yes, by the key pinned for bob"
    assert rows["bytes"].strip() == str(len(DATA))
    assert len({len(line) - len(line.split(":", 1)[1].lstrip()) for line in shown.out.splitlines()}) == 1, "aligned"


@pytest.mark.parametrize("words", [["verify", "-"], ["show", "-"], ["-"]])
def test_a_receipt_is_read_from_standard_input(kept: Kept, words: list[str]) -> None:
    with kept.receipt.open("rb") as source:
        done = zkc_with(source, "receipt", *words, home=kept.home("alice"))
    assert done.code == 0, done.err


def zkc_with(source: Any, *words: str, home: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "zkc", *words], stdin=source, capture_output=True, text=True, check=False,
        timeout=PATIENCE, env=environment({"ZKC_HOME": home}),
    )
    return Done(done.returncode, done.stdout, done.stderr)


# --- whose key -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_enough_where_there_is_no_home(kept: Kept, nowhere: str) -> None:
    pretty = " ".join(kept.bob[at : at + 8] for at in range(0, 64, 8)).upper()
    for fingerprint in (kept.bob, pretty):
        assert kept.run("verify", str(kept.receipt), "--fingerprint", fingerprint, home=nowhere).code == 0
    assert not Path(nowhere).exists()


def test_a_fingerprint_decides_in_a_home_too(kept: Kept) -> None:
    done = kept.run("verify", str(kept.receipt), "--fingerprint", "ab" * 32, "--json")
    assert failed(done) == (12, "identity")


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 33])
def test_half_a_fingerprint_is_a_usage_error(kept: Kept, text: str) -> None:
    done = kept.run("verify", str(kept.receipt), "--fingerprint", text)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("zkc: receipt verify: --fingerprint takes a whole fingerprint; 64 hex digits")


def test_without_a_home_nothing_is_known_of_the_signer(kept: Kept, nowhere: str) -> None:
    """Verify fails; show says so, and shows what the receipt says, for its signatures hold."""
    done = kept.run("verify", str(kept.receipt), "--json", home=nowhere)
    assert failed(done) == (12, "not-pinned")
    assert kept.bob in done.objects[0]["message"]
    (told,) = kept.run("show", str(kept.receipt), "--json", home=nowhere).objects
    assert (told["verified"], told["why"], told["recipient"]) == (False, "not-pinned", "bob")
    shown = kept.run("show", str(kept.receipt), home=nowhere)
    assert shown.code == 0
    assert shown.out.startswith("verified:              NO: no key of bob is pinned here")
    assert not Path(nowhere).exists()


def test_the_recipient_knows_its_own_receipt(kept: Kept) -> None:
    done = kept.run("verify", str(kept.receipt), home=kept.home("bob"))
    assert done.code == 0
    assert "the key of this home" in done.err


def test_another_pin_under_the_name_is_12(kept: Kept, tmp_path: Path) -> None:
    """After `verify --trust` the name has another key: the receipt says of which it is, and how to check it still."""
    home = tmp_path / "alice"
    shutil.copytree(kept.home("alice"), home, ignore=shutil.ignore_patterns("run"))
    with KeyStore.open(Home.resolve("client", str(home))) as store:
        store.update_pin("bob", lambda pin: pin and dataclasses.replace(pin, fingerprint=b"\xab" * 32))
    done = kept.run("verify", str(kept.receipt), "--json", home=str(home))
    assert failed(done) == (12, "identity")
    message = done.objects[0]["message"]
    assert kept.bob in message
    assert "ab" * 32 in message
    (told,) = kept.run("show", str(kept.receipt), "--json", home=str(home)).objects
    assert (told["verified"], told["why"]) == (False, "identity")
    assert kept.run("verify", str(kept.receipt), "--fingerprint", kept.bob, home=str(home)).code == 0


def test_a_coordinator_s_home_is_a_usage_error(kept: Kept) -> None:
    assert failed(kept.run("verify", str(kept.receipt), "--json", home=kept.home("coordinator"))) == (2, "role")
    again = kept.run("verify", str(kept.receipt), "--fingerprint", kept.bob, home=kept.home("coordinator"))
    assert again.code == 0


# --- what is not genuine -------------------------------------------------------------------------------------------


@pytest.mark.claims("B5")
@pytest.mark.attack("D17")
def test_a_changed_byte_anywhere_is_found(kept: Kept) -> None:
    """Each byte of a receipt that was really given."""
    for at in range(len(kept.bytes)):
        with pytest.raises(PeerViolation):
            open_receipt(flipped(kept.bytes, at))


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << at % 8
    return bytes(changed)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.04, 0.2, 0.4, 0.6, 0.8, 0.9999])
@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_changed_byte_ends_with_12(kept: Kept, command: str, part: float, tmp_path: Path) -> None:
    """Nothing is shown of what nobody signed."""
    bad = tmp_path / "bad.receipt"
    bad.write_bytes(flipped(kept.bytes, int(part * len(kept.bytes))))
    code, detail = failed(kept.run(command, str(bad), "--json"))
    assert code == 12
    assert detail in {"forged", "malformed", "bad-key"}


@pytest.mark.parametrize("what", ["empty", "truncated", "longer", "text", "huge"])
def test_what_is_no_receipt_is_12(kept: Kept, what: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.receipt"
    bad.write_bytes({
        "empty": b"", "truncated": kept.bytes[:-1], "longer": kept.bytes + b"\n", "text": b"no receipt\n", "huge": b"",
    }[what])
    if what == "huge":
        os.truncate(bad, 1 << 40)
    done = kept.run("verify", str(bad))
    assert (done.code, done.out) == (12, "")
    assert done.err == f"zkc: {bad} is not a receipt, or is damaged; ask for the original\n"


def test_a_file_that_cannot_be_read_is_33(kept: Kept, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        assert failed(kept.run("verify", str(path), "--json")) == (33, "unreadable")
    assert failed(kept.run("verify", str(kept.receipt), "--file", str(tmp_path / "none"), "--json")) == (
        33, "unreadable",
    )


@pytest.mark.attack("D17", "F07")
def test_words_of_a_recipient_are_escaped_and_its_absurd_times_left_out(kept: Kept, tmp_path: Path) -> None:
    """A recipient signs whatever it likes; a terminal obeys none of it."""
    with KeyStore.open(Home.resolve("client", kept.home("bob"))) as store:
        bob = load_principal(store.registrations()[0])
    body: ReceiptBody = decode(decode(kept.bytes, Receipt).body, ReceiptBody)
    body = replace(body, sender="\x1b]0;x\x07\nverified: yes", cipher="\x9b31m", began=2**63 - 1, ended=2**63 - 1)
    odd = tmp_path / "odd.receipt"
    odd.write_bytes(make_receipt(bob.identity, body, bob.card.encoded))
    for command in ("show", "verify"):
        done = kept.run(command, str(odd))
        assert done.code == 0, done.err
        assert not {letter for letter in done.out + done.err if letter != "\n" and not letter.isprintable()}
        (told,) = kept.run(command, str(odd), "--json").objects
        assert told["ended"] is None
        assert "None" not in done.out + done.err


@pytest.mark.attack("D17")
def test_a_receipt_by_somebody_else_in_the_recipient_s_name_is_12(kept: Kept, tmp_path: Path) -> None:
    """A whole receipt, its card included, by a key that has never been bob's."""
    mallory = IdentityKey.from_seed(bytes(range(64)))
    card = make_card(
        name="bob", kind="computer", uid=bytes(16), identity=mallory, kem_key=SUITES["hybrid"].generate().public,
        epoch=1, not_after=1_900_000_000,
    )
    body: ReceiptBody = decode(decode(kept.bytes, Receipt).body, ReceiptBody)
    body = replace(
        body, recipient_fingerprint=mallory.public.fingerprint, card_hash=digest(decode(card, Card).body)
    )
    forged = tmp_path / "forged.receipt"
    forged.write_bytes(make_receipt(mallory, body, card))
    assert failed(kept.run("verify", str(forged), "--json")) == (12, "identity")
    # With bob's fingerprint in it and mallory's card, and with bob's card and mallory's signature.
    genuine = decode(kept.bytes, Receipt)
    for mixed in (
        make_receipt(mallory, decode(genuine.body, ReceiptBody), card),
        make_receipt(mallory, decode(genuine.body, ReceiptBody), genuine.card),
        encode(Receipt(genuine.body, genuine.signature, card)),
    ):
        forged.write_bytes(mixed)
        assert failed(kept.run("verify", str(forged), "--json")) == (12, "forged")


# --- of which file -------------------------------------------------------------------------------------------------


def test_the_file_that_was_sent_is_the_one_of_the_receipt(kept: Kept) -> None:
    done = kept.run("verify", str(kept.receipt), "--file", str(kept.file))
    assert (done.code, done.out.split(" from ")[0]) == (0, f"genuine: bob has received {kept.file}")
    with kept.file.open("rb") as source:
        done = zkc_with(source, "receipt", "verify", str(kept.receipt), "--file", "-", home=kept.home("alice"))
    assert done.code == 0


@pytest.mark.parametrize("other", [b"", DATA[:-1], DATA + b"x", DATA[:-1] + b"?"])
def test_another_file_is_32(kept: Kept, other: bytes, tmp_path: Path) -> None:
    """The receipt is genuine, so it is not 12: what did not verify is the data."""
    (tmp_path / "other").write_bytes(other)
    done = kept.run("verify", str(kept.receipt), "--file", str(tmp_path / "other"), "--json")
    assert failed(done) == (32, "another-file")


def test_a_receipt_that_is_not_genuine_is_of_no_file(kept: Kept, tmp_path: Path) -> None:
    bad = tmp_path / "bad.receipt"
    bad.write_bytes(flipped(kept.bytes, 9))
    assert kept.run("verify", str(bad), "--file", str(kept.file)).code == 12


@pytest.mark.parametrize(
    "words",
    [
        ["verify"], ["show"], [], ["verify", "a", "b"], ["verify", "-", "--file", "-"], ["show", "a", "--file", "b"],
        ["verify", "a", "--file", "/tmp"],
    ],
)  # fmt: skip
def test_wrong_arguments_are_2(kept: Kept, words: list[str]) -> None:
    done = kept.run(*words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
