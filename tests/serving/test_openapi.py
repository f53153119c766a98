"""The API's description is true: schemathesis sends what it allows and what it does not, and checks the answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from served import NAME, Application, idle, package, served

from arcweld.runtime.llm.llm import LLM
from arcweld.serving.settings import Limits, Settings
from arcweld.serving.tool_calls.forms import FORMS

EXAMPLES = 200 if os.environ.get("ARCWELD_EVERY") else 15
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
KEY = {"authorization": "Bearer secret"}
OPERATIONS = [
    "POST /v1/completions", "POST /v1/chat/completions", "POST /v1/embeddings", "POST /tokenize", "POST /detokenize",
    "GET /v1/models", "GET /v1/models/{name}", "GET /health", "GET /metrics",
]  # fmt: skip
MOST_LIKELY = {"GET /v1/models/{name}": 404, "POST /v1/embeddings": 400}  # the model gives none


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Application, Any]]:
    llm = LLM(package(), device="sim", max_num_seqs=4)
    app = Application(llm, Settings(NAME, ("secret",), Limits(queue=8, seconds=20), calls=FORMS["hermes"]))
    with served(app) as (address, _):
        yield app, schemathesis.openapi.from_url(f"{address}/openapi.json")


def operation(schema: Any, name: str) -> Any:
    return next(found.ok() for found in schema.get_all_operations() if found.ok().label == name)


def test_every_operation_is_here(running: tuple[Application, Any]) -> None:
    assert {found.ok().label for found in running[1].get_all_operations()} == set(OPERATIONS)


def usual(body: dict[str, Any]) -> dict[str, Any]:
    """The body with values that a schema cannot say, so that more of what follows them is reached."""
    found = {k: v for k, v in body.items() if k not in ("suffix", "structured_outputs", "logit_bias", "stop_token_ids")}
    if "prompt" in found:
        found["prompt"] = "a"
    if "tokens" in found:
        found["tokens"] = [5, 6]
    if found.get("messages"):
        found["messages"] = [{"role": m["role"], "content": "a"} for m in found["messages"] if m["role"] != "tool"]
        found.pop("max_completion_tokens", None)
        found.pop("prompt", None)
    if not found.get("stream"):
        found.pop("stream_options", None)
    if not found.get("logprobs"):
        found.pop("top_logprobs", None)
    return found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=[m.value for m in list(GenerationMode)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_answers_are_as_described(running: tuple[Application, Any], name: str, mode: GenerationMode) -> None:
    app, schema = running
    found = operation(schema, name)
    if mode is GenerationMode.NEGATIVE and not (found.body or found.path_parameters):
        pytest.skip("it takes nothing that could be wrong")

    @given(data=st.data())
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def test(data: st.DataObject) -> None:
        case = data.draw(found.as_strategy(generation_mode=mode))
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body = {**case.body, "model": NAME}
            if data.draw(st.booleans()):
                case.body = usual(case.body)
            if "completions" in name:
                case.body["max_tokens"] = 2  # what is long is no news
        checks = CHECKS if mode is GenerationMode.POSITIVE else [*CHECKS, negative_data_rejection]
        seen.append(case.call_and_validate(headers=KEY, checks=checks, timeout=60).status_code)

    seen: list[int] = []
    test()
    idle(app)
    if mode is GenerationMode.POSITIVE:
        assert MOST_LIKELY.get(name, 200) in seen, seen


def test_other_methods_and_strangers(running: tuple[Application, Any]) -> None:
    _, schema = running
    for name in OPERATIONS:
        found = operation(schema, name)
        given: Any = {"path_parameters": {"name": "tiny"} if "{" in name else {}, "media_type": "application/json"}
        response = found.Case(**given, body={}).call(headers={})
        assert response.status_code == (200 if name in ("GET /health", "GET /metrics") else 401)
        case = found.Case(**given, method="PATCH")
        case.call_and_validate(headers=KEY, checks=[not_a_server_error, unsupported_method])
        response = case.call(headers=KEY)
        assert response.status_code == 405
        assert response.headers["allow"] == [name.split()[0]]
