"""De-identification: the sector, burned-in text, pseudonyms, review."""
