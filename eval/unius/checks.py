"""Is a download what a card says? Its layout, counts, checksums, labels and sides."""

from collections import Counter
from collections.abc import Sequence

from echostill.eval.unius.cards import Card, published_cards
from echostill.eval.unius.download import Download
from echostill.eval.unius.items import Item, matches
from echostill.eval.unius.layouts import DownloadLayout
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import DecodeError

SHOWN = 3  # names that a message lists
_SIDES = ("train", "val", "test")


class OutsideCardError(DecodeError):
    """A row whose label, or side of the split, is none that the card knows."""


def where_to_get(card: Card) -> str:
    """Say where a set is to be had, and what its licence is; nothing is downloaded by us."""
    return (
        f"Get {card.title} from {card.page} (licence: {card.licence.name}; "
        f"{card.licence.allows}) and give the folder or archive with --from; nothing is downloaded."
    )


def choose_layout(card: Card, download: Download) -> DownloadLayout:
    """Return the layout, of those with images, of which the download has most files.

    Raises:
        UsageError: It has none: says what was expected, what is there, and whose it may be.
    """
    if max(_images(card, download)) > 0:
        found = [layout for layout in card.layouts if _count(layout.images.files, download)]
        return max(found, key=lambda layout: _files(layout, download))  # of equals the first
    expected = " or ".join(f"'{layout.example}' ({layout.name})" for layout in card.layouts)
    shown = ", ".join(f"'{name}'" for name in download.names[:SHOWN]) or "nothing"
    likeliest = max(
        (other for other in published_cards().values() if other.name != card.name),
        key=lambda other: max(_images(other, download)),
    )
    alike = max(_images(likeliest, download)) > 0
    hint = f" Its names look like those of {likeliest.name}." if alike else ""
    raise UsageError(
        f"'{download.location}' has no image of {card.name}: expected paths such as {expected}, "
        f"under any folder; found {shown}{', ...' if len(download.names) > SHOWN else ''}.{hint} "
        f"{where_to_get(card)}"
    )


def _images(card: Card, download: Download) -> list[int]:
    """Count the images that a download has of each layout."""
    return [_count(layout.images.files, download) for layout in card.layouts]


def _files(layout: DownloadLayout, download: Download) -> int:
    """Count the files of images, masks and tables that a download has of a layout."""
    patterns = [layout.images.files, *(table.files for table in layout.tables)]
    patterns += [files.files for layer in layout.masks for files in layer.files]
    return sum(_count(pattern, download) for pattern in patterns)


def _count(pattern: str, download: Download) -> int:
    return sum(1 for _ in matches(pattern, download.names))


def checksum_differences(card: Card, files: Download) -> list[str]:
    """Say which files, or archives, have another checksum than the card's."""
    names = [*files.archives, *files.names]
    different = []
    for pattern, checksum in card.expected.checksums.items():
        for name, _ in matches(pattern, names):
            found = files.checksum(name)
            if found != checksum:
                different.append(
                    f"'{name}' has the SHA-256 {found[:12]}..., not {checksum[:12]}..."
                )
    return different


def count_differences(
    card: Card, layout: DownloadLayout, images: int, items: Sequence[Item]
) -> list[str]:
    """Say which counts of images, and of their labels where items are given, are others."""
    expected = card.expected
    different = []
    if expected.images is not None and images != expected.images:
        different.append(f"{images} images instead of {expected.images}")
    if expected.labels and items:
        counted = Counter(label_of(card, layout, item, strict=False) for item in items)
        for label, count in expected.labels.items():
            if counted[label] != count:
                different.append(f"{counted[label]} images of '{label}' instead of {count}")
    return different


def require_equal(card: Card, differences: list[str], accepted: bool) -> None:
    """Refuse differences that nobody has accepted.

    Raises:
        UsageError: Names them.
    """
    if differences and not accepted:
        raise UsageError(
            f"the download is not what the card of {card.name} expects: {'; '.join(differences)}. "
            "It is incomplete, or another release: download it again, or go on with "
            "--accept-differences, which the manifest will say."
        )


def label_of(card: Card, layout: DownloadLayout, item: Item, strict: bool = True) -> str:
    """Return an item's class; empty where it has none."""
    corrected = next((e.label for e in item.errata if e.does == "label"), "")
    known = {name.casefold(): name for name in card.classes}
    raw = corrected or item.label
    if not corrected and layout.labels:
        mapped = {name.casefold(): label for name, label in layout.labels.items()}
        if raw and raw.casefold() not in mapped:
            if strict:
                raise OutsideCardError(f"has the label '{raw}', which the card does not know")
            return raw
        raw = mapped.get(raw.casefold(), "")
    if raw and known and raw.casefold() not in known:
        if strict:
            raise OutsideCardError(f"has the label '{raw}', which is none of the card's classes")
        return raw
    return known.get(raw.casefold(), raw)


def side_of(layout: DownloadLayout, item: Item, official: bool) -> str:
    """Return an item's side of the official split; empty where the set has none."""
    if not official:
        return ""
    side = layout.splits.get(item.split, item.split)
    if side not in _SIDES:
        said = f"the side '{item.split}'" if item.split else "no side"
        raise OutsideCardError(f"has {said} of the official split, in which all others are")
    return side
