"""Tables and the store: Parquet parts with manifests, fingerprints, one filesystem layer."""
