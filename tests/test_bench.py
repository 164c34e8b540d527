"""The handshake as the benchmark sees it: by functions of the machines, which it names."""

from __future__ import annotations

from importlib import import_module

import pytest

from scripts.bench.stamps import Stamp
from scripts.bench.steps import BY_SENDER, OUTSIDE, RECIPIENT_FIRST, SENDER_FIRST, WAY, WHAT, Mark, Part, parts_of

MACHINES = {
    party: import_module(f"zkc.protocol.transfer_{name}")
    for party, name in (("S", "sender"), ("C", "coordinator"), ("R", "recipient"))
}


@pytest.mark.parametrize("marks", [BY_SENDER, RECIPIENT_FIRST, SENDER_FIRST])
def test_each_step_is_a_function_of_its_machine(marks: tuple[Mark, ...]) -> None:
    for step, party, function in marks:
        machine = MACHINES[party]
        legal = {consume.__name__ for consume in machine.TABLE.values()} | {"create_request"}
        assert step in WHAT
        assert function in legal
        assert hasattr(machine, function)


def test_the_parts_of_a_transfer_leave_no_gap() -> None:
    noted = [
        Stamp(party, function, 100 * at + 50, 100 * at + 90) for at, (_, party, function) in enumerate(BY_SENDER, 1)
    ]
    parts = parts_of(BY_SENDER, noted, 0, 2000, 3000)
    assert sum(part.length for part in parts) == 3000
    assert parts[:3] == [Part("before X1", OUTSIDE, 150), Part("X1", "S", 40), Part("X1", WAY, 60)]
    # Between two functions of one party it is that party's work.
    assert Part("X3", "R", 100) in parts


def test_another_handshake_than_the_expected_one_is_no_measurement() -> None:
    noted = [Stamp(party, function, at, at) for at, (_, party, function) in enumerate(BY_SENDER)]
    with pytest.raises(RuntimeError, match="another handshake"):
        parts_of(BY_SENDER, noted[1:], 0, 100, 100)
