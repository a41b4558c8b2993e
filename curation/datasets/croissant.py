"""Croissant metadata (version 1.0): what machines read about a dataset.

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from typing import Any

import pyarrow as pa

from echostill.curation.datasets.card import MEANINGS, Facts
from echostill.curation.datasets.forms import Form
from echostill.platform.tables.storage import sha256

VERSION = "http://mlcommons.org/croissant/1.0"
# The context of the specification, appendix 1, with the terms that are used here.
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_FILES = {  # form: what its files with pictures are
    "folder": ("*/*/*", "image/png"),
    "csv": ("images/*", "image/png"),
    "webdataset": ("*.tar", "application/x-tar"),
    "hf": ("data/*.parquet", "application/x-parquet"),
    "parquet": ("*/*.parquet", "application/x-parquet"),
    "originals": ("originals/*", "application/octet-stream"),
}


def croissant(facts: Facts, form: Form, schema: pa.Schema, metadata: bytes) -> dict[str, Any]:
    """Describe a dataset.

    Args:
        facts: What is known of it.
        form: Its form.
        schema: Columns of its table of images.
        metadata: That table as CSV.

    Returns:
        JSON-LD, as plain values. It describes the table of images field by field, and the files
        with pictures as a set of files.
    """
    names = [*(["file_name"] if form.file_per_image else []), *schema.names]
    includes, encoding = _FILES[form.name]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": facts.title,
        "description": facts.description,
        "conformsTo": VERSION,
        "license": facts.licence or "unknown",
        "version": "1.0.0",
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "metadata",
                "name": "metadata",
                "description": "A row per image.",
                "contentUrl": "metadata.csv",
                "encodingFormat": "text/csv",
                "sha256": sha256(metadata),
                "contentSize": f"{len(metadata)} B",
            },
            {
                "@type": "cr:FileSet",
                "@id": "pictures",
                "name": "pictures",
                "description": f"The files with pictures: {form.summary}.",
                "encodingFormat": encoding,
                "includes": includes,
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "images",
                "name": "images",
                "description": "The images and what is known of them.",
                "key": {"@id": "images/image_id"},
                "field": [_field(name, schema) for name in names],
            }
        ],
    }


def _field(name: str, schema: pa.Schema) -> dict[str, Any]:
    kind = schema.field(name).type if name in schema.names else pa.string()
    data_type = (
        "sc:Boolean"
        if pa.types.is_boolean(kind)
        else "sc:Integer"
        if pa.types.is_integer(kind)
        else "sc:Text"
    )
    return {
        "@type": "cr:Field",
        "@id": f"images/{name}",
        "name": name,
        "description": MEANINGS[name],
        "dataType": data_type,
        "source": {"fileObject": {"@id": "metadata"}, "extract": {"column": name}},
    }
