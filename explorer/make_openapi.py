"""Write the OpenAPI document of the service, from which the explorer's types are generated.

.venv/bin/python explorer/make_openapi.py
"""

from pathlib import Path

from echostill.curation.service.http.app import create_api
from echostill.curation.service.http.openapi import openapi_text

if __name__ == "__main__":
    target = Path(__file__).with_name("openapi.json")
    target.write_text(openapi_text(create_api()), encoding="utf-8")
