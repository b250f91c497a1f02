"""Fetch, store, update, reconcile: how a node comes by its policy and keeps proving that it is current."""
