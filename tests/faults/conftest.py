"""The fixtures of the sync tests serve here as well."""

from tests.sync.conftest import authority, new_node, node, served, start, web

__all__ = ["authority", "new_node", "node", "served", "start", "web"]
