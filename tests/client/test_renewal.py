"""When keys are renewed."""

from __future__ import annotations

import pytest

from zkc.client.renewal import LEFT, is_due

DAY = 86400.0


@pytest.mark.parametrize("lifetime", [60.0, 90 * DAY])
def test_keys_are_renewed_when_a_quarter_of_their_life_is_left(lifetime: float) -> None:
    end = 1_800_000_000.0
    assert not is_due(end, lifetime, LEFT, end - lifetime)
    assert not is_due(end, lifetime, LEFT, end - 0.26 * lifetime)
    assert is_due(end, lifetime, LEFT, end - 0.25 * lifetime)
    assert is_due(end, lifetime, LEFT, end + 1000 * DAY), "a daemon that was off for long"
