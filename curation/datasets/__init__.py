"""A coreset taken elsewhere: files that other tools load, with a card, and a dataset for torch."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.curation.datasets.torch_dataset import CoresetDataset
    from echostill.curation.datasets.writing import ExportedDataset, export_dataset

_HOMES = {
    "CoresetDataset": "torch_dataset",
    "ExportedDataset": "writing",
    "export_dataset": "writing",
}

__all__ = ["CoresetDataset", "ExportedDataset", "export_dataset"]

__getattr__ = lazy(__name__, _HOMES)
