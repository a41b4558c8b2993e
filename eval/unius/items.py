"""What a download holds of a set: its images, and for each what the other files say of it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from echostill.eval.unius.delimited import read_delimited
from echostill.eval.unius.download import Download
from echostill.eval.unius.layouts import (
    DownloadLayout,
    Erratum,
    FoldFiles,
    MaskFiles,
    MaskLayer,
    SideTable,
    compiled,
)
from echostill.eval.unius.shapes import MarkedArea, read_coco, read_via
from echostill.platform.errors import UsageError, nearest
from echostill.platform.imaging.containers import SUFFIXES

_SUFFIX = re.compile(rf"(?:{'|'.join(re.escape(suffix) for suffix in SUFFIXES)})$", re.IGNORECASE)


@dataclass
class LayerOf:
    """A layer of one image: the files that show it, or its regions."""

    layer: MaskLayer
    how: MaskFiles
    files: list[str] = field(default_factory=list)
    regions: list[MarkedArea] | None = None  # of a file that describes many images


@dataclass
class Item:
    """An image of the set, or a volume of several, with what is known of it before it is read."""

    key: str
    file: str
    group: str = ""
    label: str = ""  # as the files have it
    split: str = ""  # as the files have it
    fold: str = ""  # the official fold in which it is held out
    pixel_mm: str = ""
    layers: list[LayerOf] = field(default_factory=list)
    errata: list[Erratum] = field(default_factory=list)


@dataclass(frozen=True)
class Stray:
    """Something that belongs to no image, or an image that another one has taken the place of."""

    source: str
    key: str
    why: str


@dataclass(frozen=True)
class Assembled:
    """The images of a download, sorted by key, and what could not be placed."""

    items: list[Item]
    strays: list[Stray]  # an image that several files speak of, and that is missing, is one
    unread: list[str]  # files that no pattern of the card matches


def matches(pattern: str, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the paths that end as a pattern says, with the values of its groups."""
    search = compiled(pattern).search
    for name in names:
        found = search(name)
        if found is not None:
            yield name, {key: value or "" for key, value in found.groupdict().items()}


def assemble(download: Download, layout: DownloadLayout) -> Assembled:
    """Find the images of a download and everything that is said of them.

    Raises:
        UsageError: A table, a list or a file of polygons is missing, or cannot be read.
    """
    items, strays = _images(download, layout)
    read = {item.file for item in items.values()} | set(strays)
    for layer in layout.masks:
        read |= _add_layer(download, layer, items, strays)
    layers = {layer.name: layer for layer in layout.masks}
    for erratum in layout.errata:
        read |= _add_erratum(download, erratum, layers.get(erratum.layer), items)
    for table in layout.tables:
        read |= _add_table(download, table, items, strays)
    for folds in layout.folds:
        read |= _add_folds(download, folds, items)
    ignored = [compiled(pattern) for pattern in layout.ignored]
    unread = [
        name
        for name in download.names
        if name not in read and not any(pattern.search(name) for pattern in ignored)
    ]
    return Assembled([items[key] for key in sorted(items)], list(strays.values()), unread)


def _images(download: Download, layout: DownloadLayout) -> tuple[dict[str, Item], dict[str, Stray]]:
    images = layout.images
    items: dict[str, Item] = {}
    strays: dict[str, Stray] = {}
    for name, values in matches(images.files, download.names):
        key = images.key.format_map(values)
        if key in items:
            why = f"has the same key '{key}' as '{items[key].file}'"
            strays[name] = Stray(name, key, why)
            continue
        items[key] = Item(
            key,
            name,
            images.group.format_map(values),
            images.label.format_map(values),
            images.split.format_map(values),
        )
    return items, strays


def _add_layer(
    download: Download, layer: MaskLayer, items: dict[str, Item], strays: dict[str, Stray]
) -> set[str]:
    """Add the layer's files to their images, from the first kind that the download has."""
    for how in layer.files:
        found = list(matches(how.files, download.names))
        if not found:
            continue
        owners: dict[str, LayerOf] = {}
        if how.reads in ("coco", "via"):
            for key, source, region in _regions(download, how, found):
                part = owners.setdefault(key, LayerOf(layer, how, [source], []))
                if region is not None and part.regions is not None:
                    part.regions.append(region)
        else:
            for name, values in found:
                key = how.key.format_map(values)
                owners.setdefault(key, LayerOf(layer, how)).files.append(name)
        for key, part in owners.items():
            if key in items:
                items[key].layers.append(part)
            else:
                why = f"is a mask ({layer.name}) of '{key}', of which there is no image"
                strays.setdefault(f"no image {key}", Stray(part.files[0], key, why))
        return {name for name, _ in found}
    if layer.needed:
        raise _incomplete(download, f"mask ({layer.name})", layer.files[0].files)
    return set()


def _incomplete(download: Download, what: str, pattern: str) -> UsageError:
    return UsageError(
        f"'{download.location}' has no {what} whose path ends as '{pattern}': the download is "
        "incomplete."
    )


def _regions(
    download: Download, how: MaskFiles, found: list[tuple[str, dict[str, str]]]
) -> Iterator[tuple[str, str, MarkedArea | None]]:
    """Yield key, file and region of files that describe many images; None for an image without."""
    for name, values in found:
        if how.reads == "coco":
            images, regions = read_coco(name, download.read(name))
            for image in images:
                row = {**values, **{key: str(value) for key, value in image.items()}}
                key = _key(how.key, row, name)
                yield key, name, None
                for region in regions[int(image["id"])]:
                    yield key, name, region
        else:
            rows = read_delimited(name, download.read(name), "comma", "yes")
            for row, one in read_via(name, rows, how.only):
                yield _key(how.key, {**values, **row}, name), name, one


def _add_erratum(
    download: Download, erratum: Erratum, layer: MaskLayer | None, items: dict[str, Item]
) -> set[str]:
    """Note an erratum with its images; files that it reads instead take the layer's place."""
    for item in items.values():
        if erratum.concerns(item.key):
            item.errata.append(erratum)
    if erratum.files is None or layer is None:
        return set()
    read = set()
    for name, values in matches(erratum.files.files, download.names):
        owner = items.get(erratum.files.key.format_map(values))
        if owner is None or erratum not in owner.errata:
            continue
        read.add(name)
        others = [part for part in owner.layers if part.layer.name != layer.name]
        owner.layers = [LayerOf(layer, erratum.files, [name]), *others]
    return read


def _add_table(
    download: Download, table: SideTable, items: dict[str, Item], strays: dict[str, Stray]
) -> set[str]:
    found = list(matches(table.files, download.names))
    if not found and table.needed:
        raise _incomplete(download, "table", table.files)
    grouped: dict[str, list[Item]] = {}
    for item in items.values():
        owner = item.key if table.of == "image" else item.group
        grouped.setdefault(owner, []).append(item)
    for name, values in found:
        rows = read_delimited(name, download.read(name), table.separator, table.header)
        missing = sorted(table.columns - rows[0].keys()) if rows else []
        if missing:
            raise UsageError(
                f"'{name}' has no column '{missing[0]}'.{nearest(missing[0], rows[0])} "
                f"It has: {', '.join(rows[0])}."
            )
        for row in rows:
            said = {**row, **values}
            key = _key(table.key, said, name)
            owned = grouped.get(key, [])
            if not owned and table.of == "image" and key:
                why = f"lists '{key}', but there is no image of it"
                strays.setdefault(f"no image {key}", Stray(name, key, why))
            for item in owned:
                _say(item, table, said)
    return {name for name, _ in found}


def _say(item: Item, table: SideTable, row: Mapping[str, str]) -> None:
    for what in ("label", "group", "split", "fold", "pixel_mm"):
        template = getattr(table, what)
        if template:
            setattr(item, what, template.format_map(row))


def _add_folds(download: Download, folds: FoldFiles, items: dict[str, Item]) -> set[str]:
    found = list(matches(folds.files, download.names))
    if not found:
        raise _incomplete(download, "file of the official folds", folds.files)
    for name, values in found:
        if folds.reads == "coco":
            if values["part"] != folds.held_out:
                continue
            images, _ = read_coco(name, download.read(name))
            held = [_without_suffix(str(image["file_name"])) for image in images]
        else:
            held = _by_position(name, download.read(name), folds, items)
        for key in held:
            if key not in items:
                continue  # a stray of the masks, or an image that the download lacks
            if items[key].fold:
                raise UsageError(
                    f"'{name}' holds out '{key}', which fold {items[key].fold} holds out already."
                )
            items[key].fold = values["fold"]
    return {name for name, _ in found}


def _by_position(name: str, data: bytes, folds: FoldFiles, items: dict[str, Item]) -> list[str]:
    """Return the keys at the listed positions among the names, sorted by their numbers."""
    numbered = [item.key for item in items.values() if not folds.split or item.split == folds.split]
    numbered.sort(key=_numeric)
    try:
        positions = [int(position) for position in json.loads(data)[folds.held_out]]
        return [numbered[position] for position in positions if _in_range(position, numbered)]
    except (ValueError, KeyError, TypeError, IndexError):
        raise UsageError(
            f"'{name}' is not a JSON of lists of positions below {len(numbered)}, one of them "
            f"called '{folds.held_out}': the download is incomplete, or another release."
        ) from None


def _in_range(position: int, numbered: list[str]) -> bool:
    if not 0 <= position < len(numbered):
        raise IndexError(position)
    return True


def _numeric(key: str) -> tuple[list[int], str]:
    """Sort by the numbers in a key, so that 10 comes after 9."""
    return [int(number) for number in re.findall(r"\d+", key)], key


def _key(template: str, row: Mapping[str, str], name: str) -> str:
    try:
        return _without_suffix(template.format_map(row))
    except KeyError as error:
        raise UsageError(f"'{name}' has no column {error}. It has: {', '.join(row)}.") from None


def _without_suffix(name: str) -> str:
    """Return a file's name without what says its format: tables name images with it or without."""
    return _SUFFIX.sub("", name)
