"""One-time codes: the vectors of RFC 6238, appendix B, and what counts as one."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from zkc.crypto.totp import code_at, step_of, uri

SECRET = b"12345678901234567890"


@pytest.mark.parametrize(
    ("time", "code"),
    [
        (59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_the_vectors_of_the_rfc(time: int, code: str) -> None:
    assert code_at(SECRET, time // 30) == code
    assert step_of(SECRET, code, time, 0) == time // 30


def test_a_code_counts_once_and_only_about_its_time() -> None:
    code = code_at(SECRET, 1000)
    for now in (999 * 30, 1000 * 30, 1001 * 30 + 29):
        assert step_of(SECRET, code, now, 999) == 1000
    for now, used in ((998 * 30 + 29, 0), (1002 * 30, 0), (1000 * 30, 1000), (1000 * 30, 1001)):
        assert step_of(SECRET, code, now, used) is None
    for wrong in ("", "28708", "2870822", "\ud800", "२८७०८२"):
        assert step_of(SECRET, wrong, 1000 * 30, 0) is None


def test_what_an_app_reads() -> None:
    parts = urlsplit(uri(SECRET, "bob/back up"))
    assert (parts.scheme, parts.netloc, parts.path) == ("otpauth", "totp", "/zkc:bob%2Fback%20up")
    assert parse_qs(parts.query) == {"secret": ["GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"], "issuer": ["zkc"]}
