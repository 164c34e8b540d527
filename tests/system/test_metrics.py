"""Metrics of real processes: a coordinator and its daemons, as Prometheus finds them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.coordinator import coordinator_in
from tests.support.program import TOP
from tests.support.waiting import DEADLINE, wait_until
from zkc import __version__
from zkc.client.metrics import METRICS as OF_CLIENT
from zkc.coordinator.metrics import METRICS as OF_COORDINATOR
from zkc.metrics.door import CONNECTIONS_MAX
from zkc.metrics.families import COMMON, PROCESS
from zkc.testing import Fleet

ON = {"metrics.listen": "127.0.0.1:0"}
Values = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", coordinator=ON, client=ON) as running:
        yield running


@pytest.fixture
def taken() -> Iterator[str]:
    """An address at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield f"127.0.0.1:{other.getsockname()[1]}"


@pytest.fixture(scope="module")
def still() -> Iterator[Fleet]:
    """Alice's home and a coordinator's, in which nothing runs."""
    with Fleet("alice", daemons=False) as made:
        made.coordinator.terminate()
        yield made


PROGRAMS: dict[str, tuple[str, ...]] = {
    "alice": ("daemon",), "coordinator": ("coordinator", "run", "--listen", "tcp://127.0.0.1:0"),
}


def address_of(fleet: Fleet, name: str) -> str:
    """As its log says."""
    return str(logged(fleet.program(name).log, "metrics")[-1]["address"])


def told_address(fleet: Fleet, name: str) -> str | None:
    """As its status says."""
    words = ("coordinator", "status") if name == "coordinator" else ("status",)
    found: str | None = fleet.zkc(name, *words, "--json").events[0]["metrics"]
    return found


def page_at(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return str(answer.read().decode())


def values_at(address: str) -> Values:
    """(name, value of each label in the order of their names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page_at(address)) for sample in family.samples
    }


def names_in(page: str) -> set[str]:
    return {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE ")}


def logged(log: Path, event: str) -> list[dict[str, object]]:
    """What a program has said of it."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] == event]


def test_what_happens_is_counted_at_all_three(fleet: Fleet) -> None:
    at = {name: address_of(fleet, name) for name in ("coordinator", "alice", "bob")}
    before = {name: values_at(address) for name, address in at.items()}
    assert fleet.zkc("alice", "send", "bob", "-m", "hello").code == 0
    fleet.client("alice").send("bob", b"x" * 300_000)
    assert fleet.zkc("alice", "send", "nobody-here", "-m", "hello").code == 20
    assert fleet.zkc("alice", "send", "bob", "-m", "later", "--queue").code == 0

    def rise(name: str, *key: str) -> float:
        return values_at(at[name])[key] - before[name][key]

    wait_until(lambda: rise("alice", "zkc_daemon_outbox_total", "0", "done") == 1)
    wait_until(lambda: rise("bob", "zkc_daemon_received_bytes_total") == 300_010)
    assert rise("bob", "zkc_daemon_deliveries_total", "0", "done") == 3
    assert rise("bob", "zkc_daemon_incoming_total", "0", "done") == 3
    wait_until(lambda: rise("alice", "zkc_daemon_sent_bytes_total") == 10)
    assert rise("alice", "zkc_daemon_outgoing_total", "0", "done") == 3
    assert rise("alice", "zkc_daemon_outgoing_total", "20", "unknown-recipient") == 1
    assert rise("alice", "zkc_daemon_grant_seconds_count") == 3
    wait_until(lambda: rise("coordinator", "zkc_coordinator_handshakes_total", "0", "done") == 3)
    assert rise("coordinator", "zkc_coordinator_handshakes_total", "20", "unknown-recipient") == 1
    assert rise("coordinator", "zkc_coordinator_handshake_seconds_count") == 3
    for step in ("recipient-answers", "sender-makes-key", "recipient-confirms"):
        assert rise("coordinator", "zkc_coordinator_handshake_step_seconds_count", step) == 3
    now = values_at(at["coordinator"])
    assert now["zkc_coordinator_clients_online",] == now["zkc_coordinator_clients",] == 2
    assert now["zkc_coordinator_registrations_total", "done"] == 2
    assert now["zkc_coordinator_registration_seconds_count",] == 2
    assert now["zkc_coordinator_key_log_entries",] == 2
    assert now["zkc_coordinator_connections",] >= 2
    wait_until(lambda: values_at(at["coordinator"])["zkc_coordinator_audit_entries",] >= 7)
    assert values_at(at["bob"])["zkc_daemon_links", "linked"] == 1
    wait_until(lambda: values_at(at["bob"])["zkc_daemon_key_log_entries",] == 2)


def test_a_page_has_every_metric_of_its_program_and_no_name_of_a_client(fleet: Fleet) -> None:
    expected = {"coordinator": OF_COORDINATOR, "bob": OF_CLIENT}
    for name, metrics in expected.items():
        page = page_at(address_of(fleet, name))
        assert names_in(page) == {metric.name for metric in (*COMMON, *metrics, *PROCESS)}
        assert "alice" not in page
        assert "bob" not in page


def test_refusals_are_told_by_reason(fleet: Fleet) -> None:
    at_bob, at_coordinator = address_of(fleet, "bob"), address_of(fleet, "coordinator")
    fleet.configure("bob", {"inbox.accept": "none"})
    fleet.program("bob").process.send_signal(signal.SIGHUP)
    wait_until(lambda: logged(fleet.program("bob").log, "configuration-read"))
    assert fleet.zkc("alice", "send", "bob", "-m", "hello").code == 25
    assert fleet.zkc("alice", "send", "bob", "-m", "hello", "--key-source", "coordinator").code == 25
    wait_until(lambda: values_at(at_bob)["zkc_daemon_incoming_refused_total", "accept"] == 1)
    wait_until(lambda: values_at(at_coordinator)["zkc_coordinator_handshakes_total", "25", "policy"] >= 1)


def test_scrapers_that_never_ask_or_never_read_keep_nobody_out(fleet: Fleet) -> None:
    """Of the coordinator and a daemon, which go on with their work."""
    silent = []
    for name in ("coordinator", "bob"):
        host, _, port = address_of(fleet, name).rpartition(":")
        for number in range(2 * CONNECTIONS_MAX):
            each = socket.create_connection((host, int(port)), timeout=DEADLINE)
            if number % 2:
                each.sendall(b"GET /metrics HTTP/1.1\r\n" + b"\r\n" * (number % 4 == 1))
            silent.append(each)
        role = "client" if name == "bob" else "coordinator"
        assert values_at(f"{host}:{port}")["zkc_build_info", role, __version__] == 1
    assert fleet.zkc("bob", "send", "alice", "-m", "still here").code == 0
    for each in silent:
        each.close()


def test_sighup_changes_nothing_about_the_port(fleet: Fleet, taken: str) -> None:
    for name in ("coordinator", "alice"):
        program, address = fleet.program(name), address_of(fleet, name)
        fleet.configure(name, {"metrics.listen": taken})
        program.process.send_signal(signal.SIGHUP)
        wait_until(lambda log=program.log: logged(log, "restart-needed"))  # type: ignore[misc]
        (event,) = logged(program.log, "restart-needed")
        assert event["key"] == "metrics.listen"
        assert told_address(fleet, name) == address
        assert values_at(address)["process_open_fds",] > 0
        fleet.configure(name, ON)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_port_that_is_taken_ends_the_start_with_33(name: str, still: Fleet, taken: str) -> None:
    done = still.zkc(name, *PROGRAMS[name], "--json", env={"ZKC_METRICS_LISTEN": taken})
    (error,) = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, error["detail"]) == (33, "address-in-use")
    assert f"metrics.listen: {taken} is in use" in error["message"]


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """The environment of one who has not installed the extra."""
    missing = tmp_path / "missing" / "prometheus_client"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ModuleNotFoundError('not installed')\n")
    return {"PYTHONPATH": os.pathsep.join((str(missing.parent), str(TOP)))}


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_extra_it_says_what_to_install(name: str, still: Fleet, without: dict[str, str]) -> None:
    done = still.zkc(name, *PROGRAMS[name], "--json", env=without | {"ZKC_METRICS_LISTEN": "127.0.0.1:0"})
    (error,) = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, error["detail"]) == (2, "extra")
    assert "pip install 'zkc[metrics]'" in error["message"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_off_unless_it_is_asked_for_and_then_needs_no_extra(
    name: str, still: Fleet, without: dict[str, str]
) -> None:
    with still.popen(
        name, *PROGRAMS[name], env=without, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline().startswith(b"ready ")
            assert told_address(still, name) is None
        finally:
            running.terminate()
        assert b'"metrics"' not in running.communicate(timeout=DEADLINE)[1]


def test_a_process_that_takes_over_goes_on_without_metrics_if_need_be(tmp_path: Path, taken: str) -> None:
    """Whoever takes the port while the coordinator is started again does not end it."""
    with coordinator_in(tmp_path) as coordinator:
        coordinator.home.config_file.write_text(f'[metrics]\nlisten = "{taken}"\n')
        coordinator.kill_child()
        assert coordinator.status.metrics == ""
        (event,) = coordinator.events("metrics-off")
        assert taken in str(event["why"])
