"""What is counted, as Prometheus takes it."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from zkc.errors import BY_CODE
from zkc.metrics.exposition import Exposition
from zkc.metrics.families import OTHER, REASONS, STEP_BOUNDS, Durations, Sample, bounded, counter, gauge, histogram


@given(st.lists(st.floats(0, 1000) | st.sampled_from(STEP_BOUNDS)))
def test_each_bucket_counts_what_took_no_longer(took: list[float]) -> None:
    durations = Durations()
    for seconds in took:
        durations.add(seconds)
    buckets = durations.buckets()
    assert buckets[-1] == ("+Inf", len(took))
    assert [(float(bound), count) for bound, count in buckets[:-1]] == [
        (bound, bisect_right(sorted(took), bound)) for bound in STEP_BOUNDS
    ]
    assert durations.total == pytest.approx(sum(took))


def test_a_word_that_is_not_known_is_one_of_the_others() -> None:
    """So no peer can make labels, whatever it says."""
    counts = {"policy.rule": 2, "policy.made-up": 3, "policy.": 1, "other.rule": 7}
    assert bounded(counts, "policy.", ("rule", "limit")) == {"rule": 2, "limit": 0, OTHER: 4}


def test_each_code_of_the_contract_has_its_reason_and_any_other_counts_as_a_defect() -> None:
    metric = counter("zkc_tries_total", "Tries.", "code", "reason")
    told = {sample.labels: sample.value for sample in metric.by_code({0: 5, 25: 2, 99: 1, -3: 1})}
    assert set(told) == {("0", "done")} | {(str(code), kind.reason) for code, kind in BY_CODE.items()}
    assert (told["0", "done"], told["25", "policy"], told["1", "internal"]) == (5, 2, 2)
    assert len(REASONS) == len(BY_CODE) + 1


def test_a_page_has_each_metric_and_the_process() -> None:
    tries = counter("zkc_tries_total", "Tries.", "code", "reason")
    there, took = gauge("zkc_there", "Who is there."), histogram("zkc_took_seconds", "How long.", "step")
    durations = Durations((1.0, 2.0))
    durations.add(1.5)

    def read() -> list[Sample]:
        return [*tries.by_code({25: 4}), there.of(3), took.of(durations, "first")]

    page = Exposition((tries, there, took), read).page().decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {"zkc_tries", "zkc_there", "zkc_took_seconds", "process_open_fds"} <= set(families)
    values = {(each.name, *sorted(each.labels.items())): each.value for each in families["zkc_took_seconds"].samples}
    assert values["zkc_took_seconds_bucket", ("le", "1.0"), ("step", "first")] == 0
    assert values["zkc_took_seconds_bucket", ("le", "2.0"), ("step", "first")] == 1
    assert values["zkc_took_seconds_sum", ("step", "first")] == 1.5
    assert "zkc_tries_total{code=\"25\",reason=\"policy\"} 4.0" in page


def test_a_value_of_the_wrong_kind_is_a_defect_and_no_page() -> None:
    there, took = gauge("zkc_there", "Who is there."), histogram("zkc_took_seconds", "How long.")
    for wrong in (there.of(Durations()), took.of(1.0)):
        with pytest.raises(AssertionError, match="histogram"):
            Exposition((there, took), lambda wrong=wrong: [wrong]).page()  # type: ignore[misc]
