from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from echostill.curation.service.http.security import SecurityMiddleware
from echostill.curation.service.on_ray import ServeArguments, application

MANIFEST = Path(__file__).resolve().parents[3] / "infra" / "serve.yaml"


def test_the_manifest_names_what_exists_and_stays_at_home():
    document = yaml.safe_load(MANIFEST.read_text())
    assert document["http_options"]["host"] == "127.0.0.1"
    for found in document["applications"]:
        module, _, name = found["import_path"].partition(":")
        assert callable(getattr(import_module(module), name))
        assert ServeArguments(**found["args"]).address == "auto"
        assert found["runtime_env"]["env_vars"]["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_application_is_the_services(built, tmp_path):
    token = str(tmp_path / "token")
    found = application(ServeArguments(store=str(built), token_file=token, address=None))
    assert isinstance(found, SecurityMiddleware)
    assert Path(token).stat().st_mode & 0o077 == 0


def test_unknown_arguments_are_refused():
    with pytest.raises(ValidationError):
        ServeArguments(store="x", replicas=4)
