from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.errors import UsageError
from zkc.rules.endpoints import Endpoint, PortRange, parse_endpoint, parse_metrics_listen, parse_port_range


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://bob.example:7670", "bob.example", 7670),
        ("tcp://10.0.0.1:1", "10.0.0.1", 1),
        ("tcp://[::1]:65535", "[::1]", 65535),
        ("tcp://[fe80::1%eth0]:80", "[fe80::1%eth0]", 80),
    ],
)
def test_an_endpoint_is_a_host_and_a_port_and_is_written_as_it_was_read(text: str, host: str, port: int) -> None:
    assert parse_endpoint(text) == Endpoint(host, port)
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "bob:7670", "tcp://bob", "tcp://:7670", "tcp://bob:", "tcp://bob:65536", "tcp://bob:-1", "tcp://bob:1-2",
        "tcp://bob:0", "tcp://*:7670", "ipc:///tmp/x", "tcp://bob:7670/", "tcp://bob:7670\n", "tcp://[::g]:1",
        "tcp://256.1.1.1:1", "tcp://a b:1", "tcp://eth0;bob:1", "tcp://-x:1", "tcp://b\u00f6b:1",
    ],
)  # fmt: skip
def test_anything_else_is_no_endpoint_to_connect_to(text: str) -> None:
    with pytest.raises(UsageError, match="^endpoint: "):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["tcp://*:7670", "tcp://*:0", "tcp://127.0.0.1:0"])
def test_only_who_listens_may_name_every_address_and_port_0(text: str) -> None:
    assert str(parse_endpoint(text, listen=True)) == text


@pytest.mark.parametrize(
    ("text", "ports"),
    [("tcp://*:0", []), ("tcp://h:5000", [5000, 5001]), ("tcp://h:5000-5003", [5000, 5001, 5002, 5003])],
)
def test_a_port_alone_means_it_and_the_next_and_0_lets_the_system_choose(text: str, ports: list[int]) -> None:
    assert list(parse_port_range(text).ports) == ports


@pytest.mark.parametrize(
    "text", ["tcp://h:5000-5000", "tcp://h:5001-5000", "tcp://h:0-1", "tcp://h:65535", "tcp://h:5000-65536", "h:5000"]
)
def test_a_range_has_two_ports_or_more(text: str) -> None:
    with pytest.raises(UsageError, match="^listen: "):
        parse_port_range(text)


@given(st.text(max_size=40) | st.from_regex(r"tcp://[^\s]{1,20}:\d{1,6}(-\d{1,6})?", fullmatch=True))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    for parse in (parse_endpoint, parse_port_range):
        try:
            assert isinstance(parse(text), Endpoint | PortRange)
        except UsageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("off", None), ("9464", Endpoint("127.0.0.1", 9464)), ("0", Endpoint("127.0.0.1", 0)),
        ("localhost:9464", Endpoint("127.0.0.1", 9464)), ("10.0.0.5:1", Endpoint("10.0.0.5", 1)),
        ("[::1]:9464", Endpoint("[::1]", 9464)), ("*:9464", Endpoint("*", 9464)),
    ],
)
def test_metrics_are_told_on_loopback_where_only_a_port_is_named(text: str, where: Endpoint | None) -> None:
    assert parse_metrics_listen(text) == where


@pytest.mark.parametrize(
    "text", ["", "on", "metrics.example:9464", ":9464", "127.0.0.1", "1.2.3.4.5:1", "65536", "10.0.0.5:1-2", "٣", "-1"],
)
def test_anything_else_is_no_place_for_metrics(text: str) -> None:
    with pytest.raises(UsageError, match=r"metrics\.listen"):
        parse_metrics_listen(text)
