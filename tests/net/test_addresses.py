"""What an end that listens tells the other one of where that is."""

from __future__ import annotations

import socket

import pytest

from zkc.net.addresses import advertised, is_address, told


def looked_up(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Every name has that address; empty: none has one."""

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if not answer:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_is_told_as_its_address_for_the_other_end_looks_none_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ever came to a client that listened on a name: its word was dropped."""
    looked_up(monkeypatch, "192.0.2.7")
    assert advertised("bob.example", "coordinator.example") == ["192.0.2.7"]


@pytest.mark.parametrize(("host", "address"), [("192.0.2.9", "192.0.2.9"), ("[2001:db8::7]", "2001:db8::7")])
def test_an_address_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch, host: str, address: str) -> None:
    looked_up(monkeypatch, "192.0.2.7")
    assert advertised(host, "coordinator.example") == [address]


def test_a_name_without_an_address_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up(monkeypatch, "")
    assert advertised("bob.example", "coordinator.example") == ["bob.example"]


def test_what_was_configured_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up(monkeypatch, "192.0.2.7")
    assert told(["192.0.2.8"], "bob.example", "coordinator.example") == ["192.0.2.8"]


@pytest.mark.parametrize(("text", "is_one"), [("192.0.2.7", True), ("::1", True), ("bob", False), ("ipc:///x", False)])
def test_names_are_no_addresses(text: str, is_one: bool) -> None:
    assert is_address(text) is is_one
