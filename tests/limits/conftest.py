"""The store's server: a program that only the system has."""

import pytest


@pytest.fixture(scope="session")
def redis(needs):
    return needs("redis-server")
