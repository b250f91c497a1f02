import pytest

from tests.network.kit import World
from tests.network.possible import why_not


@pytest.fixture(scope="module")
def world():
    """The namespaces. Whoever insists on these tests is told why they cannot be had."""
    if reason := why_not():
        pytest.fail(f"network namespaces cannot be made here: {reason}", pytrace=False)
    with World() as running:
        yield running
