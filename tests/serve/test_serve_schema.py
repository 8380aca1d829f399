"""Requests made from the OpenAPI schema, by schemathesis: no failure, and no answer that the schema does not know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from m3el_fast.serve.app import create_app
from serve.serving import Served

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[dev]'")


@pytest.mark.parametrize("examples", [6, pytest.param(500, marks=pytest.mark.slow)])
def test_requests_of_the_schema(examples: int, served: Served) -> None:
    api = schemathesis.openapi.from_asgi("/openapi.json", create_app(served.service(kb=True)))
    operations = [found.ok() for found in api.get_all_operations()]
    names = {operation.label for operation in operations}
    assert names == {"POST /link", "GET /entities/{id}", "GET /entities/{id}/image", "GET /healthz"}
    quiet = settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    for operation in operations:
        modes = schemathesis.GenerationMode
        # any text may be an id, and of requests without parameters none is wrong
        for mode in modes if operation.method == "post" else (modes.POSITIVE,):

            @quiet
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                # But for one check: the schema cannot say which texts are images, which strings ids of this index, and
                # that k is at most the number of candidates.
                excluded = [schemathesis.checks.positive_data_acceptance]
                # Nor for another: a form has texts and files, and a value of a wrong type goes into it as a good text.
                if case.media_type == "multipart/form-data":
                    excluded.append(schemathesis.checks.negative_data_rejection)
                case.call_and_validate(excluded_checks=excluded)

            check()
