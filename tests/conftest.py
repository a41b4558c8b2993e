"""One Ray for the whole session: starting it costs ten seconds."""

import os
import socket
import subprocess
import sys
import tempfile

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

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
            runtime.connect()
            yield
            ray.shutdown()


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
