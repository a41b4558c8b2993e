"""What is wrong with a configuration, in words: one message for each fault, with the way out."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from echostill.platform.errors import nearest
from echostill.platform.values import describe_type, fields_of, models_in

SLIP = 0.8  # likeness above which a key is a slip of the pen, and not one of another section
# What is said by describing the field's type; other faults (bounds, lengths) say themselves.
_WRONG_TYPE = ("_type", "_parsing", "float_from", "int_from", "_from_float", "literal_error")


def describe_errors(model: type[BaseModel], error: ValidationError) -> str:
    """Say what is wrong with a configuration, the faults joined by semicolons.

    Args:
        model: Class of the configuration.
        error: What the validation found. A field that takes several types is named once, however
            many of them did not fit.
    """
    lines: dict[tuple[str, str], str] = {}
    for item in error.errors():
        path, annotation = _field(model, item["loc"])
        where = ".".join(path)
        kind = item["type"]
        wrong = any(part in kind for part in _WRONG_TYPE)
        # The first word about a field stands; what other alternatives of its type miss follows it.
        lines.setdefault((where, "type" if wrong else kind), _line(model, item, path, annotation))
    typed = {where for where, kind in lines if kind != "type"}
    kept = [line for (where, kind), line in lines.items() if kind != "type" or where not in typed]
    return "; ".join(kept)


def _line(model: type[BaseModel], item: Any, path: list[str], annotation: Any) -> str:
    where = ".".join(path)
    if item["type"] == "extra_forbidden":
        return _unknown_key(model, path)
    if item["type"] == "missing":
        return f"key '{where}' is required and missing"
    got = item.get("input")
    if item["type"] == "literal_error" and isinstance(got, str):
        expected = describe_type(annotation)
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        return f"key '{where}': expected {expected}, got {got!r}.{nearest(got, choices)}"
    if any(part in item["type"] for part in _WRONG_TYPE) and annotation is not None:
        shown = repr(got) if not isinstance(got, dict | list) else "a group of keys or a list"
        return f"key '{where}': expected {describe_type(annotation)}, got {shown}{_hint(got)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"key '{where}': {message}, got {got!r}" if where else f"{message}"


def _hint(got: Any) -> str:
    """Say how to write a number that was quoted, or that YAML would read in base eight."""
    if not isinstance(got, str):
        return ""
    try:
        number = float(got)
    except ValueError:
        return ""
    return f" (a number is written without quotes and leading zeros: {number!r})"


def _unknown_key(model: type[BaseModel], path: list[str]) -> str:
    where, key = ".".join(path), path[-1]
    fields = list(fields_of(_model_at(model, path[:-1])))
    homes = [home for home in _paths(model) if home[-len(path) :] == path] or [
        home for home in _paths(model) if home[-1] == key and len(home) > 1
    ]
    slip = difflib.get_close_matches(key, fields, n=1, cutoff=SLIP)
    if homes and not slip:
        there = " or ".join(f"'{'.'.join(home)}'" for home in homes[:3])
        return f"unknown key '{where}'. There is {there}"
    listed = f" Valid keys: {', '.join(sorted(fields))}"
    return f"unknown key '{where}'.{nearest(key, fields) or listed}"


def _paths(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Every key of a configuration, as the path that leads to it; ``[]`` marks lists."""
    for name, annotation in fields_of(model).items():
        yield [*before, name]
        for inner in models_in(annotation):
            if len(before) < 6:
                mark = "[]" if _is_listed(annotation) else ""
                yield from _paths(inner, (*before, f"{name}{mark}"))


def _is_listed(annotation: Any) -> bool:
    return "a list" in describe_type(annotation)


def _field(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], Any]:
    """Return the path of the field that a location of pydantic lies in, and the field's type.

    Pydantic appends which alternative of a type it tried; a reader has not written that.
    """
    path: list[str] = []
    current: list[type[BaseModel]] = [model]
    annotation: Any = None
    for part in location:
        if isinstance(part, int):
            path.append(str(part))
            continue
        found = next((m for m in current if part in m.model_fields), None)
        if found is not None:
            path.append(part)
            annotation = found.model_fields[part].annotation
            current = models_in(annotation)
        elif part == location[-1] and current and annotation is None:
            path.append(part)
        elif part == location[-1] and _is_key(part, current):
            path.append(part)
            annotation = None
    return path, annotation


def _is_key(part: str, models: Sequence[type[BaseModel]]) -> bool:
    """Whether a part is an unknown key of a group, rather than the name of a tried alternative."""
    return bool(models) and "[" not in part and part not in ("str", "int", "float", "bool")


def _model_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    current = model
    for part in path:
        if part in current.model_fields:
            inner = models_in(current.model_fields[part].annotation)
            current = inner[0] if inner else current
    return current
