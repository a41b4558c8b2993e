import subprocess
import sys

import pytest

from echostill.curation.service.serving import serve
from echostill.platform.errors import UsageError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ssl_keyfile": "none.pem"}, "no file 'none.pem'"),
        ({"host": "0.0.0.0"}, "--allowed-host"),
    ],
)
def test_unsafe_or_half_given_options_are_refused(built, options, words):
    with pytest.raises(UsageError, match=words):
        serve(str(built), **options)


def test_half_of_tls_is_refused(built, tmp_path):
    key = tmp_path / "key.pem"
    key.write_text("x")
    with pytest.raises(UsageError, match="needs both"):
        serve(str(built), ssl_keyfile=str(key))


@pytest.mark.slow
def test_no_pool_is_wrong_usage(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "echostill.jobs.cli.main", "serve", str(tmp_path / "none")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "run `echostill ingest` first" in done.stderr
    assert not (tmp_path / "none.token").exists()
