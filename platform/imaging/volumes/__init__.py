"""Volumes of slices: NIfTI and MetaImage."""
