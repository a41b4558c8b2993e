"""Write configuration.md, defaults.md and the table of formats.md from the code.

    python docs/make_configuration.py

They cannot part from it: a test compares the files with what this makes.
"""

import json
import re
import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from echostill.eval.reporting.labels import LABELS, labelled_values
from echostill.jobs.stages import REGISTRY
from echostill.platform.config import (
    SHARED_KEYS,
    StageConfig,
    TeacherSettings,
    result_relevant,
)
from echostill.platform.imaging.containers import READERS

FOLDER = Path(__file__).parent

INTRODUCTION = """\
# Configuration

<!-- Made by docs/make_configuration.py: change that, or the configuration classes, and run it. -->

One YAML file configures every stage. Keys that several stages share stand outside the sections;
each stage has a section of its own name. [The quickstart's](../examples/quickstart/config.yaml) is
a whole one, [the cluster's](../examples/cluster.yaml) another.

```yaml config
store: runs/mine
teacher:
  model: usfm
  weights: /models/USFM_latest.pth
student: tinyusfm

ingest:
  source: /data/ultrasound
  group_pattern: "patient[0-9]+"

select:
  budget: 0.1

distill:
  training:
    steps: 20000
```

A file without sections is flat and belongs to the one stage that is run with it.

## Overrides

On the command line `key=value` sets a key of the stage that runs, dots go deeper, and values are
read as YAML. `echostill run` runs several stages: there a key outside the shared ones names its
stage.

```bash
echostill select --config examples/quickstart/config.yaml budget=200 name=small
echostill distill --config examples/quickstart/config.yaml training.workers=2
echostill run --config examples/quickstart/config.yaml select.budget=200 store=runs/small
```

An unknown key, or a value of the wrong type, ends the command with exit code 2, one line, and the
nearest valid name. YAML reads `1e-4` as text: write `1.0e-4`, or `0.0001`.

## What a result depends on

The resolved configuration is kept beside each result (`configuration.json`) and is part of its
fingerprint, together with the code version, the weights' digests and the input tables' digests. The
same command continues a result whose fingerprint is the same, and refuses one that differs, naming
what differs. Keys marked *execution* say how a stage runs, not what it computes: they stay out of
the fingerprint, so a run may be continued with another number of workers. `--overwrite` replaces a
result that was made from something else.
"""


DEFAULTS_INTRODUCTION = """\
# Defaults, and what they stand on

<!-- Made by docs/make_configuration.py from eval/reporting/labels.py: change that and run it. -->

**[C]** confirmed by a public source, **[I]** inferred by us. The report shows the same list with
the values of its run. [method.md](method.md) explains the method,
[configuration.md](configuration.md) every key.
"""


def render_defaults() -> str:
    """Return the page of labelled defaults, with the values that an empty configuration gives."""
    configs = [result_relevant(REGISTRY[n].load()[0]()) for n in ("score", "select", "distill")]
    lines = [DEFAULTS_INTRODUCTION]
    topic = ""
    for item in labelled_values(*configs):
        default = item.default
        if default.topic != topic:
            topic = default.topic
            lines += ["", f"## {topic}", ""]
            lines += ["| Choice | Default | Label | Reason | Keys |", "|---|---|---|---|---|"]
        assert default.label in LABELS
        keys = ", ".join(f"`{key}`" for key in default.keys) or "fixed by design"
        value = item.value if default.keys else ""
        lines.append(
            f"| {default.name} | {value} | [{default.label}] | {default.reason} "
            f"| {default.stage}: {keys} |"
        )
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def render_configuration() -> str:
    """Return the page of all keys."""
    sections = [INTRODUCTION, _shared()]
    nested: dict[str, type[BaseModel]] = {}
    for stage, entry in REGISTRY.items():
        config = entry.load()[0]
        own = {name: f for name, f in config.model_fields.items() if name not in SHARED_KEYS}
        lines = [f"## {stage}", "", _first_line(config), "", *_table(own, nested)]
        used = [f"`{key}`" for key in SHARED_KEYS if key in config.model_fields]
        lines += ["", f"Shared keys: {', '.join(used)}."]
        sections.append("\n".join(lines) + "\n")
    sections.append("# Groups of keys\n")
    described: set[str] = set()
    while len(described) < len(nested):
        for name, model in list(nested.items()):
            if name not in described:
                described.add(name)
                table = "\n".join(_table(model.model_fields, nested))
                sections.append(f"## {name}\n\n{_first_line(model)}\n\n{table}\n")
    return "\n".join(sections)


def _shared() -> str:
    fields = dict(StageConfig.model_fields)
    # Of the shared keys these two belong to the stages with models; any of those tells them.
    models = REGISTRY["distill"].load()[0].model_fields
    fields |= {key: models[key] for key in SHARED_KEYS if key not in fields}
    nested: dict[str, type[BaseModel]] = {}
    lines = ["## Shared keys", "", *_table(fields, nested), "", "### TeacherSettings", ""]
    lines += [_first_line(TeacherSettings), "", *_table(TeacherSettings.model_fields, nested)]
    return "\n".join(lines) + "\n"


def _table(fields: dict[str, FieldInfo], nested: dict[str, type[BaseModel]]) -> list[str]:
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        for model in _models(field.annotation):
            nested.setdefault(model.__name__, model)
        extra = field.json_schema_extra
        steers = isinstance(extra, dict) and extra.get("execution")
        words = [field.description or "", "*execution*" if steers else "", _bounds(field)]
        meaning = " ".join(word for word in words if word)
        cells = [f"`{name}`", _type(field.annotation), _default(field), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _models(annotation: Any) -> list[type[BaseModel]]:
    found = [model for part in get_args(annotation) for model in _models(part)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found.append(annotation)
    return found


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)}: {_type(parts[0])}"
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}
    return names.get(getattr(annotation, "__name__", ""), str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return _departures(value)
    return f"`{json.dumps(_plain(value))}`"


def _departures(value: BaseModel) -> str:
    """What a group of keys is set to here, where that is not the group's own default."""
    own = type(value)()
    differing = [
        f"{name}: {json.dumps(_plain(getattr(value, name)))}"
        for name in type(value).model_fields
        if getattr(value, name) != getattr(own, name)
    ]
    return f"`{{{', '.join(differing)}}}`" if differing else "as there"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in value.model_fields_set}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _bounds(field: FieldInfo) -> str:
    """The limits that a value must keep, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{words[name]} {getattr(mark, name):g}"
        for mark in field.metadata
        for name in words
        if getattr(mark, name, None) is not None
    ]
    return f"({', '.join(said)})" if said else ""


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def render_formats() -> str:
    """Return the page of formats with its table made from the readers; the rest is as written."""
    rows = [f"| {reader.title} | {reader.reads} | {reader.notes} |" for reader in READERS]
    table = "\n".join(["| Format | Read | Notes |", "|---|---|---|", *rows])
    page = (FOLDER / "formats.md").read_text(encoding="utf-8")
    between = re.compile(r"(<!-- readers[^\n]*-->\n).*?(<!-- end of readers -->)", re.DOTALL)
    made, count = between.subn(lambda mark: f"{mark[1]}\n{table}\n\n{mark[2]}", page)
    assert count == 1, "docs/formats.md has lost the marks of its table"
    return made


PAGES = {
    "configuration.md": render_configuration,
    "defaults.md": render_defaults,
    "formats.md": render_formats,
}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (FOLDER / name).write_text(render(), encoding="utf-8")
        print(f"wrote {FOLDER / name}")
