"""From files to a `Policy`, or to every mistake at once, each with file, line, column and field."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgeguard.policy import model
from edgeguard.policy.errors import PolicyError, PolicyErrors
from edgeguard.policy.model import Module, Policy
from edgeguard.policy.yaml import Marks, Path, field_text, parse_yaml


@dataclass(frozen=True, slots=True)
class Sources:
    """A loaded policy and where each statement stands, for later stages that find mistakes."""

    policy: Policy
    places: Mapping[str, tuple[str, int, int]]
    """Statement id (or `module NAME`, `resource NAME`, …) to (file, line, column)."""

    def error(self, statement: str, field: str, message: str, hint: str = "") -> PolicyError:
        file, line, column = self.places.get(statement, ("policy", 0, 0))
        return PolicyError(file, line, column, f"{statement}.{field}" if field else statement, message, hint)


def load_sources(files: Mapping[str, bytes]) -> Policy:
    """Parses and checks YAML files, name to content. Raises `PolicyErrors` with every mistake."""
    return load_with_places(files).policy


def load_with_places(files: Mapping[str, bytes]) -> Sources:
    """Like `load_sources`, and keeps where each statement stands."""
    from edgeguard.policy.check import check_policy  # the cross-module rules, built on the types above

    errors: list[PolicyError] = []
    modules: list[Module] = []
    places: dict[str, tuple[str, int, int]] = {}
    if not files:
        raise PolicyErrors(
            [
                PolicyError(
                    "policy", 0, 0, "", "there are no policy files", "a policy is a folder of .yaml files"
                )
            ]
        )
    for name in sorted(files):
        data, marks, found = parse_yaml(name, files[name])
        errors += found
        if found:
            continue
        if not isinstance(data, dict):
            errors.append(
                PolicyError(name, 1, 1, "", "a policy file is a mapping", "begin with `edgeguard: 1`")
            )
            continue
        try:
            module = Module.model_validate(data)
        except ValidationError as error:
            items = error.errors(include_url=False, include_context=False)
            # A list whose entries are wrong is also reported as too short; the entries are the news.
            deeper = {tuple(i["loc"][:-1]) for i in items if i["type"] != "too_short"}
            errors += [
                translate(name, marks, i)
                for i in items
                if i["type"] != "too_short" or tuple(i["loc"]) not in deeper
            ]
            continue
        modules.append(module)
        errors += _place(name, module, marks, places)
    sources = Sources(Policy(modules=tuple(sorted(modules, key=lambda m: m.module))), places)
    if not errors:  # half a policy would report names as missing that the broken files define
        errors += check_policy(sources)
    if errors:
        raise PolicyErrors(errors)
    return sources


_MODELS: Final[Mapping[tuple[str, ...], type[BaseModel]]] = {
    (): Module,
    ("rules",): model.Rule,
    ("rules", "when"): model.When,
    ("rate_limits",): model.RateLimit,
    ("rate_limits", "when"): model.When,
    ("rate_limits", "match"): model.LimitMatch,
    ("age_gates",): model.AgeGate,
    ("age_gates", "when"): model.When,
    ("age_gates", "match"): model.Where,
    ("age_gates", "require"): model.AgeRequirement,
    ("exceptions",): model.Exception_,
    ("learning",): model.Learning,
    ("quarantine",): model.Quarantine,
    ("resources", "*"): model.Resource,
    ("actions", "*"): model.Action,
    ("issuers",): model.Issuer,
}
_NAMED: Final = frozenset({"resources", "actions"})


def _known_fields(path: Path) -> list[str]:
    words = [part for part in path if isinstance(part, str)]
    if len(words) > 1 and words[0] in _NAMED:
        words[1] = "*"
    found = _MODELS.get(tuple(words))
    return [] if found is None else [field.alias or name for name, field in found.model_fields.items()]


def nearest(word: str, known: list[str]) -> str:
    """A hint that names the closest of the known words, or all of them."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return "known here: " + ", ".join(sorted(known)) if known else ""


def translate(name: str, marks: Marks, item: ErrorDetails) -> PolicyError:
    path: Path = tuple(item["loc"])
    kind, message, hint = item["type"], item["msg"].removeprefix("Value error, "), ""
    if kind == "extra_forbidden":
        message, hint = f"unknown field `{path[-1]}`", nearest(str(path[-1]), _known_fields(path[:-1]))
    elif kind == "missing":
        message = f"`{path[-1]}` is missing"
    elif kind == "string_pattern_mismatch":
        message = "the text has a character that is not allowed here, or is too long"
        hint = _pattern_hint(str(path[-1]) if path else "")
    elif kind.endswith("_type"):
        message = (
            message.replace("Input should be", "it should be")
            .replace("valid tuple", "list")
            .replace("valid dictionary", "mapping")
        )
    while path and path not in marks:
        path = path[:-1]
    line, column = marks.get(path, (1, 1))
    return PolicyError(name, line, column, field_text(tuple(item["loc"])), message, hint)


def _pattern_hint(field: str) -> str:
    if field in {"id", "module", "lifts"}:
        return "an id is lower-case letters, digits, `.`, `_` and `-`, at most 64"
    if field == "hours":
        return "write `09:00-17:30`"
    return "a method is written in upper case; a client is a name, `group:NAME` or `any`; a region is a code such as DE or US-TX"


_SECTIONS: Final = ("rules", "rate_limits", "age_gates", "exceptions", "learning", "quarantine")


def _place(
    name: str, module: Module, marks: Marks, places: dict[str, tuple[str, int, int]]
) -> list[PolicyError]:
    """Notes where each statement stands; ids are unique over the whole policy."""
    found: list[tuple[str, Path, str]] = [(f"module {module.module}", ("module",), "module")]
    for section in _SECTIONS:
        found += [(item.id, (section, i, "id"), "id") for i, item in enumerate(getattr(module, section))]
    for section in ("resources", "actions", "flags", "client_groups", "regions"):
        kind = "region group" if section == "regions" else section.removesuffix("s").replace("_", " ")
        found += [(f"{kind} {key}", (section, key), key) for key in getattr(module, section)]
    found += [
        (f"issuer {item.issuer}", ("issuers", i, "issuer"), "issuer") for i, item in enumerate(module.issuers)
    ]
    errors = []
    for statement, path, _ in found:
        line, column = marks.get(path, (1, 1))
        if statement in places:
            other, first, _ = places[statement]
            errors.append(
                PolicyError(
                    name,
                    line,
                    column,
                    field_text(path),
                    f"`{statement}` is defined twice",
                    f"first in {other}:{first}",
                )
            )
        else:
            places[statement] = (name, line, column)
    return errors


__all__ = [
    "PolicyError",
    "PolicyErrors",
    "Sources",
    "load_sources",
    "load_with_places",
    "nearest",
    "parse_yaml",
    "translate",
]
