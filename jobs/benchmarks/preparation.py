"""Benchmarks: the cards of eval, prepared with the search for copies of curation."""

from echostill.curation.copies.look_alikes import LookAlikes
from echostill.eval.unius.cards import find_card
from echostill.eval.unius.prepare import prepare
from echostill.eval.unius.prepared import PreparedSet


def prepare_bench(
    name: str,
    download: str | None,
    folder: str,
    *,
    accept_differences: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparedSet:
    """Prepare a set of UniUS-Bench, or one that a card file describes.

    Args:
        name: Name of a published set, or path of a card (.yaml).
        download: Folder or archive, as it was downloaded; None says where to get it.
        folder: Folder or URI to write into.
        accept_differences: Go on where counts or checksums differ from the card's.
        overwrite: Replace a set that was prepared from something else.
        progress: Show a progress bar.

    Raises:
        UsageError: There is no such card or download, or it is not what the card says.
    """
    return prepare(
        find_card(name),
        download,
        folder,
        LookAlikes(),
        accept_differences=accept_differences,
        overwrite=overwrite,
        progress=progress,
    )
