"""Each sample is a policy folder of its own: its tests run against the folder that they lie in."""

from pathlib import Path

import pytest


@pytest.fixture
def edgeguard_policy_dir(request):
    return Path(request.path).parent.parent
