"""The enforcement point: front door, lanes, mitmproxy addon. The only package that imports mitmproxy."""
