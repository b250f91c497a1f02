"""Checked parts of a decoded section: lists, maps, and the pools of client sets and conditions that its rows share."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from edgeguard.policy.conditions import ANYTHING, Condition
from edgeguard.policy.statements import (
    ClientSet,
)
from edgeguard.policy.templates import PathError, check_template

_PROTOCOLS: Final = frozenset({"tls", "http", "tcp", "websocket"})


class TablesError(ValueError):
    """The sections are not a policy that this version understands."""


class Pools:
    """Client sets and conditions of a section: checked when loaded, made when used."""

    __slots__ = ("_clients", "_conds", "_made_clients", "_made_conds")

    def __init__(self, name: str, section: Mapping[str, Any]) -> None:
        self._clients, self._conds = list_of(name, section, "clients"), list_of(name, section, "conds")
        for anybody, names, groups in self._clients:
            if type(anybody) is not bool:
                raise TablesError(f"{name}.clients: malformed")
            texts_of(f"{name}.clients", names)
            texts_of(f"{name}.clients", groups)
        for cond in self._conds:
            _check_condition(f"{name}.conds", cond)
        self._made_clients: dict[int, ClientSet] = {}
        self._made_conds: dict[int, Condition] = {}

    def clients(self, place: int) -> ClientSet | None:
        """The client set at `place`; -1 is none."""
        if place < 0:
            return None
        made = self._made_clients.get(place)
        if made is None:
            anybody, names, groups = self._clients[place]
            made = self._made_clients[place] = ClientSet(anybody, frozenset(names), frozenset(groups))
        return made

    def cond(self, place: int) -> Condition:
        """The condition at `place`; -1 is the one that asks for nothing."""
        if place < 0:
            return ANYTHING
        made = self._made_conds.get(place)
        if made is None:
            protocols, methods, paths, query = self._conds[place]
            fields = None if query is None else [(key, frozenset(values)) for key, values in query]
            made = self._made_conds[place] = Condition(protocols, methods, paths, fields)
        return made

    @property
    def sizes(self) -> tuple[int, int]:
        """How many client sets and conditions there are."""
        return len(self._clients), len(self._conds)


def list_of(name: str, section: Mapping[str, Any], field: str) -> list[Any]:
    value = section.get(field)
    if type(value) is not list:
        raise TablesError(f"{name}.{field}: not a list")
    return value


def map_of(name: str, section: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = section.get(field)
    if type(value) is not dict or not set(map(type, value)) <= {str}:
        raise TablesError(f"{name}.{field}: not a map")
    return value


def texts_of(name: str, value: object) -> list[str]:
    if type(value) is not list or not set(map(type, value)) <= {str}:
        raise TablesError(f"{name}: not a list of texts")
    return value


def _check_condition(name: str, cond: Collection[Any]) -> None:
    protocols, methods, paths, query = cond
    for part in (protocols, methods, paths):
        if part is not None:
            texts_of(name, part)
    if protocols is not None and not (protocols and _PROTOCOLS.issuperset(protocols)):
        raise TablesError(f"{name}: the protocols are not known")
    for key, values in query or ():
        if type(key) is not str:
            raise TablesError(f"{name}: a key of the query is malformed")
        texts_of(name, values)
    try:
        for path in paths or ():
            check_template(path)
    except PathError as error:
        raise TablesError(f"{name}: {error}") from None
