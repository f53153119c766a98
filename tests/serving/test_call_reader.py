"""Calls of tools in texts, and chat templates with tools, beside what transformers makes of them."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import transformers
from served import tokenizer

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.chat import ChatTemplate
from arcweld.serving.tool_calls.form import CallForm
from arcweld.serving.tool_calls.forms import FORMS, form_named, form_of
from arcweld.serving.tool_calls.reader import CallReader, read

HERMES, LLAMA3 = FORMS["hermes"], FORMS["llama3_json"]
EITHER: dict[str, Any] = {"f": {}, "g": {}}
A = ("f", {"x": 'a "b" } {', "y": [1, {"z": "\\"}]})
B = ("g", {})
J = json.dumps


def call(name: str, given: dict[str, Any], key: str = "arguments", **more: Any) -> str:
    return J({"name": name, key: given, **more})


def tagged(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


Calls = Sequence[tuple[str, dict[str, Any]]]
TEXTS: list[tuple[CallForm, str, str, Calls]] = [
    (HERMES, "Just < text <tool", "Just < text <tool", []),
    (HERMES, tagged(call(*A)), "", [A]),
    (HERMES, f"Let me see.\n\n{tagged(call(*A))}\n{tagged(call(*B))}\n", "Let me see.", [A, B]),
    (HERMES, f"{tagged(call(*B))} then", " then", [B]),
    (HERMES, f"<tool_call>{call(*B)}", "", [B]),
    (HERMES, tagged(J({"arguments": A[1], "name": "f"})), "", [A]),
    (HERMES, tagged(call("f", A[1], id=3, more={"a": "}"})), "", [A]),
    (HERMES, tagged(J({"name": "f", "arguments": J(A[1])})), "", [A]),
    (HERMES, tagged(call("nobody", {})), tagged(call("nobody", {})), []),
    (HERMES, tagged("{broken}"), tagged("{broken}"), []),
    (HERMES, "<tool_call>no object", "<tool_call>no object", []),
    (HERMES, "A\n <tool_call>no object\n", "A\n <tool_call>no object\n", []),
    (HERMES, f"{tagged(call(*B))[:-4]}", "", [B]),
    (HERMES, "<tool_call>\n{\"name\": ", "<tool_call>\n{\"name\": ", []),
    (HERMES, " \n", " \n", []),
    (LLAMA3, "Just {text}", "Just {text}", []),
    (LLAMA3, call(*A, key="parameters"), "", [A]),
    (LLAMA3, "<|python_tag|>" + call(*A, key="parameters"), "", [A]),
    (LLAMA3, f"\n{call(*A, key='parameters')}; {call(*B, key='parameters')}", "", [A, B]),
    (LLAMA3, J({"name": "Bob", "parameters": {}}), J({"name": "Bob", "parameters": {}}), []),
    (LLAMA3, J({"name": "g"}), "", [B]),
    (LLAMA3, '{"answer": 3}', '{"answer": 3}', []),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "shown", "calls"), TEXTS, ids=range(len(TEXTS)))
def test_calls_are_told_from_text_wherever_it_is_cut(form: CallForm, text: str, shown: str, calls: Calls) -> None:
    found, called = read(CallReader(form, EITHER, single=False), text)
    assert found == shown
    assert [(name, json.loads(given)) for name, given in called] == list(calls)
    rng = random.Random(0)
    for size in [1, 2, *[7] * 10]:
        reader, pieces, at = CallReader(form, EITHER, single=False), [], 0
        while at < len(text):
            step = rng.randint(1, size)
            pieces.append(reader.add(text[at : at + step]))
            at += step
        pieces.append(reader.finish())
        assert "".join(p.text for p in pieces) == found
        begun = [(n, name) for p in pieces for n, name, _ in p.calls if name is not None]
        assert begun == list(enumerate(name for name, _ in called))
        for k, (_, given) in enumerate(called):
            assert "".join(a for p in pieces for n, _, a in p.calls if n == k) == given


def test_one_call_alone() -> None:
    text = f"{tagged(call(*A))}\n{tagged(call(*B))} and text"
    assert read(CallReader(HERMES, EITHER, single=True), text) == ("", [("f", J(A[1]))])


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader(HERMES, {"f": {}}, single=False)
    pieces = [reader.add(c) for c in tagged(call(*A))]
    assert sum(bool(p.calls) for p in pieces) == len(J(A[1]))  # the name comes with the first character


def test_forms_are_known_by_templates() -> None:
    assert form_of("{{ messages }}") is None
    assert form_of("{{ tools }}") is None
    assert form_of("{{ tools }} <tool_call> arguments") is HERMES
    assert form_of("{{ tools }} <tool_call> <function=f> arguments") is None
    assert form_of("{{ tools }} Environment: ipython {name, parameters}") is LLAMA3
    assert form_named("hermes") is HERMES
    with pytest.raises(UsageError, match="no form of tool calls 'x'") as error:
        form_named("x")
    assert "hermes, llama3_json, mistral" in (error.value.hint or "")


TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather at a <place> & time.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    }},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How is Zürich?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich", "a": [1]}}},
    ]},
    {"role": "tool", "tool_call_id": "1", "content": "{\"sky\": \"clear\"}"}, {"role": "user", "content": "And now?"},
]  # fmt: skip
TEMPLATES = {
    "tags": """{%- if tools %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" + (tool | tojson) }}
    {%- endfor %}
    {{- "\\n</tools> Call with <tool_call>{name, arguments}</tool_call>\\n" }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == "assistant" and m.tool_calls %}
        {%- for c in m.tool_calls %}
            {{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
            {{- c.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
    {%- elif m.role == "tool" %}
        {{- "<tool_response>" + m.content + "</tool_response>" }}
    {%- else %}
        {{- "<" + m.role + ">" + m.content + "\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}""",
    "objects": """{{ "Today is " + strftime_now("%d %b %Y") }} Environment: ipython
{% if tools is not none %}{% for t in tools %}
{{ t | tojson(indent=4) }}
{{ t.function | tojson(separators=(",", ":"), sort_keys=True, ensure_ascii=True) }}
{% endfor %}{% endif %}
{% for m in messages %}
{% if loop.index > 4 %}{% break %}{% endif %}
{% if m.tool_calls is defined %}{% set c = m.tool_calls[0].function %}
{% generation %}{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}{% endgeneration %}

{% else %}
[{{ m.role }}] {{ m.content | trim }}
{% endif %}
{% endfor %}{% if documents is none %}nothing{% endif %}""",
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("tools", [TOOLS, None], ids=["tools", "none"])
def test_prompts_with_tools_are_those_of_transformers(name: str, tools: Any) -> None:
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    want = fast.apply_chat_template(
        MESSAGES, tools=tools, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(TEMPLATES[name], {}).render(MESSAGES, tools=tools) == want
    assert "Zürich" in want
    assert (str(datetime.date.today().year) in want) == (name == "objects")
