"""``/v1/embeddings``: texts to vectors, with the fields and the forms of OpenAI's reference."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from arcweld.runtime.llm.adapters import LoRARequest
from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.pooling import normalised
from arcweld.serving.errors import SERVER, Refusal
from arcweld.serving.generation import Generator
from arcweld.serving.worker import Ended


class EmbeddingRequest(BaseModel):
    """The body of ``/v1/embeddings``. ``user`` has no effect."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Texts or tokens. Raises Refusal for none and for an empty one."""
        given: Any = self.input
        alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        found = [given] if alone else list(given)
        if not found or not all(found):
            raise Refusal(400, "an input is empty", param="input")
        return found


async def embeddings(generator: Generator, body: EmbeddingRequest, salt: bytes) -> dict[str, Any]:
    """The answer: for each input the last token's hidden state, of length 1. Raises Refusal.

    salt  keeps the prefix cache's pages apart from those of requests with another one
    """
    generator.check_model(body.model)
    if not generator.llm.core.description.embeddings:
        raise Refusal(
            400, "the model gives no embeddings", reason="not_supported",
            hint="build its engine with arcweld build-llm --embeddings",
        )  # fmt: skip
    if body.dimensions is not None:
        raise Refusal(400, "dimensions are fixed: the model's vectors cannot be shortened", param="dimensions")
    prompts = [p if isinstance(p, list) else await generator.encode(p) for p in body.inputs]
    for p in prompts:
        generator.check_length(p, "input")
    outputs = await _computed(generator, prompts, generator.settings.adapters.get(body.model), salt)
    count = sum(len(p) for p in prompts)
    return {
        "id": f"embd-{uuid.uuid4().hex}", "object": "list", "model": body.model,
        "data": [_entry(k, out, body.encoding_format or "float") for k, out in enumerate(outputs)],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }  # fmt: skip


async def _computed(
    generator: Generator, prompts: Sequence[Sequence[int]], adapter: LoRARequest | None, salt: bytes
) -> list[RequestOutput]:  # fmt: skip
    found: dict[int, RequestOutput] = {}
    params = SamplingParams(max_tokens=1, pooling="last")
    async with generator.worker.request(prompts, params, pieces=False, adapter=adapter, salt=salt) as events:
        async for event in events:
            assert isinstance(event, Ended)
            found[event.prompt] = event.output
    return [found[k] for k in sorted(found)]


def _entry(index: int, out: RequestOutput, encoding: str) -> dict[str, Any]:
    if out.embedding is None:
        text = f"the request failed: {out.outputs[0].error}"
        raise Refusal(500, text, kind=SERVER, reason="generation_failed")
    vector = normalised(out.embedding)
    plain: list[float] | str = vector.tolist()
    if encoding == "base64":  # of f32, little-endian
        plain = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": plain}
