"""What a chat request says of the form of its answers, as structured outputs: ``response_format`` and tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcweld.runtime.llm.params import StructuredOutputsParams
from arcweld.runtime.llm.tokenizer import Tokenizer
from arcweld.serving.errors import Refusal
from arcweld.serving.messages import JsonSchemaFormat, NamedTool, Tool
from arcweld.serving.protocol import ChatRequest
from arcweld.serving.tool_calls.form import CallForm
from arcweld.serving.tool_calls.grammars import calls_grammar
from arcweld.serving.tool_calls.reader import CallReader


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that an answer may call.

    shown    to the model, by its chat template
    allowed  those that it may call now, with the JSON schemas of their arguments
    single   one call at most
    forced   it must call one at least
    special  the numbers of the tokenizer's tokens that are no text, by their names
    """

    form: CallForm
    shown: Sequence[Tool]
    allowed: Mapping[str, Any]
    single: bool
    forced: bool
    special: Mapping[str, int]

    @property
    def has_special_tags(self) -> bool:
        """Whether tags of calls are tokens that are no text, and so must not be left out of it."""
        return any(tag in self.special for tag in self.form.tags)

    def reader(self) -> CallReader:
        """What reads the calls of an answer."""
        return CallReader(self.form, self.allowed, self.single)


def offered(body: ChatRequest, form: CallForm, tokenizer: Tokenizer) -> Offer:
    """The tools of a request. Raises Refusal for parameters that are no schema of an object."""
    tools, choice = body.tools or [], body.tool_choice
    named = choice.function.name if isinstance(choice, NamedTool) else None
    schemas = {t.function.name: _arguments_schema(t, f"tools.{k}.function.parameters") for k, t in enumerate(tools)}
    return Offer(
        form, tools, schemas if named is None else {named: schemas[named]},
        single=named is not None or body.parallel_tool_calls is False,
        forced=named is not None or choice == "required",
        special={tokenizer.name(k): k for k in tokenizer.special},
    )  # fmt: skip


def _arguments_schema(tool: Tool, param: str) -> dict[str, Any]:
    """The schema of a function's arguments, with options for the library that keeps to it."""
    schema = tool.function.parameters
    if schema is None:
        schema = {"properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise Refusal(400, f"the parameters of {tool.function.name!r} are no schema of an object", param=param)
    options = {"whitespace_flexible": False, "lenient": not tool.function.strict}
    return {"type": "object", **schema, "x-guidance": options}


def structured_form(body: ChatRequest, offer: Offer | None) -> StructuredOutputsParams | None:
    """The form that answers to a request must have; None: any."""
    wanted, schema = body.response_format, None
    if wanted is not None and wanted.type != "text":
        schema = {"type": "object"}
    if isinstance(wanted, JsonSchemaFormat) and wanted.json_schema.schema_ is not None:
        schema = wanted.json_schema.schema_
    lenient = isinstance(wanted, JsonSchemaFormat) and not wanted.json_schema.strict
    if offer is None:
        if body.structured_outputs is not None:
            return body.structured_outputs.params()
        return None if schema is None else StructuredOutputsParams(json=schema, lenient=lenient)
    if not offer.forced and schema is None:
        return None
    answer = None if offer.forced or schema is None else {**schema, "x-guidance": {"lenient": lenient}}
    return StructuredOutputsParams(grammar=calls_grammar(
        offer.form, offer.allowed, single=offer.single, special=offer.special, answer=answer,
    ))  # fmt: skip
