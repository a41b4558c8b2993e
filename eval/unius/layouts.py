"""How a set lies in its download: patterns, templates and rules, as a card states them.

A pattern is a regular expression for the end of a path, whole parts of it, upper and lower case
alike; where the download was unpacked, and into which folder, does not matter. Its named groups are
the values of a template: ``{split}/{name}``. In a table, the columns are values too.
"""

import re
import string
from functools import lru_cache
from typing import Literal

from pydantic import Field, field_validator, model_validator

from echostill.platform.config import Config


@lru_cache(maxsize=512)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern as what searches the end of a path."""
    return re.compile(rf"(?:^|/)(?:{pattern})$", re.IGNORECASE)


def fields_in(template: str) -> set[str]:
    """Return the names that a template takes."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


class _Files(Config):
    files: str = Field(description="Pattern of the paths.")

    @field_validator("files")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        try:
            compiled(pattern)
        except re.error as error:
            raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
        return pattern

    @property
    def names(self) -> set[str]:
        """Named groups of the pattern."""
        return set(compiled(self.files).groupindex)

    def _check(self, *templates: str) -> None:
        for template in templates:
            for name in sorted(fields_in(template) - self.names):
                raise ValueError(
                    f"'{template}' takes {{{name}}}, which '{self.files}' does not name"
                )


class ImageFiles(_Files):
    """The images: each file is one, or one for each of its frames."""

    key: str = Field("{key}", description="Template of what an image is called.")
    group: str = Field("", description="Template of the patient, subject or clip.")
    label: str = Field("", description="Template of the label.")
    split: str = Field("", description="Template of the side of the official split.")
    reads: Literal["still", "planes", "frames"] = Field(
        "still",
        description="still is one picture; planes a volume whose slices are colour channels; "
        "frames a volume or clip of which each frame is an image.",
    )

    @model_validator(mode="after")
    def _templates(self) -> "ImageFiles":
        self._check(self.key, self.group, self.label, self.split)
        return self


class MaskFiles(_Files):
    """Files that say where something is; several of one image are united."""

    key: str = Field("{key}", description="Template of the image that a file belongs to.")
    reads: Literal["image", "volume", "polygon", "contours", "coco", "via"] = Field(
        "image",
        description="image and volume hold a value per pixel; polygon is a JSON list of [x, y]; "
        "contours are two text files of points, told apart by the group `part`, with the area "
        "between them; coco and via are files of polygons of many images.",
    )
    rule: Literal["above", "nonzero", "values", "outline"] = Field(
        "above",
        description="Which pixels count: those above the threshold, those that are not 0, each by "
        "its own value, or what a drawn outline encloses.",
    )
    threshold: int = Field(127, ge=0, le=254, description="Grey level for `above` and `outline`.")
    only: str = Field(
        "", description="Of via: `attribute=value`, the regions to take; empty takes all."
    )

    @model_validator(mode="after")
    def _templates(self) -> "MaskFiles":
        if self.reads not in ("coco", "via"):
            self._check(self.key)
        if self.reads == "contours" and "part" not in self.names:
            raise ValueError(f"contours need a group named part in '{self.files}'")
        return self


class MaskLayer(Config):
    """One structure of the masks; later layers are painted over earlier ones."""

    name: str = Field(description="What it is called in messages and errata.")
    value: int = Field(1, ge=1, le=255, description="Value in the mask, unless the rule is values.")
    needed: bool = Field(True, description="Whether an image without it is quarantined.")
    files: tuple[MaskFiles, ...] = Field(
        min_length=1, description="The first one with a file in the download is read."
    )


class SideTable(_Files):
    """A table of text beside the images: labels, groups, sides of the official split, folds."""

    separator: Literal["comma", "semicolon", "tab", "blanks", "tell"] = Field(
        "tell", description="What separates values; tell finds out by the first line."
    )
    header: Literal["yes", "no", "maybe"] = Field(
        "yes",
        description="Whether the first line names the columns; without it they are column1, "
        "column2, ...; maybe takes a first line without a digit for one.",
    )
    of: Literal["image", "group"] = Field("image", description="What a row is about.")
    key: str = Field(description="Template of the image's key, or of the group.")
    label: str = Field("", description="Template of the label.")
    group: str = Field("", description="Template of the patient, subject or clip.")
    split: str = Field("", description="Template of the side of the official split.")
    fold: str = Field("", description="Template of the fold in which the image is held out.")
    pixel_mm: str = Field("", description="Template of a pixel's side in millimetres.")
    needed: bool = Field(True, description="Whether a download without it is incomplete.")

    @property
    def columns(self) -> set[str]:
        """Columns that the templates take."""
        templates = (self.key, self.label, self.group, self.split, self.fold, self.pixel_mm)
        return {name for template in templates for name in fields_in(template)} - self.names


class FoldFiles(_Files):
    """Files of official folds, one or two for each, told apart by the group `fold`."""

    reads: Literal["indices", "coco"] = Field(
        description="indices: a JSON of lists of positions among the names sorted by number; coco: "
        "the images of a COCO file whose group `part` is that of the held-out ones."
    )
    held_out: str = Field("val", description="Which list, or which part, is held out.")
    split: str = Field("", description="Number only the images of this side, as the files name it.")

    @model_validator(mode="after")
    def _groups(self) -> "FoldFiles":
        wanted = {"fold"} | ({"part"} if self.reads == "coco" else set())
        for name in sorted(wanted - self.names):
            raise ValueError(f"'{self.files}' has no group named {name}")
        return self


class Erratum(Config):
    """A known fault of a set, and what is done about it."""

    keys: tuple[str, ...] = Field(min_length=1, description="Patterns of whole keys.")
    does: Literal["drop", "without", "instead", "label"] = Field(
        description="drop leaves the image out; without expects no file of the layer; instead "
        "reads the layer from other files; label corrects the label."
    )
    why: str = Field(description="What is wrong, and who says so.")
    layer: str = Field("", description="The layer, of without and instead.")
    files: MaskFiles | None = Field(None, description="What is read instead.")
    label: str = Field("", description="The correct label, a class.")

    @model_validator(mode="after")
    def _complete(self) -> "Erratum":
        if (self.does in ("without", "instead")) != bool(self.layer):
            raise ValueError("an erratum names a layer where it is without or instead, only there")
        if (self.does == "instead") != (self.files is not None):
            raise ValueError("an erratum has files where it is instead, and only there")
        if (self.does == "label") != bool(self.label):
            raise ValueError("an erratum has a label where it corrects one, and only there")
        return self

    def concerns(self, key: str) -> bool:
        """Return whether it is about an image."""
        return any(re.fullmatch(pattern, key, re.IGNORECASE) for pattern in self.keys)


class DownloadLayout(Config):
    """One way in which a set is distributed."""

    name: str = Field("as distributed", description="What tells it from other layouts.")
    example: str = Field(description="A path as it is in the download, for messages.")
    images: ImageFiles = Field(description="The images.")
    masks: tuple[MaskLayer, ...] = Field((), description="Layers of the masks.")
    tables: tuple[SideTable, ...] = Field((), description="Tables of text beside the images.")
    folds: tuple[FoldFiles, ...] = Field((), description="Files of official folds.")
    errata: tuple[Erratum, ...] = Field((), description="Known faults.")
    labels: dict[str, str] = Field(
        {}, description="From a label as the files have it to a class; empty drops the label."
    )
    splits: dict[str, Literal["train", "val", "test"]] = Field(
        {}, description="From a side as the files name it to train, val or test."
    )
    test_fold: str = Field("", description="The official fold to test on, where there is no split.")
    empty_masks: Literal["keep", "unset", "drop"] = Field(
        "keep",
        description="An empty mask is kept as such, or counts as none, or drops its image.",
    )
    exact_copies: Literal["keep", "drop"] = Field(
        "keep", description="Whether an image with the same pixels as an earlier one is dropped."
    )
    inside_image: bool = Field(
        False, description="Whether a mask is set to 0 where the image is 0 (outside the sector)."
    )
    ignored: tuple[str, ...] = Field((), description="Patterns of files that are not read.")

    @model_validator(mode="after")
    def _names_fit(self) -> "DownloadLayout":
        names = {layer.name for layer in self.masks}
        for erratum in self.errata:
            if erratum.layer and erratum.layer not in names:
                raise ValueError(f"an erratum is about the layer '{erratum.layer}', which is none")
        if compiled(self.images.files).search(self.example) is None:
            raise ValueError(
                f"the example '{self.example}' does not match the pattern of the images"
            )
        return self
