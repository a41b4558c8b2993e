"""Columns of the tables: the contract between the stages."""

import pyarrow as pa

QUALITY_ISSUES = (
    "blank",
    "dark",
    "saturated",
    "blurred",
    "low_information",
    "odd_aspect",
    "odd_size",
    "overlay_text",
    "coloured",
    "small_sector",
)


def score_column(issue: str) -> str:
    """Return the name of the column that holds an issue's score; the flag has the issue's name."""
    return f"{issue}_score"


POOL_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # 128 bits, hexadecimal, from content and origin
        ("group_id", pa.string()),  # patient, study or clip: splits never cut through one
        ("source", pa.string()),  # path relative to the source's root, with #frame for cines
        ("organ", pa.string()),
        ("device", pa.string()),
        ("label", pa.string()),  # empty where unknown
        ("modality", pa.string()),  # one of platform/imaging/modality.py
        ("frame", pa.int32()),
        ("image", pa.large_binary()),  # staged PNG, JPEG or WebP, grey or RGB
        ("width", pa.int32()),  # of the staged image, in pixels
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("colour", pa.bool_()),  # whether the staged image is RGB
        ("content_hash", pa.string()),  # of the staged pixels
        ("mean", pa.float32()),  # brightness, 0..1
        ("contrast", pa.float32()),  # standard deviation of brightness, 0..1
        # For each issue a score, 0 bad to 1 good, and whether it is below its threshold.
        *((score_column(issue), pa.float32()) for issue in QUALITY_ISSUES),
        *((issue, pa.bool_()) for issue in QUALITY_ISSUES),
        ("perceptual_hash", pa.binary(64)),  # 256 bits of the picture, 256 of its sector
        ("thumbnail", pa.binary(512)),  # 16 x 16 grey of the picture, 16 x 16 of its sector
    ]
)

# A column more of the pool where text is redacted: share of the sector that was blackened, 0..1.
REDACTED = pa.field("redacted", pa.float32())

QUARANTINE_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("id", pa.string()),  # image id where one is known, else the source
        ("source", pa.string()),
        ("error_class", pa.string()),
        ("message", pa.string()),
    ]
)


def scores_schema(dimension: int, checkpoints: int) -> pa.Schema:
    """Columns of the scores: teacher features and gradient norms of the proxy."""
    # Parquet calls the items of a list "element": named so here, a table reads back as it was.
    half, single = pa.field("element", pa.float16()), pa.field("element", pa.float32())
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("feature", pa.list_(half, dimension)),  # L2-normalised
            ("gradient_mean", pa.float32()),
            ("gradient_std", pa.float32()),
            ("gradient", pa.list_(single, checkpoints)),  # one norm per proxy checkpoint
            ("reconstruction_error", pa.float32()),  # at the last checkpoint
        ]
    )


CORESET_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("group_id", pa.string()),
        ("cluster", pa.int32()),
        ("cluster_size", pa.int32()),
        ("distance", pa.float32()),  # to the own centroid
        ("distance_rank", pa.int32()),  # in the cluster, 1 = nearest
        ("gradient", pa.float32()),  # the quality score
        ("gradient_rank", pa.int32()),  # in the cluster, 1 = largest
        ("dual_rank", pa.float64()),
        ("cluster_rank", pa.int32()),  # in the cluster, 1 = taken first
        ("quota", pa.int32()),  # of the cluster (and stratum)
        ("stratum", pa.string()),  # value of the pool's column that `balance` names; else empty
        ("selected", pa.bool_()),
        ("reason", pa.string()),
    ]
)

DUPLICATES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("duplicate_group", pa.string()),  # smallest image id of the copies linked to each other
        ("kept", pa.bool_()),
        ("kept_id", pa.string()),  # the image that stays for this one; itself where it is kept
        ("kind", pa.string()),  # exact, near or semantic; empty where it is kept
        ("distance", pa.float32()),  # exact 0, near bits of 256, semantic 1 - cosine
        ("reason", pa.string()),
    ]
)

CONTRIBUTORS_SCHEMA = pa.schema(
    [
        ("store", pa.string()),  # the name that the merge gave it
        ("fingerprint", pa.string()),  # digest of its pool
        ("groups_join", pa.bool_()),  # whether its groups are those of the pool, under one key
        ("rows", pa.int64()),  # of its pool
        ("merged", pa.int64()),  # of these in the pool
        ("duplicates", pa.int64()),  # left out, with the pixels of an image of another store
        ("withdrawn", pa.int64()),  # left out, withdrawn from one of the stores
        ("quarantined", pa.int64()),
        ("groups", pa.int64()),  # of the merged rows
        ("organs", pa.string()),  # with their images, most first
        ("devices", pa.string()),
        ("scores", pa.string()),  # what became of them
        ("coresets", pa.string()),  # that stayed in the store, as runs and reports
        ("runs", pa.string()),
        ("reports", pa.string()),
        ("licence", pa.string()),  # empty where none was given
    ]
)

ORIGINS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("store", pa.string()),  # name of the contributor
        ("kept_id", pa.string()),  # the image that is in the pool for this one; itself where it is
    ]
)

LEAKS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # of the pool
        ("benchmark", pa.string()),
        ("benchmark_image", pa.string()),  # its file, as the benchmark's manifest names it
        ("kind", pa.string()),  # exact, near or semantic: the surest that was found
        ("distance", pa.float32()),  # exact 0, near bits of 256, semantic 1 - cosine
        ("reason", pa.string()),
    ]
)
