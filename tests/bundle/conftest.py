import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kit

from edgeguard.bundle import trust


@pytest.fixture(autouse=True)
def _fake_policy(monkeypatch, request):
    """The trust state machine hands the policy over unread; the real engine has its own tests."""
    if request.node.get_closest_marker("real_policy") is None:
        monkeypatch.setattr(trust, "Tables", kit.FakeTables)
        monkeypatch.setattr(trust, "Engine", kit.fake_engine)


def pytest_configure(config):
    config.addinivalue_line("markers", "real_policy: uses the real policy engine")
