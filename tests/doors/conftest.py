import pytest

from tests.doors.kit import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Every door, running."""
    with World(tmp_path_factory.mktemp("doors")) as running:
        yield running
        assert running.trouble() == ""
