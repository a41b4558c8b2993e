"""Values as people write them: text, until the configuration says what each is.

YAML guesses types from how a text looks: ``no`` is false, ``2026`` a number, ``1:30`` ninety,
``007`` seven, and of two keys of the same name the last one wins. Here a plain scalar stays text
(:class:`Written`) and becomes a number only where the configuration's field is one; quoted text is
always text. ``key=value`` on the command line is read in the same way.
"""

import re
import types
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from echostill.platform.errors import UsageError

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_DECIMAL = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOTHING = ("", "~", "null", "Null", "NULL")


class Written(str):
    """Text whose type is the field's to say: a plain YAML scalar, or what follows ``key=``."""

    __slots__ = ()


class Given(Written):
    """What follows ``key=`` on the command line, which may also be a YAML list or mapping."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars stay text, and whose keys appear once."""


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(node.value) if node.style else Written(node.value)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:merge" and key.value in lines:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"key '{key.value}' is given twice, in lines {lines[key.value]} and {line}",
            )
        lines[str(key.value)] = line
    loader.flatten_mapping(node)
    return {
        str(loader.construct_object(k)): loader.construct_object(v, True) for k, v in node.value
    }


for _tag in ("str", "int", "float", "bool", "null", "timestamp", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(text: str | bytes) -> Any:
    """Read one YAML document; its plain scalars are :class:`Written`.

    Raises:
        yaml.YAMLError: It is not one YAML document, or a key is given twice.
        UnicodeError: Its bytes are not the text that they claim to be.
    """
    return yaml.load(text, _Loader)  # a subclass of SafeLoader


def settle(value: Any, annotation: Any) -> Any:
    """Turn written text into plain values of the types that a field takes.

    Args:
        value: A value of a document: text, lists and mappings.
        annotation: The field's type.

    Returns:
        The value with every :class:`Written` text replaced: by itself as plain text where text is
        taken, by the number, truth value or null that it spells where one of these is, and else by
        plain text, for the validation to refuse.
    """
    kinds = _kinds(annotation)
    if isinstance(value, Given):
        value = _opened(value, kinds)
    if isinstance(value, Written):
        return _settle_text(str(value), kinds)
    if isinstance(value, Mapping):
        fields = _fields(kinds)
        inner = _inner(kinds, dict, 1)
        return {str(key): settle(item, fields.get(str(key), inner)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # Every list type of a configuration has one type of items, or names each.
        types_of_items = _items(kinds, len(value))
        return [settle(item, kind) for item, kind in zip(value, types_of_items, strict=True)]
    return value


def open_given(value: Given) -> Any:
    """Read what was given on the command line for a whole section."""
    return _opened(value, [dict[str, Any]])


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the types of a model's fields, by name."""
    return {name: field.annotation for name, field in model.model_fields.items()}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a type names, also those of a list's or a mapping's items."""
    found: list[type[BaseModel]] = []
    for kind in _kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        for part in get_args(kind) if get_origin(kind) is not Literal else ():
            found += models_in(part)
    return found


def describe_type(annotation: Any) -> str:
    """Say in words what a field takes, such as ``text or a list of texts``."""
    return " or ".join(dict.fromkeys(_describe_kind(kind) for kind in _kinds(annotation)))


def _describe_kind(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"'{part}'" for part in parts)
    if origin in (tuple, list):
        item = describe_type(parts[0]) if parts else "any value"
        plural = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers"}
        return f"a list of {plural.get(item, item)}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "a group of keys"
    words = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _kinds(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without the wrappings that only validate."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _opened(value: Given, kinds: list[Any]) -> Any:
    """Read what was given as a list or a mapping where the field takes one."""
    listed = value.startswith("[") and any(get_origin(kind) in (tuple, list) for kind in kinds)
    grouped = value.startswith("{") and bool(_fields(kinds) or _inner(kinds, dict, 1) is not None)
    if not listed and not grouped and Any not in kinds:
        return value
    try:
        return read_yaml(value)
    except yaml.YAMLError:
        if str in kinds:
            return value
        raise UsageError(f"'{value}' is not a YAML list or mapping.") from None


def _settle_text(text: str, kinds: list[Any]) -> Any:
    if Any in kinds:
        return yaml.safe_load(text) if text not in _NOTHING else None
    if type(None) in kinds and text in _NOTHING:
        return None
    words = [part for kind in kinds if get_origin(kind) is Literal for part in get_args(kind)]
    if text in words:
        return text
    if bool in kinds and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if int in kinds or float in kinds:
        number = _number(text, kinds)
        if number is not None:
            return number
    return text


def _number(text: str, kinds: list[Any]) -> int | float | None:
    """Return the number that a text spells; 1e5 is whole where whole numbers are taken."""
    if _WHOLE.fullmatch(text):
        return int(text) if int in kinds else float(text)
    if not _DECIMAL.fullmatch(text) or re.match(r"[-+]?0[0-9]", text):
        return None
    number = float(text)
    if int in kinds and "e" in text.lower() and number.is_integer():
        return int(number)
    return number if float in kinds else None


def _fields(kinds: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= fields_of(kind)
    return found


def _inner(kinds: list[Any], origin: type, number: int) -> Any:
    for kind in kinds:
        if get_origin(kind) is origin:
            return get_args(kind)[number]
    return Any if origin is dict and Any in kinds else None


def _items(kinds: list[Any], count: int) -> list[Any]:
    for kind in kinds:
        parts = get_args(kind)
        if get_origin(kind) is list:
            return [parts[0]] * count
        if get_origin(kind) is tuple and len(parts) == 2 and parts[1] is Ellipsis:
            return [parts[0]] * count
        if get_origin(kind) is tuple and len(parts) == count:
            return list(parts)
    return [Any] * count
