"""What a statement asks of the inside of a connection: protocol, method, path, query.

Two ways to match. An allow is strict: exact case, exact slashes, HEAD is HEAD. A deny, gate or limit is loose: case, a
trailing slash and HEAD for GET make no difference. Ambiguity only ever restricts. Paths are spellings (`paths.spellings`), for the
loose matchers folded (`paths.fold`).
"""

from collections.abc import Sequence
from typing import Final

from edgeguard.policy.paths import Query
from edgeguard.policy.templates import TemplateSet, fold_template, parse_template

NEVER_IMPLIED: Final = frozenset({"TRACE", "CONNECT"})
"""Methods that no rule allows without naming them."""
_HTTP: Final = frozenset({"http"})
_TLS: Final = frozenset({"tls"})

OK, PROTOCOL, METHOD, PATH = 8, 4, 5, 6
"""How far a strict match got: everything matched, or what did not."""


def implied(port: int) -> frozenset[str]:
    """The protocol of an allow that names none."""
    return _HTTP if port == 80 else _TLS


class Condition:
    """One compiled condition; shared by all statements that say the same. What a match needs is made on first use."""

    __slots__ = (
        "_loose",
        "_loose_methods",
        "_strict",
        "methods",
        "protocols",
        "query",
        "residual",
        "templates",
    )

    def __init__(
        self,
        protocols: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        query: Sequence[tuple[str, frozenset[str]]] | None = None,
    ) -> None:
        """Raises `PathError` for a malformed template."""
        self.protocols = None if protocols is None else frozenset(protocols)
        self.methods = None if methods is None else frozenset(methods)
        self.templates = None if paths is None else tuple(parse_template(path) for path in paths)
        self.query = None if query is None else tuple(query)
        self.residual = methods is not None or paths is not None or query is not None
        self._strict: TemplateSet | None = None
        self._loose: TemplateSet | None = None
        self._loose_methods: frozenset[str] | None = None

    # strict: allows and exceptions

    def speaks(self, protocol: str, port: int) -> bool:
        """Whether a request of this protocol is meant (strict)."""
        protocols = self.protocols or implied(port)
        if protocol in protocols or "tcp" in protocols:
            return True
        return protocol == "websocket" and not self.residual

    def opens(self, protocol: str, port: int) -> bool:
        """Whether a connection of which only the protocol is known could carry something that is meant."""
        protocols = self.protocols or implied(port)
        if protocol in protocols or "tcp" in protocols:
            return True
        if protocol == "websocket":
            return not self.residual
        return protocol != "tcp" and "websocket" in protocols

    def free(self, protocol: str, port: int) -> bool:
        """Whether everything on such a connection is meant."""
        if self.residual:
            return False
        protocols = self.protocols or implied(port)
        return protocol in protocols or "tcp" in protocols

    def reach(self, method: str, path: str, queries: tuple[Query, ...]) -> int:
        """How far a strict match of a request gets whose protocol is meant: OK, METHOD or PATH."""
        methods = self.methods
        if methods is None:
            if method.upper() in NEVER_IMPLIED:
                return METHOD
        elif method not in methods:
            return METHOD
        return OK if self._leads(path, queries) else PATH

    def lifts(self, method: str, path: str, queries: tuple[Query, ...]) -> bool:
        """Strict match whatever the protocol, TRACE included: what an exception needs."""
        return (self.methods is None or method in self.methods) and self._leads(path, queries)

    def _leads(self, path: str, queries: tuple[Query, ...]) -> bool:
        if self.templates is not None and not (self._strict or self.strict).has(path):
            return False
        return self.query is None or all(self._query_strict(q) for q in queries)

    @property
    def strict(self) -> TemplateSet:
        """The paths of a strict match."""
        if self._strict is None:
            self._strict = TemplateSet(self.templates or ())
        return self._strict

    def _query_strict(self, query: Query) -> bool:
        """Each named key occurs, and never with another value."""
        for key, values in self.query or ():
            found = [v for k, v in query if k == key]
            if not found or ("*" not in values and not values.issuperset(found)):
                return False
        return True

    # loose: denies, gates, limits

    def touches(self, protocol: str, port: int) -> bool:
        """Whether a request of this protocol is meant (loose). A WebSocket is TLS or HTTP by its port."""
        protocols = self.protocols
        if protocols is None or protocol in protocols:
            return True
        return protocol == "websocket" and not protocols.isdisjoint(implied(port))

    def may_touch(self, protocol: str, port: int) -> bool:
        """Whether something on such a connection can be meant."""
        return self.touches(protocol, port) or (
            protocol in {"tls", "http"} and self.protocols is not None and "websocket" in self.protocols
        )

    def certain(self, protocol: str, port: int) -> bool:
        """Whether everything on such a connection is meant."""
        return not self.residual and self.touches(protocol, port)

    def hits(self, method: str, folded: str, queries: tuple[Query, ...]) -> bool:
        """A loose match of a request whose protocol is touched; `folded` is `paths.fold` of a spelling."""
        if self.methods is not None:
            wanted = self._loose_methods or self.loose_methods
            if method not in wanted and method.upper() not in wanted:
                return False
        if self.templates is not None and not (self._loose or self.loose).has(folded):
            return False
        return self.query is None or any(self._query_loose(q) for q in queries)

    @property
    def loose_methods(self) -> frozenset[str]:
        if self._loose_methods is None:
            methods = {m.upper() for m in self.methods or ()}
            self._loose_methods = frozenset(methods | {"HEAD"} if "GET" in methods else methods)
        return self._loose_methods

    @property
    def loose(self) -> TemplateSet:
        """The paths of a loose match."""
        if self._loose is None:
            self._loose = TemplateSet(map(fold_template, self.templates or ()))
        return self._loose

    def _query_loose(self, query: Query) -> bool:
        """Each named key occurs at least once with a listed value, whatever the case."""
        for key, values in self.query or ():
            wanted, folded = key.casefold(), {value.casefold() for value in values}
            if not any(
                k.casefold() == wanted and ("*" in values or v.casefold() in folded) for k, v in query
            ):
                return False
        return True


ANYTHING: Final = Condition()
"""The condition of a statement that names none."""

__all__ = ["ANYTHING", "METHOD", "NEVER_IMPLIED", "OK", "PATH", "PROTOCOL", "Condition", "implied"]
