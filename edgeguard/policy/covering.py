"""Whether one statement surely matches whatever another one matches. Errs towards no."""

from edgeguard.policy.check import port_covers
from edgeguard.policy.flat import Flat, Kind
from edgeguard.policy.targets import Target, host_covers
from edgeguard.policy.templates import Template, fold_template, parse_template


def covers(wide: Flat, narrow: Flat) -> bool:
    """Whether `wide` surely matches every request that `narrow` matches, always. Errs towards no."""
    if wide.percent < 100 or narrow.percent < 100 or wide.when is not None or wide.start is not None:
        return False
    if wide.end is not None and (narrow.end is None or narrow.end > wide.end):
        return False
    if not set(wide.claims) <= set(narrow.claims):
        return False
    return (
        _clients_cover(wide, narrow)
        and _targets_cover(wide.targets, narrow.targets)
        and _protocols_cover(wide, narrow)
        and (
            wide.methods is None or (narrow.methods is not None and set(narrow.methods) <= set(wide.methods))
        )
        and _paths_cover(wide, narrow)
        and (wide.query is None or wide.query == narrow.query)
    )


def _clients_cover(wide: Flat, narrow: Flat) -> bool:
    if wide.clients is not None and "any" in wide.clients:
        return True
    if wide.clients is None:
        everybody = wide.kind is not Kind.ALLOW
        return everybody or narrow.clients is None or "any" not in narrow.clients
    return narrow.clients is not None and set(narrow.clients) <= set(wide.clients)


def _targets_cover(wide: tuple[Target, ...] | None, narrow: tuple[Target, ...] | None) -> bool:
    if wide is None:
        return True
    return narrow is not None and all(
        any(host_covers(w, n) and port_covers(w, n) for w in wide) for n in narrow
    )


def _protocols_cover(wide: Flat, narrow: Flat) -> bool:
    if wide.protocols is None:
        return wide.kind is not Kind.ALLOW or narrow.protocols is None
    if "tcp" in wide.protocols and wide.kind is Kind.ALLOW:
        return True
    return narrow.protocols is not None and set(narrow.protocols) <= set(wide.protocols) and narrow.residual


def _paths_cover(wide: Flat, narrow: Flat) -> bool:
    if wide.paths is None:
        return True
    if narrow.paths is None:
        return False
    ours = [parse_template(text) for text in wide.paths]
    theirs = [parse_template(text) for text in narrow.paths]
    if wide.kind is not Kind.ALLOW:
        ours, theirs = [fold_template(t) for t in ours], [fold_template(t) for t in theirs]
    return all(any(template_covers(w, n) for w in ours) for n in theirs)


def template_covers(wide: Template, narrow: Template) -> bool:
    """Whether every path of `narrow` is a path of `wide`."""
    if len(wide.segments) > len(narrow.segments):
        return False
    if not wide.open and (narrow.open or len(wide.segments) != len(narrow.segments)):
        return False
    return all(
        w == n or (w is None and n != "") for w, n in zip(wide.segments, narrow.segments, strict=False)
    )
