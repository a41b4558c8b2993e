"""Configuration: frozen models, one file for all stages, unknown keys refused by name.

A configuration file is YAML. Either it has a section per stage, with the shared keys outside the
sections, or it is flat and belongs to one stage. On the command line ``key=value`` sets a key of
the stage that runs, and ``stage.key=value`` names the stage.
"""

import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echostill.platform.cluster.plans import Device
from echostill.platform.complaints import describe_errors
from echostill.platform.errors import UsageError, nearest
from echostill.platform.stages import STAGES
from echostill.platform.values import Given, open_given, read_yaml, settle


class Config(BaseModel):
    """Base of every configuration: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def execution(default: Any, description: str, *, rounds: bool = False, **constraints: Any) -> Any:
    """Declare a field that changes how a stage runs but not what it computes.

    Such fields stay out of the fingerprint: a run may be resumed with more workers.

    Args:
        default: Default of the field.
        description: What it means.
        rounds: Whether it changes the order of floating-point sums, and with it the last digits. A
            run may be resumed with another value, but making it again takes the same one, so it is
            kept beside the result.
        constraints: Further arguments of the field.
    """
    extra: dict[str, Any] = {"execution": True, "rounds": rounds}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def added(description: str, **constraints: Any) -> Any:
    """Declare a key, None by default, that came after stores had been made.

    Left out it stays out of the fingerprint too: a result that was made before the key existed is
    continued.
    """
    return Field(None, description=description, json_schema_extra={"added": True}, **constraints)


class TeacherSettings(Config):
    """The teacher: a model of the zoo, its weights and how they are used."""

    model: str = Field("usfm", description="A model of the zoo, or timm:NAME.")
    weights: str | None = Field(
        None, description="Weights file; None takes the one that `echostill pretrain` made."
    )
    key: str | None = added(
        "Which weights to take where the file holds several, such as model_ema, or the first words "
        "of their keys; default those that fit, of several the ones called model or state_dict."
    )
    image_size: int | None = added(
        "Input side in pixels; default the model's own. Positions that the weights hold for "
        "another size are resampled.",
        ge=1,
    )
    pooling: Literal["mean", "class-token", "timm"] | None = added(
        "What an image's feature is: the mean of its patch tokens (the default), the class token, "
        "or what timm's own head of the model pools."
    )


class StageConfig(Config):
    """What every stage shares."""

    store: str = execution("runs/default", "Folder or URI (s3://, gs://) that holds all tables.")
    seed: int = Field(0, description="Seed of every random choice.", ge=0)
    address: str | None = execution(None, "Ray address; default RAY_ADDRESS, else a local Ray.")
    tracking: str | None = execution(
        None, "MLflow tracking URI; default an sqlite file in the store."
    )
    progress: bool = execution(True, "Show progress bars.")
    wait_for_nodes: float = execution(
        600.0,
        "Seconds to wait on a cluster that has no node a stage could run on, as one that scales "
        "from zero.",
        ge=0,
    )


class ComputeConfig(StageConfig):
    """What the stages that compute with a model share."""

    compute_on: Device = execution(
        "auto",
        "Where models compute: gpu, cpu, or GPUs where the cluster has any. torch must be able to "
        "use the GPUs that Ray counts.",
        rounds=True,
    )


class ModelsConfig(ComputeConfig):
    """What the stages that use teacher and student share."""

    teacher: TeacherSettings = TeacherSettings()
    student: str = Field("tinyusfm", description="A model of the zoo, or timm:NAME.")
    student_image_size: int | None = added(
        "Input side of the student in pixels; default the model's own.", ge=1
    )


# Keys that may stand outside a stage's section; a stage takes those that it knows.
SHARED_KEYS = tuple(ModelsConfig.model_fields)
ConfigType = TypeVar("ConfigType", bound=Config)


def read_document(path: str | None) -> dict[str, Any]:
    """Read a YAML configuration file; no path is an empty document.

    Plain scalars stay text until a configuration says what they are (:mod:`.values`).

    Raises:
        UsageError: The file is missing, is not YAML, or is not a mapping.
    """
    if path is None:
        return {}
    file = Path(path)
    if not file.is_file():
        folder = file.parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise UsageError(f"no configuration file '{path}'.{nearest(file.name, names)}")
    try:
        document = read_yaml(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise UsageError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    if document is None or document == "":
        return {}
    if not isinstance(document, dict):
        kind = "a list" if isinstance(document, list) else "text"
        raise UsageError(
            f"'{path}' must hold 'key: value' pairs (with a space after the colon), not {kind}."
        )
    return document


def apply_overrides(
    document: Mapping[str, Any], overrides: Iterable[str], stage: str | None
) -> dict[str, Any]:
    """Return the document with ``key=value`` texts applied.

    A key without a stage in front belongs to ``stage`` where one is given. What follows ``=`` stays
    text where the key is text, and is read as a number, a list or a mapping where it is one.
    """
    result: dict[str, Any] = copy.deepcopy(dict(document))
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"'{text}' is not of the form key=value.")
        path = key.split(".")
        if stage is not None and path[0] not in STAGES and path[0] not in SHARED_KEYS:
            sectioned = any(name in result for name in STAGES)
            path = [stage, *path] if sectioned or not result else path
        node = result
        for part in path[:-1]:
            if isinstance(node.get(part), Given):
                node[part] = settle(node[part], dict[str, Any])
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise UsageError(f"'{key}' goes into '{part}', which is a value, not a section.")
            node = child
        node[path[-1]] = Given(value)
    return result


def resolve(config_class: type[ConfigType], stage: str, document: Mapping[str, Any]) -> ConfigType:
    """Build a stage's configuration from a document: shared keys, then the stage's own section.

    Raises:
        UsageError: An unknown key (with the nearest valid one) or a value of the wrong type.
    """
    return validate(config_class, stage_values(config_class, stage, document))


def stage_values(
    config_class: type[ConfigType], stage: str, document: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a document says of one stage: shared keys it knows, then its own section."""
    values: dict[str, Any] = dict(document)
    if any(key in STAGES for key in document):
        for key in document:
            if key not in STAGES and key not in SHARED_KEYS:
                valid = [*STAGES, *SHARED_KEYS]
                own = nearest(key, valid) or nearest(key, config_class.model_fields)
                raise UsageError(
                    f"unknown key '{key}' outside the stages' sections.{own} "
                    f"Allowed there: {', '.join(valid)}."
                )
        section = document.get(stage) or None
        if isinstance(section, Given):
            section = open_given(section)
        if section is not None and not isinstance(section, dict):
            raise UsageError(f"section '{stage}' must hold 'key: value' pairs.")
        known = config_class.model_fields
        values = {key: document[key] for key in document if key in SHARED_KEYS and key in known}
        values.update(section or {})
    return values


def validate(config_class: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Validate plain values into a configuration, with errors in words."""
    try:
        defaults = {name: field.default for name, field in config_class.model_fields.items()}
        settled = settle(values, config_class)
        text = json.dumps(_complete(defaults, settled), ensure_ascii=False)
        return config_class.model_validate_json(text.encode())
    except ValidationError as error:
        raise UsageError(describe_errors(config_class, error)) from None
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{os.fsencode(error.object[error.start : error.end])!r} in a configuration is not "
            "UTF-8 text: rename the file or folder, or reach it through a symbolic link."
        ) from None
    except TypeError as error:
        raise UsageError(f"a configuration holds plain values only: {error}") from None


def _complete(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a section that is given in part with what its own default sets.

    ``training.workers=4`` must not change the number of steps, which is another in each stage.
    """
    filled = dict(values)
    for name, given in values.items():
        default = defaults.get(name)
        if isinstance(default, BaseModel) and isinstance(given, Mapping):
            inner = {key: getattr(default, key) for key in type(default).model_fields}
            stated = default.model_dump(mode="json", exclude_unset=True)
            filled[name] = {**stated, **_complete(inner, given)}
    return filled


def load(
    config_class: type[ConfigType],
    stage: str,
    path: str | None = None,
    overrides: Sequence[str] = (),
) -> ConfigType:
    """Read, override and validate the configuration of one stage."""
    return resolve(config_class, stage, apply_overrides(read_document(path), overrides, stage))


def result_relevant(config: BaseModel, *, rounding: bool = False) -> dict[str, Any]:
    """Return the configuration as plain values without the fields that only steer execution.

    Keys that came later are there only where they are set.

    Args:
        config: The configuration.
        rounding: Keep those of the fields that change the last digits of floating-point sums.
    """
    result: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        value = getattr(config, name)
        if isinstance(extra, dict):
            steers = extra.get("execution") and not (rounding and extra.get("rounds"))
            if steers or (extra.get("added") and value is None):
                continue
        if isinstance(value, BaseModel):
            result[name] = result_relevant(value, rounding=rounding)
        else:
            plain = partial(_plain, rounding=rounding)
            result[name] = json.loads(json.dumps(value, default=plain))
    return result


def _plain(value: Any, rounding: bool) -> Any:
    if isinstance(value, BaseModel):
        return result_relevant(value, rounding=rounding)
    raise TypeError(f"{type(value).__name__} is not a plain configuration value")
