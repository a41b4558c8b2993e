"""Generated requests: none makes the service fail or break the schemas of its document."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

EXAMPLES = 15  # of each operation
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
def test_no_request_makes_the_service_fail_or_break_its_schemas(live, make):
    headers = {"Authorization": f"Bearer {make['token']}"}
    document = schemathesis.openapi.from_url(f"{live.url}/v1/openapi.json", headers=headers)
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 25
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case):
            # A first SQL starts a process of its own, which takes its time on a busy machine.
            case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

        check()
