"""Volumes of slices: NIfTI, NRRD and MetaImage."""
