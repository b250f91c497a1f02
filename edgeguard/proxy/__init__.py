"""The enforcement point: front door, lanes, mitmproxy addon. The only package that imports mitmproxy."""

from edgeguard.proxy.engine import import_one_by_one

import_one_by_one()
