"""DICOM files: opened, their frames found, decoded and shown."""

from echostill.platform.imaging.dicom.opening import READER, open_dicom

__all__ = ["READER", "open_dicom"]
