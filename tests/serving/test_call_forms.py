"""Each form of calls as a chat template writes it: read whole and in pieces, held to by its grammar, and malformed."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import tokenizers
import transformers

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.chat import ChatTemplate
from arcweld.runtime.llm.grammar import Grammars
from arcweld.runtime.llm.params import StructuredOutputsParams
from arcweld.runtime.llm.tokenizer import Tokenizer
from arcweld.serving.tool_calls.forms import FORMS, form_of
from arcweld.serving.tool_calls.grammars import calls_grammar
from arcweld.serving.tool_calls.reader import CallReader, read
from arcweld.serving.tool_calls.typed_texts import converted

# What follows the user's message, as the models' documentation has it.
EACH = "{% for c in m.tool_calls %}{% set f = c.function %}"
ONE, SEP, ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
ALL, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
TEMPLATES = {
    "mistral": EACH + '{{ "[TOOL_CALLS] [" if loop.first }}{"name": {{ f.name | tojson }}, "arguments": '
    '{{ f.arguments | tojson }}, "id": "{{ c.id }}"}{{ "]" if loop.last else ", " }}{% endfor %}',
    "mistral named": EACH + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}{% endfor %}",
    "mistral with ids": EACH + "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}"
    "{% endfor %}",
    "qwen3_coder": EACH + "{{ '\\n' if not loop.first }}<tool_call>\n<function={{ f.name }}>\n"
    "{% for k, v in f.arguments | items %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}{{ '\\n' }}"
    "</parameter>{{ '\\n' }}{% endfor %}</function>{{ '\\n' }}</tool_call>{% endfor %}",
    "deepseek_v3": EACH + "{{ '" + ALL + "' if loop.first else '\\n' }}" + ONE + "{{ c.type }}" + SEP
    + "{{ f.name + '\\n```json\\n' }}"
    f"{{{{ f['arguments'] | tojson }}}}{{{{ '\\n```' }}}}{ONE_END}{{% endfor %}}{ALL_END}",
    "deepseek_v31": ALL + EACH + ONE + "{{ f.name }}" + SEP + "{{ f.arguments | tojson }}"
    + ONE_END + "{% endfor %}" + ALL_END,
}  # fmt: skip
SPECIAL = sorted({tag for form in FORMS.values() for tag in form.tags if "tool_call" not in tag})
F = {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "array", "items": {}}}, "required": ["x"]}
G = {"type": "object", "properties": {}}
SCHEMAS: dict[str, Any] = {"f": F, "g": G}
A: dict[str, Any] = {"x": 'a "b" } {\n[ARGS] ``` ü', "y": [1, {"z": "\\"}]}


def words() -> Tokenizer:
    """A token for each of the characters of a text, and the tags that are tokens of their own."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE(
        {chr(c): k for k, c in enumerate([10, *range(32, 127), 0xFC, 0xFF5C, 0x2581])}, [], unk_token="?",
    ))  # fmt: skip
    found.decoder = tokenizers.decoders.Fuse()
    found.add_special_tokens(SPECIAL)
    return Tokenizer(found.to_str())


WORDS = words()
NUMBERS = {WORDS.name(k): k for k in WORDS.special}
GRAMMARS = Grammars(WORDS, WORDS.size)


def rendered(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """The answer with these calls, as transformers renders the template."""
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(WORDS.definition))
    listed = [
        {"id": f"abcdefgh{k}", "type": "function", "function": {"name": n, "arguments": a}}
        for k, (n, a) in enumerate(calls)
    ]
    messages: list[Any] = [{"role": "assistant", "content": "", "tool_calls": listed}]
    template = "{% for m in messages %}" + TEMPLATES[name] + "{% endfor %}"
    text = fast.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert isinstance(text, str)
    return text


def form_for(name: str) -> Any:
    return FORMS[name.split()[0]]


def pieces(name: str, text: str, cuts: list[int], single: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """What a stream of this text gives, which is cut at these places."""
    reader, shown, calls = CallReader(form_for(name), SCHEMAS, single), "", list[tuple[str, str]]()
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    for news in (*map(reader.add, parts), reader.finish()):
        shown += news.text
        for number, called, given in news.calls:
            if called is not None:
                assert number == len(calls)
                calls.append((called, ""))
            calls[number] = calls[number][0], calls[number][1] + given
    return shown, calls


def check_cuts(name: str, text: str, single: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """What the whole text gives, and the same for two pieces cut at each character, and one character each."""
    whole = pieces(name, text, [], single)
    assert read(CallReader(form_for(name), SCHEMAS, single), text) == whole
    for cuts in ([k] for k in range(1, len(text))):
        assert pieces(name, text, cuts, single) == whole
    assert pieces(name, text, list(range(1, len(text))), single) == whole
    return whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read_as_it_was(name: str) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [("f", A), ("g", {}), ("f", {"x": ""})]
    for given in (calls[:1], calls[1:2], calls):
        text = rendered(name, given)
        shown, found = check_cuts(name, text)
        assert (shown, [(n, json.loads(a)) for n, a in found]) == ("", given)
        assert form_of("{{ tools }}" + TEMPLATES[name]) is form_for(name)
    shown, found = check_cuts(name, f"Let me [see] <it>.\n\n{text}\n")
    assert shown == "Let me [see] <it>."
    assert len(found) == 3
    assert check_cuts(name, text + " more", single=True)[1] == found[:1]
    unknown = rendered(name, [("nobody", {})])
    assert check_cuts(name, unknown) == (unknown, [])
    assert [n for n, _ in check_cuts(name, rendered(name, [("g", {}), ("nobody", {})]))[1]] == ["g"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_broken_texts_are_text(name: str) -> None:
    """What is cut off before the name is text; behind it a call's arguments end where the text does."""
    text = rendered(name, [("f", A)])
    for end in range(len(text)):
        shown, found = pieces(name, text[:end], [])
        assert not found or (shown, found[0][0]) == ("", "f")
        assert found or shown == text[:end]
    rng = random.Random(0)
    for _ in range(300):  # parts are left out, doubled and exchanged
        at = sorted(rng.randrange(len(text)) for _ in range(3))
        parts = [text[: at[0]], text[at[0] : at[1]], text[at[1] : at[2]], text[at[2] :]]
        rng.shuffle(parts)
        mixed = "".join(parts[: rng.randint(1, 4)] + parts[: rng.randint(0, 2)])
        assert pieces(name, mixed, [len(mixed) // 2]) == pieces(name, mixed, [])


P = "<parameter=%s>%s</parameter>"
TEXTS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("mistral", '[TOOL_CALLS] [{"arguments": {"x": "a"}, "name": "f"}]', "", [("f", '{"x": "a"}')]),
    ("mistral", "[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
    ("mistral", "[TOOL_CALLS]g{}", "", [("g", "{}")]),
    ("mistral", "[TOOL_CALLS] g [ARGS] {} So.", " So.", [("g", "{}")]),
    ("mistral", "A\n[TOOL_CALLS][TOOL_CALLS]g[ARGS]{}", "A\n[TOOL_CALLS]", [("g", "{}")]),
    ("mistral", "[TOOL_CALLS] [no objects]", "[TOOL_CALLS] [no objects]", []),
    ("mistral", f"[TOOL_CALLS]{'g' * 300}{{}}", f"[TOOL_CALLS]{'g' * 300}{{}}", []),
    ("qwen3_coder", f"<tool_call><function=f>{P % ('x', ' a ')}{P % ('z', '1')}</function></tool_call> So.", " So.",
     [("f", '{"x": " a ", "z": "1"}')]),
    ("qwen3_coder", f"<tool_call>\n<function=f>\n{P % ('y', '[1,')}", "", [("f", '{"y": "[1,"')]),
    ("qwen3_coder", f"<tool_call>\n<function=f>\n{P % ('y', '[1]')}\n<param", "", [("f", '{"y": [1]')]),
    ("qwen3_coder", f"<tool_call>\n<function=f>{P % ('x', 'a<parameter=x>')} So.", " So.",
     [("f", '{"x": "a<parameter=x>"}')]),
    ("qwen3_coder", "<tool_call><function=g>So.", "<tool_call><function=g>So.", []),
    ("qwen3_coder", "<tool_call>\n{\"name\": \"g\"}", "<tool_call>\n{\"name\": \"g\"}", []),
    ("deepseek_v31", f"{ONE}g{SEP}{{}}", "", [("g", "{}")]),
    ("deepseek_v31", f"{ALL}\n{ONE}\ng{SEP}\n{{}}\n{ONE_END}\nSo.", "\nSo.", [("g", "{}")]),
    ("deepseek_v31", f"{ALL} none{ALL_END}", f"{ALL} none{ALL_END}", []),
    ("deepseek_v3", f"{ONE}g{SEP}{{}}", f"{ONE}g{SEP}{{}}", []),
    ("deepseek_v3", f"{ONE}function{SEP}g\n```json\n{{}}\n``", "", [("g", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "shown", "calls"), TEXTS, ids=range(len(TEXTS)))
def test_texts(name: str, text: str, shown: str, calls: list[tuple[str, str]]) -> None:
    assert check_cuts(name, text) == (shown, calls)


REF: dict[str, Any] = {"$defs": {"a/b": {"type": ["number", "null"]}}, "properties": {"a": {"$ref": "#/$defs/a~1b"}}}
VALUES: list[tuple[Any, str, Any]] = [
    ({"type": "string"}, "5", "5"), ({"type": "string"}, "null", "null"), ({}, "5", "5"), (None, "[1]", "[1]"),
    ({"type": "integer"}, " 5\n", 5), ({"type": "integer"}, "5.0", 5.0), ({"type": "integer"}, "5.5", "5.5"),
    ({"type": "number"}, "5", 5), ({"type": "number"}, "1e999", "1e999"), ({"type": "number"}, "NaN", "NaN"),
    ({"type": "boolean"}, "true", True), ({"type": "boolean"}, "False", False), ({"type": "boolean"}, "1", "1"),
    ({"type": "object"}, '{"a": [1]}', {"a": [1]}), ({"type": "object"}, "[1]", "[1]"),
    ({"type": "array"}, "[1, {}]", [1, {}]), ({"type": "array"}, "[1,", "[1,"),
    *(({"type": "array"}, text, text) for text in ("[" * 9999, "[" * 101 + "]" * 101)),
    ({"type": "array"}, json.dumps([["["]] * 101), [["["]] * 101),
    ({"type": ["string", "null"]}, "None", None), ({"type": ["string", "integer"]}, "7", 7),
    ({"enum": [1, "a"]}, "1", 1), ({"enum": [1, "a"]}, "a", "a"), ({"const": None}, "null", None),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "x", "x"), ({"oneOf": [{"type": "null"}, {}]}, "null", None),
    ({"$ref": "#/$defs/a~1b"}, "3", 3), ({"$ref": "#/properties/a"}, "null", None), ({"$ref": "#/nowhere"}, "3", "3"),
    ({"$ref": "other.json#/b"}, "3", "3"), ({"type": "integer"}, "9" * 5000, "9" * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text", "value"), VALUES, ids=range(len(VALUES)))
def test_texts_become_values_of_their_schema(schema: Any, text: str, value: Any) -> None:
    found = converted(text, schema, REF)
    assert (found, type(found)) == (value, type(value))


def test_halves_of_characters_stay_escapes() -> None:
    text = '<tool_call><function=f><parameter=y>["\\ud800"]</parameter></function></tool_call>'
    assert check_cuts("qwen3_coder", text) == ("", [("f", '{"y": ["\\ud800"]}')])
    assert check_cuts("hermes", '<tool_call>{"arguments": {"x": "\\ud800"}, "name": "f"}') == (
        "", [("f", '{"x": "\\ud800"}')],
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- grammars


def special_for(name: str) -> dict[str, int]:
    """The tags that are tokens of the models which write in this way."""
    absent = {"mistral": ("[ARGS]", "[CALL_ID]"), "mistral named": ("[CALL_ID]",)}.get(name, ())
    return {tag: NUMBERS[tag] for tag in form_for(name).tags if tag in NUMBERS and tag not in absent}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_grammar_allows_what_the_template_writes(name: str) -> None:
    special = special_for(name)
    plain = {"x": A["x"].replace("[ARGS]", ""), "y": A["y"]}  # texts hold no names of tokens
    calls: list[tuple[str, dict[str, Any]]] = [("f", plain), ("g", {}), ("f", {"x": ""})]
    for single, given in ((False, calls), (True, calls[:1])):
        text = rendered(name, given)
        if name == "mistral":  # the list without the ids that the template adds, and without its space
            text = "[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": a} for n, a in given], ensure_ascii=False)
        grammar = calls_grammar(form_for(name), SCHEMAS, single=single, special=special)
        state = GRAMMARS.start(StructuredOutputsParams(grammar=grammar))
        ids = WORDS.encode(text)
        assert WORDS.decode(ids, skip_special_tokens=False) == text
        assert state.prefix(ids) == len(ids)
        for token in ids:
            assert not state.complete
            state.take(token)
        assert state.allowed([0])[0]  # it may end here
        assert state.complete == (single or bool(form_for(name).frame(special).behind))


SMALL = {
    "f": {"type": "object", "properties": {"n": {"enum": [1, 20, "on"]}, "b": {"type": "boolean"}}, "required": ["n"],
          "additionalProperties": False, "x-guidance": {"whitespace_flexible": False}},
    "g": {"type": "object", "properties": {}, "additionalProperties": False},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("with_tokens", [True, False], ids=["tokens", "texts"])
def test_what_a_grammar_allows_is_read_as_valid_calls(name: str, with_tokens: bool) -> None:
    special = {tag: NUMBERS[tag] for tag in FORMS[name].tags if tag in NUMBERS} if with_tokens else {}
    grammar = calls_grammar(FORMS[name], SMALL, single=False, special=special)
    start, rng = StructuredOutputsParams(grammar=grammar), random.Random(0)
    counts = set()
    for _ in range(20):
        state, ids = GRAMMARS.start(start), list[int]()
        while not state.complete and not (state.allowed([0])[0] and rng.random() < 0.5):
            mask = state.allowed([])
            ids.append(rng.choice([int(k) for k in np.flatnonzero(mask)]))
            state.take(ids[-1])
        shown, calls = read(CallReader(FORMS[name], SMALL, False), WORDS.decode(ids, skip_special_tokens=False))
        assert shown == ""
        assert calls
        for called, given in calls:
            jsonschema_rs.validator_for(SMALL[called]).validate(json.loads(given))
        counts.add(len(calls))
    assert len(counts) > 1


def test_what_texts_between_tags_cannot_be_held_to(caplog: pytest.LogCaptureFixture) -> None:
    """With ``strict`` it is refused, else logged. The rest of the schema holds."""

    def grammar(strict: bool, **more: Any) -> str:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}, "x-guidance": {"lenient": not strict}}
        return calls_grammar(FORMS["qwen3_coder"], {"f": schema | more}, single=True)

    def allows(text: str, **more: Any) -> bool:
        state = GRAMMARS.start(StructuredOutputsParams(grammar=grammar(False, **more)))
        ids = WORDS.encode(f"<tool_call>\n<function=f>\n{text}</function>\n</tool_call>")
        return state.prefix(ids) == len(ids)

    one = "<parameter=a>\n%s\n</parameter>\n"
    assert allows("")
    assert allows(one % "any\ntext")
    assert not allows("", required=["a"])
    assert not allows(one % "any</parameter>")
    assert allows(one % "5", properties={"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"type": "integer"}}})
    assert not allows(one % "x", properties={"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"type": "integer"}}})
    assert not allows(one % "c", properties={"a": {"enum": ["a", "b"]}})
    assert allows("<parameter=z>\n?\n</parameter>\n", required=["z"])
    assert not caplog.records
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "held to pattern"), ({"not": {}}, "held to not"),
        ({"properties": {"a": {"type": ["string", "integer"]}}}, "held to integer"),
    ]  # fmt: skip
    for more, text in wrong:
        caplog.clear()
        assert allows(one % "yes", **more)
        assert text in caplog.text
        with pytest.raises(UsageError, match=text):
            grammar(True, **more)
    for more in ({"properties": []}, {"required": 1}, {"properties": {"a>": {}}},
                 {"properties": {"a": {"const": "</parameter>"}}}):  # fmt: skip
        with pytest.raises(UsageError, match=r"no schema of an object|no form between tags"):
            grammar(False, **more)


def test_templates_that_join_arguments_get_texts() -> None:
    def joins(text: str) -> bool:
        return ChatTemplate(text, {}).joins_arguments()

    assert joins("{{ '\\n' + tool['function']['arguments'] + '\\n' }}")
    assert joins("{{ f.name ~ f.arguments }}")
    assert joins('{{- a+f["arguments"] -}}')
    assert not joins("{{ '\\n' + tool['function']['arguments'] | tojson + '\\n' }}")
    assert not joins("{{ f.arguments }}{{ '\"' + f.name + '\", \"arguments\": ' }}")
    assert not joins("{{ 'arguments' + f.name }}")
