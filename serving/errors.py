"""Requests that are refused or that fail: a status of HTTP with OpenAI's form of an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from arcweld.compiler.errors import ArcweldError

INVALID, LIMIT, SERVER = "invalid_request_error", "rate_limit_error", "server_error"


class Refusal(ArcweldError):
    """A request that is refused or that failed.

    status       of HTTP
    kind         ``type`` in OpenAI's form: who is at fault
    reason       ``code`` in OpenAI's form: a stable identifier; None if there is nothing to tell apart
    param        the field of the request at fault
    retry_after  seconds after which to try again; None: trying again does not help
    """

    code = "serving"

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, reason: str | None = None, param: str | None = None,
        retry_after: int | None = None, hint: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint)
        self.status, self.kind, self.reason, self.param = status, kind, reason, param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        text = self.message + (f" ({self.hint})" if self.hint else "")
        return {"error": {"message": text, "type": self.kind, "param": self.param, "code": self.reason}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response. OpenAI's clients try some errors again unless ``x-should-retry`` says no."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        return {"x-should-retry": "false"} if self.status in (408, 500) else {}

    def response(self) -> Response:
        """The error as a response."""
        return json_response(self.body, self.status, self.headers)


def refused(error: ArcweldError) -> Refusal:
    """An error of the engine's about a request, as the fault of the request."""
    return error if isinstance(error, Refusal) else Refusal(400, error.message, hint=error.hint)


def json_text(content: Any) -> bytes:
    """JSON in ASCII: a client may have sent halves of surrogate pairs, which UTF-8 cannot hold."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response in JSON."""
    return Response(json_text(content), status, dict(headers or {}), "application/json")
