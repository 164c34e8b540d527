"""The outbox: a job is there whole or not at all, and what another process does meanwhile is not lost."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from zkc.errors import PolicyRefused, UsageError
from zkc.stores.home import Home
from zkc.stores.outbox import Job, Outbox, Spool


def job(number: int = 1, **changes: object) -> Job:
    made = Job(f"{number:016x}", "bob", "a.txt", "", float(number), 100.0, 5, paths=["/a.txt"])
    return replace(made, **changes)


def add(outbox: Outbox, *jobs: Job) -> None:
    for each in jobs:
        with outbox.making(each.id) as folder:
            (folder / "data").write_bytes(b"12345")
            outbox.add([each], 3)


@pytest.fixture
def outbox(home: Home) -> Outbox:
    return Outbox(home)


def test_jobs_are_listed_found_changed_and_removed(outbox: Outbox) -> None:
    assert (outbox.jobs(), outbox.spooled_bytes(), outbox.remove("0" * 16)) == ([], 0, False)
    add(outbox, job(2), job(1, spool=Spool(b"k" * 32, "stream", 0o600, 0)))
    assert outbox.jobs() == [job(1, spool=Spool(b"k" * 32, "stream", 0o600, 0)), job(2)]
    assert outbox.spooled_bytes() == 10
    assert "k" * 5 not in repr(outbox.jobs())
    assert outbox.find("0000000000000002") == job(2)
    for prefix, detail in (("00", "ambiguous-id"), ("ff", "unknown-id"), ("", "unknown-id")):
        with pytest.raises(UsageError) as error:
            outbox.find(prefix)
        assert error.value.detail == detail
    assert outbox.change(job(2).id, lambda each: replace(each, tries=7)) == job(2, tries=7)
    assert outbox.job(job(2).id) == job(2, tries=7)
    assert outbox.remove(job(2).id)
    assert outbox.change(job(2).id, lambda each: each) is None
    assert [each.id for each in outbox.jobs()] == [job(1).id]


def test_no_more_than_so_many(outbox: Outbox) -> None:
    add(outbox, job(1), job(2), job(3))
    with pytest.raises(PolicyRefused):
        add(outbox, job(4))
    assert len(outbox.jobs()) == 3


def test_what_was_cut_off_at_any_step_is_no_job_and_is_tidied(outbox: Outbox, home: Home) -> None:
    add(outbox, job(1, state="sending"), job(2))
    jobs = home.outbox / "jobs"
    (jobs / f".gone-{job(3).id}").mkdir()
    (jobs / job(4).id).mkdir()
    (jobs / job(5).id).mkdir()
    (jobs / job(5).id / "job.json").write_bytes(b"{")
    assert [each.id for each in outbox.jobs()] == [job(1).id, job(2).id]
    assert outbox.damaged() == [job(4).id, job(5).id]
    outbox.tidy()
    assert [each.state for each in outbox.jobs()] == ["waiting", "waiting"]
    assert not (jobs / f".gone-{job(3).id}").exists()
    assert outbox.remove(job(5).id)


def test_nobody_else_can_look_into_it(outbox: Outbox, home: Home) -> None:
    add(outbox, job(1))
    for path in (home.outbox, home.outbox / "jobs", home.outbox / "jobs" / job(1).id):
        assert path.stat().st_mode & 0o077 == 0
    assert (home.outbox / "jobs" / job(1).id / "job.json").stat().st_mode & 0o777 == 0o600
