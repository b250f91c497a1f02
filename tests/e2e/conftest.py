import pytest

from tests.e2e.kit import Place, make_keys


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Keys and root, made once by the shipped commands."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, keys):
    """One running world for a module; `place.client` is the demo's client."""
    with Place(tmp_path_factory.mktemp("place"), keys) as running:
        running.client = running.start_all()
        yield running
