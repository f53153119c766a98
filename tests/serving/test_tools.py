"""Tools and forms of answers, with OpenAI's own client: forced and free calls, streams, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema_rs
import numpy as np
import openai
import pydantic
import pytest
import transformers
from served import END, NAME, Application, idle, package, served, tokenizer

from arcweld.runtime.llm.chat import ChatTemplate
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.runner import Computed
from arcweld.serving.settings import Settings
from arcweld.serving.tool_calls.forms import FORMS

TEMPLATE = (
    '{# <tool_call>{"name", "arguments"}</tool_call> #}{% for t in tools or () %}{{ t.function.name[0] }}{% endfor %}'
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or () %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZE = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
        "additionalProperties": False}  # fmt: skip
MODE = {"type": "object", "properties": {"m": {"$ref": "#/$defs/m"}}, "required": ["m"], "additionalProperties": False,
        "$defs": {"m": {"enum": ["on", "off"]}}}  # fmt: skip
SCHEMAS: dict[str, Any] = {"size": SIZE, "mode": MODE, "ping": {"type": "object", "maxProperties": 0}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "size", "parameters": SIZE}},
    {"type": "function", "function": {"name": "mode", "description": "Sets it.", "parameters": MODE, "strict": True}},
    {"type": "function", "function": {"name": "ping"}},
]
ASK: Any = [{"role": "user", "content": "?"}]


def app_with(template: str, **settings: Any) -> Application:
    given = dataclasses.replace(package(), template=ChatTemplate(template, {}))
    return Application(LLM(given, device="sim"), Settings(NAME, **settings))


@pytest.fixture(scope="module")
def app() -> Iterator[tuple[str, Application]]:
    found = app_with(TEMPLATE)
    with served(found) as (address, _):
        yield address, found


@pytest.fixture
def ai(app: tuple[str, Application]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{app[0]}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found
    idle(app[1])


def writes(monkeypatch: pytest.MonkeyPatch, app: Application, text: str) -> None:
    """From now on the model writes this text, whatever it is asked; one request runs at a time."""
    ids, core = [*tokenizer().encode(text).ids, END], app.worker.core

    def compute(runs: Any) -> Computed:
        (s,) = core.scheduler.running
        rows = [r.start + k + 1 - len(s.prompt) for r in runs for k in r.rows]
        found = np.full((len(rows), 128), -10, np.float32)
        for row, place in zip(found, rows):
            row[ids[place]] = 10
        transfers = core.runner.transfers
        return Computed([transfers.upload(found)], [found.dtype], transfers)

    monkeypatch.setattr(core.runner, "compute", compute)


def joined(chunks: Any) -> tuple[dict[int, tuple[str, list[list[str]]]], dict[int, str]]:
    """Of each choice of a stream its text and its calls, (name, arguments), by OpenAI's rules; and how it ended."""
    found: dict[int, tuple[str, list[list[str]]]] = {}
    ends: dict[int, str] = {}
    seen = set()
    for choice in (c for chunk in chunks for c in chunk.choices):
        text, calls = found.get(choice.index, ("", []))
        for piece in choice.delta.tool_calls or ():
            assert piece.function is not None
            if piece.index == len(calls):  # the first piece names the call
                assert piece.type == "function"
                assert piece.id is not None
                assert piece.id not in seen
                seen.add(piece.id)
                calls.append([piece.function.name, ""])
            else:
                assert (piece.id, piece.function.name) == (None, None)
            calls[piece.index][1] += piece.function.arguments
        found[choice.index] = text + (choice.delta.content or ""), calls
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    return found, ends


def check(name: str, arguments: str) -> None:
    jsonschema_rs.validator_for(SCHEMAS[name]).validate(json.loads(arguments))


@pytest.mark.parametrize("choice", ["required", "named"])
def test_forced_calls_have_valid_arguments(ai: openai.OpenAI, choice: str) -> None:
    wanted: Any = {"type": "function", "function": {"name": "mode"}} if choice == "named" else "required"
    names = set()
    for seed in range(3):
        given: dict[str, Any] = {
            "model": NAME, "messages": ASK, "tools": TOOLS, "tool_choice": wanted, "seed": seed, "n": 2,
            "parallel_tool_calls": choice == "named", "temperature": 2,
        }  # fmt: skip
        whole = ai.chat.completions.create(**given)
        found, ends = joined(ai.chat.completions.create(**given, stream=True))
        for c in whole.choices:
            assert (c.message.content, c.finish_reason, ends[c.index]) == (None, "tool_calls", "tool_calls")
            (called,) = c.message.tool_calls or ()
            assert called.type == "function"
            assert called.id
            check(called.function.name, called.function.arguments)
            names.add(called.function.name)
            assert found[c.index] == ("", [[called.function.name, called.function.arguments]])
    assert names == {"mode"} if choice == "named" else len(names) > 1


def test_calls_that_are_cut_off_end_by_length(ai: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    found = ai.chat.completions.create(**given, seed=1, max_tokens=47).choices[0]
    assert found.finish_reason == "length"
    assert found.message.tool_calls or "tool_call" in (found.message.content or "")


def test_free_calls(ai: openai.OpenAI, app: tuple[str, Application], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = '{"name":"size","arguments":{"n":7}}', '{"name":"ping"}'
    text = f"So.\n<tool_call>{one}</tool_call><tool_call>{two}</tool_call>"
    writes(monkeypatch, app[1], text)
    given: dict[str, Any] = {"model": NAME, "messages": ASK, "tools": TOOLS}
    message = ai.chat.completions.create(**given).choices[0].message
    calls = [["size", '{"n":7}'], ["ping", "{}"]]
    assert message.content == "So."
    assert [[c.function.name, c.function.arguments] for c in message.tool_calls or () if c.type == "function"] == calls
    chunks = list(ai.chat.completions.create(**given, stream=True))
    assert joined(chunks) == ({0: ("So.", calls)}, {0: "tool_calls"})
    assert sum(len(c.choices[0].delta.tool_calls or ()) for c in chunks) > 6  # bit by bit
    with ai.chat.completions.stream(**given) as stream:  # the client's own sum of the pieces
        final = stream.get_final_completion().choices[0]
    assert [[c.function.name, c.function.arguments] for c in final.message.tool_calls or ()] == calls
    first = ai.chat.completions.create(**given, parallel_tool_calls=False).choices[0].message
    assert [c.function.name for c in first.tool_calls or () if c.type == "function"] == ["size"]
    plain = ai.chat.completions.create(**given, tool_choice="none").choices[0]
    assert (plain.message.content, plain.message.tool_calls, plain.finish_reason) == (text, None, "stop")


TEXTS = {
    "llama3_json": '{"name": "size", "parameters": {"n": 5}}', "mistral": '[TOOL_CALLS]size[ARGS]{"n": 5}',
    "qwen3_coder": "<tool_call>\n<function=size>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>",
}  # fmt: skip


@pytest.mark.parametrize("form", TEXTS)
def test_calls_in_other_forms(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_with("{% for m in messages %}{{ m.content }}{% endfor %}", calls=FORMS[form])
    given: dict[str, Any] = {"model": NAME, "messages": ASK, "tools": TOOLS}
    with served(app) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as ai:
        forced = ai.chat.completions.create(**given, tool_choice="required", seed=3, temperature=2).choices[0]
        assert forced.finish_reason in ("tool_calls", "length")
        for c in forced.message.tool_calls or ():
            assert c.type == "function"
            if forced.finish_reason == "tool_calls":
                check(c.function.name, c.function.arguments)
        assert forced.message.tool_calls
        assert all(len(c.id) == 9 for c in forced.message.tool_calls) or form != "mistral"
        writes(monkeypatch, app, TEXTS[form])
        found = ai.chat.completions.create(**given).choices[0]
        assert [c.function.arguments for c in found.message.tool_calls or () if c.type == "function"] == ['{"n": 5}']
        assert joined(ai.chat.completions.create(**given, stream=True))[0] == {0: ("", [["size", '{"n": 5}']])}
        writes(monkeypatch, app, TEXTS[form].replace("size", "Bob"))
        assert ai.chat.completions.create(**given).choices[0].message.content == TEXTS[form].replace("size", "Bob")
    idle(app)


def test_results_of_tools_reach_the_template(ai: openai.OpenAI, app: tuple[str, Application]) -> None:
    """What the client got, sent back by it as it is; the prompt is transformers'."""
    given: dict[str, Any] = {"model": NAME, "messages": ASK, "tools": TOOLS}
    forced: Any = {"type": "function", "function": {"name": "mode"}}
    answer = ai.chat.completions.create(**given, tool_choice=forced, seed=0).choices[0].message
    (call,) = answer.tool_calls or ()
    assert call.type == "function"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    for sent in (answer, answer.model_dump(), answer.model_dump(exclude_none=True)):
        messages: Any = [*ASK, sent, result]
        found = ai.chat.completions.create(model=NAME, messages=messages, tools=TOOLS, max_tokens=1)
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), chat_template=TEMPLATE)
        plain = {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "mode", "arguments": json.loads(call.function.arguments)}}
        ]}  # fmt: skip
        want = fast.apply_chat_template([*ASK, plain, result], tools=TOOLS, add_generation_prompt=True, tokenize=True)
        assert found.usage is not None
        assert found.usage.prompt_tokens == len(want["input_ids"])


class Person(pydantic.BaseModel):
    """What the client asks for by its type."""

    k: Literal["a", "b"]
    n: bool | None


def test_forms_of_answers(ai: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": NAME, "messages": ASK, "temperature": 2}
    parsed = [ai.chat.completions.parse(**given, seed=s, response_format=Person).choices[0] for s in range(3)]
    assert all(isinstance(c.message.parsed, Person) for c in parsed if c.finish_reason == "stop")
    assert any(c.finish_reason == "stop" for c in parsed)
    loose: Any = {"type": "json_schema", "json_schema": {
        "name": "three", "schema": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3, "uniqueItems": True},
    }}  # fmt: skip
    for seed in range(2):
        whole = ai.chat.completions.create(**given, seed=seed, response_format=loose).choices[0]
        stream = ai.chat.completions.create(**given, seed=seed, response_format=loose, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in stream)
        assert text == whole.message.content
        assert whole.finish_reason == "length" or set(json.loads(text)) <= {1, 2}
        any_: Any = {"type": "json_object"}
        found = ai.chat.completions.create(**given, seed=seed, response_format=any_).choices[0]
        assert found.finish_reason == "length" or isinstance(json.loads(found.message.content or ""), dict)
    more: Any = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert ai.completions.create(model=NAME, prompt="?", extra_body=more).choices[0].text in ("yes", "no")
    plain = ai.chat.completions.create(**given, max_tokens=4, response_format={"type": "text"})
    assert plain.choices[0].message.content
    both = ai.chat.completions.create(**given, tools=TOOLS, response_format=loose, seed=1).choices[0].message
    assert both.tool_calls or (both.content or "").startswith(("[", "<tool_call>"))


def schema(of: Any, strict: bool = True) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": of, "strict": strict}}}


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "no tool 'x'", "tool_choice"),
    ({"tool_choice": "required"}, "needs tools", "tool_choice"), ({"tools": [*TOOLS, *TOOLS]}, "several", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "pattern", "tools.0.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]}, "an object",
     "tools.0.function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}, "strict": True}}],
      "tool_choice": "required"}, "Unimplemented", None),
    (schema({"type": "nonsense"}), "Invalid type", None), (schema({"uniqueItems": True}), "Unimplemented", None),
    ({"response_format": {"type": "yaml"}}, "type", "response_format"),
    ({"response_format": {"type": "json_schema"}}, "Field required", "response_format.json_schema.json_schema"),
    ({"structured_outputs": {"regex": "("}}, "unclosed", None), ({"structured_outputs": {}}, "one of", None),
    ({"structured_outputs": {"regex": "a"}, "tools": TOOLS}, "neither", "structured_outputs"),
    ({"messages": [{"role": "user"}]}, "needs content", "messages.0.content"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "tool_call_id", "messages.0.tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]}, "no JSON",
     "messages.0.tool_calls.0.function.arguments"),
]  # fmt: skip


def test_what_is_refused(ai: openai.OpenAI) -> None:
    for more, text, param in WRONG:
        body: Any = {"messages": ASK, **more}
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=text) as error:
                ai.chat.completions.create(model=NAME, messages=body["messages"], stream=stream, extra_body=body)
            assert error.value.param == param


def test_models_without_a_known_form_refuse_tools() -> None:
    for template in ("{{ messages[0].content }}", "{{ tools }} <tool_call> <function=f> arguments"):
        app = app_with(template)
        with served(app) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="none") as ai:
            for choice in ("auto", "required"):
                with pytest.raises(openai.BadRequestError, match="--tool-call-parser") as error:
                    ai.chat.completions.create(model=NAME, messages=ASK, tools=TOOLS, tool_choice=choice)  # type: ignore[call-overload]
                assert error.value.param == "tools"
