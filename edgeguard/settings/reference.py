"""The reference of all keys, read off the models: what `docs/configuration.md` prints as tables."""

import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, NamedTuple, TypeAliasType, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from edgeguard.settings.load import known_keys


class Row(NamedTuple):
    """One line of the reference in `docs/configuration.md`."""

    key: str
    type: str
    default: str
    about: str


def reference() -> list[tuple[str, str, list[Row]]]:
    """Every section as (name, what it is about, its keys); the top level is the section without a name."""
    sections: dict[str, tuple[str, list[Row]]] = {}
    for dotted, (model, name) in known_keys().items():
        field = model.model_fields[name]
        section = dotted.rpartition(".")[0]
        about = (field.description or "").replace("\n", " ").replace("|", "\\|")
        row = Row(name, _type_name(field.annotation), _default_text(field), about)
        sections.setdefault(section, ((model.__doc__ or "").strip(), []))[1].append(row)
    return [(name, about, rows) for name, (about, rows) in sections.items()]


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "unset"
    shown = json.dumps(value, default=str)
    return f"`{'{}' if value == {} else shown}`"


def _type_name(annotation: object) -> str:
    if isinstance(annotation, TypeAliasType):
        return _type_name(annotation.__value__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in {Union, UnionType}:
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    names: dict[object, str] = {
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
        Path: "path",
        SecretStr: "secret",
    }
    return names.get(annotation, str(annotation))
