"""The packet filter beside the proxy: what goes past it is redirected to it, or refused.

`plan` reads a configuration, `ruleset` renders it for nft(8), `kernel` hands it over, `ways` and `verify`
try from inside what gets out. Nothing here decides about a destination: the doors do.
"""
