"""Identities and keys that several modules use; made once, never changed."""

from __future__ import annotations

import pytest
from hypothesis import settings

from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import SUITES, KemPrivateKey, Suite

# How long one example takes says nothing on a machine that runs other things too.
settings.register_profile("zkc", deadline=None)
settings.load_profile("zkc")


def identity_of(name: str) -> IdentityKey:
    """The same identity for the same name, in every run."""
    return IdentityKey.from_seed(digest(b"ed", name.encode()) + digest(b"ml", name.encode()))


@pytest.fixture(scope="session")
def alice() -> IdentityKey:
    return identity_of("alice")


@pytest.fixture(scope="session")
def bob() -> IdentityKey:
    return identity_of("bob")


@pytest.fixture(scope="session", params=sorted(SUITES))
def suite(request: pytest.FixtureRequest) -> Suite:
    return SUITES[request.param]


@pytest.fixture(scope="session")
def private_key(suite: Suite) -> KemPrivateKey:
    """A permanent key of the suite under test (made once: an RSA pair takes long)."""
    return suite.generate()
