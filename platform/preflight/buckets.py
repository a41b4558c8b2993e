"""Whether an object store answers, and lets a bucket be read.

Its client retries for minutes, and one that waits for an answer cannot even be ended. So a plain
request goes first.
"""

import os
from urllib.parse import parse_qsl

import pyarrow.fs as pafs

from echostill.platform.errors import UsageError

GOOGLE = "https://storage.googleapis.com"
# What Arrow's message says where the credentials are missing, unknown or not enough.
REFUSED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_SIGNATURE",
    "HTTP response code: 403",
    "HTTP status 403",
    "MISSING_AUTHENTICATION_TOKEN",
    "EXPIRED_TOKEN",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "OAuth2",
)
MISSING = ("NO_SUCH_BUCKET", "bucket does not exist")


def check_bucket(root: str, options: str) -> None:
    """Check that a folder of an object store can be looked into; it need not exist.

    Args:
        root: ``s3://bucket/folder`` or ``gs://bucket/folder``; other schemes are left to Arrow.
        options: Arrow's options of the URI, as in a query.

    Raises:
        UsageError: Nothing answers, there is no such bucket, or it may not be read.
    """
    scheme, _, rest = root.partition("://")
    if scheme not in ("s3", "gs"):
        return
    from echostill.platform.preflight.answers import SECONDS, NoAnswerError, ask

    bucket = _bucket(rest)
    given = dict(parse_qsl(options))
    endpoint = _endpoint(scheme, given)
    try:
        ask(f"{endpoint}/{bucket}", method="HEAD", proxies=False)  # Arrow takes no proxy either
    except NoAnswerError as error:
        variable = "AWS_ENDPOINT_URL" if scheme == "s3" else "endpoint_override"
        raise UsageError(
            f"cannot reach the object store of '{_shown(root)}' at {endpoint}: {error}. Expected "
            f"one that answers: correct the URI or the endpoint ({variable}), or mend the network."
        ) from None
    hasty = "&".join([*filter(None, [options]), f"retry_limit_seconds={SECONDS:g}"])
    query = hasty if scheme == "gs" else options
    try:
        filesystem, path = pafs.FileSystem.from_uri(f"{root}?{query}" if query else root)
        found = filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        raise refusal(root, error) or error from None
    if found.type == pafs.FileType.NotFound and given.get("allow_bucket_creation") != "true":
        _check_exists(filesystem, bucket, root)


def _check_exists(filesystem: pafs.FileSystem, bucket: str, root: str) -> None:
    """Tell a folder that is yet to come from a bucket that is not there."""
    try:
        found = filesystem.get_file_info(bucket)
    except OSError:  # credentials for a folder alone may not ask for its bucket
        return
    if found.type == pafs.FileType.NotFound:
        raise _missing(bucket, root)


def refusal(root: str, error: Exception) -> UsageError | None:
    """Say in words what an object store's client raised, where it is the request that is wrong."""
    text = str(error)
    bucket = _bucket(root.partition("://")[2])
    if any(word in text for word in MISSING):
        return _missing(bucket, root)
    if any(word in text for word in REFUSED):
        names = (
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
            if root.startswith("s3://")
            else "GOOGLE_APPLICATION_CREDENTIALS, or the machine's role"
        )
        return UsageError(
            f"the object store refuses access to '{_shown(root)}': expected credentials that may "
            f"read and write the bucket '{bucket}' ({names})."
        )
    return None


def _missing(bucket: str, root: str) -> UsageError:
    return UsageError(
        f"there is no bucket '{bucket}' for '{_shown(root)}': create it, or correct the URI."
    )


def _bucket(location: str) -> str:
    """The bucket of a URI without its scheme; credentials may stand before it (KEY:SECRET@)."""
    return location.partition("/")[0].rpartition("@")[2]


def _shown(root: str) -> str:
    """A URI for messages, without credentials."""
    scheme, _, rest = root.partition("://")
    _, _, folder = rest.partition("/")
    return f"{scheme}://{_bucket(rest)}" + (f"/{folder}" if folder else "")


def _endpoint(scheme: str, options: dict[str, str]) -> str:
    """The URL that Arrow's client of an object store talks to."""
    given = options.get("endpoint_override", "")
    if not given and scheme == "s3":
        given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if given:
        whole = given if "://" in given else f"{options.get('scheme', 'https')}://{given}"
        return whole.rstrip("/")
    if scheme == "gs":
        return GOOGLE
    region = options.get("region") or os.environ.get("AWS_REGION")
    region = region or os.environ.get("AWS_DEFAULT_REGION")
    if not region:  # Arrow asks this one for the bucket's region
        return "https://s3.amazonaws.com"
    return f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
