"""What all tests share: one Ray for the session, since starting it costs ten seconds.

A test that starts Ray or a browser is marked by the fixture it takes; one that starts Ray in a
process of its own is marked by hand. Without the mark it cannot start either, so no mark is
forgotten and `make test-fast` stays fast.
"""

import atexit
import http.server
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
# What is derived from the stores of the tests ends with them, and stores of equal content share it.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="echostill-tests-")

import pytest
import ray
from hypothesis import HealthCheck, settings

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# No test depends on how fast the machine is.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

MARKED_BY_FIXTURE = {"ray_cluster": "ray", "browser": "browser"}


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    for item in items:
        for fixture in MARKED_BY_FIXTURE.keys() & set(item.fixturenames):
            item.add_marker(MARKED_BY_FIXTURE[fixture])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Around a test and the fixtures that are made for it."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("ray") is None:
            forbid_ray(patch, item.nodeid)
        if item.get_closest_marker("browser") is None:
            patch.setitem(sys.modules, "playwright.sync_api", None)  # importing it is an error
        return (yield)


def forbid_ray(patch, test):
    """Make Ray impossible to start and a running one invisible, here and in child processes."""

    def refuse(*arguments, **options):
        pytest.fail(f"{test} starts Ray: mark it with @pytest.mark.ray")

    patch.setattr(ray, "init", refuse)
    patch.setattr(ray, "is_initialized", lambda: False)
    patch.delenv("RAY_ADDRESS", raising=False)  # so that none is checked, and one would be started:
    patch.setenv("RAY_TMPDIR", "/dev/null/this-test-is-not-marked-ray")  # where Ray cannot


@pytest.fixture(scope="session")
def ray_cluster():
    from echostill.platform import runtime

    if not ray.is_initialized():
        with tempfile.TemporaryDirectory(prefix="echo-") as folder:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                log_to_driver=False,
                _temp_dir=folder,
            )
            runtime.connect_ray()
            yield
            ray.shutdown()


@pytest.fixture
def closed_port():
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and nobody will: it stays taken
        yield probe.getsockname()[1]


@pytest.fixture
def silent_port():
    """A port of this machine that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_server():
    """A real HTTP server that gives every request its ``reply``: a status and a page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, page = self.server.reply
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_HEAD = do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.reply = 200, b""
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="session")
def object_store():
    """A real S3 server on loopback, with a bucket; as environment variables for its clients."""
    import boto3
    from botocore.config import Config

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=Config(connect_timeout=1, retries={"max_attempts": 60, "mode": "standard"}),
        )
        client.create_bucket(Bucket="hospital")
        yield environment
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def dicom():
    """Write DICOM files, as bytes."""
    return write_dicom


def write_dicom(values=None, photometric="MONOCHROME2", syntax="1.2.840.10008.1.2.1", **elements):
    """Write a DICOM file; ``values`` (frames, H, W[, 3]), or None for no pixels.

    ``PixelData`` among the elements replaces the values' bytes; None leaves an element out.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRBigEndian, UltrasoundImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundImageStorage, "1.2.3"
    dataset.StudyInstanceUID, dataset.PatientID = "1.2", "SECRET-7"
    if values is not None:
        bits = values.dtype.itemsize * 8
        dataset.SamplesPerPixel = 3 if values.ndim == 4 else 1
        if values.ndim == 4:
            dataset.PlanarConfiguration = 0
        dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape[:3]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(values.dtype.kind == "i")
        dataset.PhotometricInterpretation = photometric
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        stored = values.astype(values.dtype.newbyteorder(order)).tobytes()
        dataset.PixelData = stored + b"\0" * (len(stored) % 2)
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    sink = io.BytesIO()
    little = syntax != ExplicitVRBigEndian
    implicit = syntax == "1.2.840.10008.1.2"
    known = not UID(syntax).is_private and UID(syntax).is_transfer_syntax
    dataset.save_as(
        sink,
        enforce_file_format=True,
        **({} if known else {"implicit_vr": implicit, "little_endian": little}),
    )
    return sink.getvalue()


@pytest.fixture(scope="session")
def sample():
    """The quickstart's pool of real images."""
    return Path(__file__).resolve().parent.parent / "examples/quickstart/pool"


@pytest.fixture(scope="session")
def make_pool(tmp_path_factory):
    """Read files as ingest does, without Ray: ``make_pool(store, {name: bytes}, groups)``."""
    import pyarrow as pa

    from echostill.curation.deidentification.settings import DeidentifySettings
    from echostill.curation.ingestion.listing import list_sources
    from echostill.curation.ingestion.settings import IngestSettings
    from echostill.curation.ingestion.sources import read_source
    from echostill.platform.tables.schemas import POOL_SCHEMA
    from echostill.platform.tables.table import Table, write_table

    def make(store, files, groups=None, rows_per_part=7):
        folder = tmp_path_factory.mktemp("files")
        lines = ["file,group"]
        for name, data in files.items():
            (folder / name).write_bytes(data)
            lines.append(f"{name},{(groups or {}).get(name, '')}")
        (folder / "list.csv").write_text("\n".join(lines) + "\n")
        plain = DeidentifySettings(pixels="off")
        settings = IngestSettings(source=str(folder / "list.csv"), deidentify=plain)
        rows = [row for source in list_sources(settings) for row in read_source(source, settings)]
        table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
        counted = {"rows_in": table.num_rows, "quarantined": 0}
        write_table(store.pool(), table, stage="ingest", fingerprint={"digest": ""},
                    rows_per_part=rows_per_part, extra=counted)  # fmt: skip
        return Table.open(store.pool(), "ingest")

    return make
