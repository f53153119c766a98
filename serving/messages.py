"""Messages, tools and forms of answers, as the bodies of chat requests have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from arcweld.serving.errors import Refusal

MOST_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Body(BaseModel):
    """A part of a request. A field that it does not list is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Body):
    """A part of a message. Only texts are served."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """What an answer called: a function's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call of an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """A message of a conversation.

    Fields that may be null alone are those of OpenAI's answers, which clients send back as they are.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def plain(self, place: int, joined: bool = False) -> dict[str, Any]:
        """What the chat template gets: the text as one, the system's role by the name that templates know, and the
        arguments of calls as objects, or with ``joined`` as JSON texts.

        Raises Refusal for a message that lacks what its role needs; ``place`` is its number in the conversation.
        """  # fmt: skip
        param = f"messages.{place}"
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise Refusal(400, f"a message of role {self.role} needs content", param=f"{param}.content")
        if self.tool_calls and self.role != "assistant":
            raise Refusal(400, "tool_calls are of the role assistant", param=f"{param}.tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise Refusal(400, "tool_call_id is of the role tool, which needs it", param=f"{param}.tool_call_id")
        parts = [self.content or ""] if not isinstance(self.content, list) else [p.text for p in self.content]
        found: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role, "content": "".join(parts),
        }  # fmt: skip
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        found |= {k: v for k, v in more.items() if v is not None}
        if self.tool_calls:
            given = [_arguments(c, f"{param}.tool_calls.{k}.function.arguments") for k, c in enumerate(self.tool_calls)]
            found["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {
                    "name": c.function.name, "arguments": json.dumps(a, ensure_ascii=False) if joined else a,
                }}
                for c, a in zip(self.tool_calls, given)
            ]  # fmt: skip
        return found


def _arguments(call: ToolCall, param: str) -> dict[str, Any]:
    try:
        found = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the arguments of {call.function.name!r} are no JSON: {error}", param=param) from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the arguments of {call.function.name!r} are no JSON object", param=param)
    return found


def plain_messages(messages: Sequence[Message], joined: bool = False) -> list[dict[str, Any]]:
    """What the chat template gets of a conversation. Raises Refusal as ``Message.plain`` does."""
    return [m.plain(k, joined) for k, m in enumerate(messages)]


class Function(Body):
    """A function that the model may call. ``parameters`` is the JSON schema of its arguments; None: it has none."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The choice of one function, which is to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchema(Body):
    """A JSON schema of answers. ``strict``: keywords that cannot be kept are refused, not left out."""

    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = False


class TextFormat(Body):
    """Answers are any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Answers are JSON objects."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """Answers are JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
