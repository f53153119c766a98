"""Structured outputs of ``LLM``: they have the form that other code checks, whatever batch, pages and guesses are."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from served import END, package, tokenizer

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.runtime.llm import grammar
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.params import StructuredOutputsParams as Form
from arcweld.runtime.llm.results import Result
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.speculation import Guess

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object", "required": ["name", "size"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 6}, "size": {"type": "integer", "minimum": 3, "maximum": 40},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
    },
    {"type": "array", "items": {"$ref": "#/$defs/pair"}, "minItems": 1, "maxItems": 3, "$defs": {
        "pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2}
    }},
    {"anyOf": [{"type": "string", "pattern": "^[a-f]{2,5}$"}, {"const": 3.5}, {"type": "null"}]},
]  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0}, {"seed": 1}, {"seed": 2, "temperature": 3}, {"seed": 3, "top_k": 3, "n": 3},
    {"seed": 4, "top_p": 0.5, "presence_penalty": 2, "min_p": 0.1}, {"seed": 5, "n": 2, "best_of": 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(package(), device="sim")


def valid(schema: Any) -> Callable[[str], bool]:
    """Whether a text is JSON of the schema, by the crate ``jsonschema``."""
    validator = jsonschema_rs.validator_for(schema)
    return lambda text: validator.is_valid(json.loads(text))


def results(llm: LLM, form: Form, **settings: Any) -> list[Any]:
    params = SamplingParams(structured_outputs=form, **{"max_tokens": 60, **settings})
    return llm.generate("The sky is", params)[0].outputs


@pytest.mark.parametrize("schema", SCHEMAS, ids=["object", "array", "choice"])
def test_json_is_of_its_schema_or_too_long(llm: LLM, schema: dict[str, Any]) -> None:
    of_the_schema = valid(schema)
    ended = 0
    for k, settings in enumerate(SETTINGS):
        form = Form(json=json.dumps(schema) if k % 2 else schema, disable_any_whitespace=k < 4)
        for out in results(llm, form, **settings):
            assert out.finish_reason in ("stop", "length"), out.error
            if out.finish_reason == "stop":
                ended += 1
                assert of_the_schema(out.text), out.text
            else:
                assert len(out.token_ids) == 60
    assert ended >= 5


def test_any_object(llm: LLM) -> None:
    outs = [o for seed in range(5) for o in results(llm, Form(json_object=True), seed=seed, temperature=2)]
    whole = [json.loads(o.text) for o in outs if o.finish_reason == "stop"]
    assert whole
    assert all(isinstance(w, dict) for w in whole)
    assert all(o.text.lstrip().startswith("{") for o in outs)


@pytest.mark.parametrize(
    "expression", [r"[a-c]{2,4}-[0-9]+x?", r"(yes|no|perhaps)( indeed)*!", r".{3}", r"\(\d\d\) [^a-z ]{4,}", r"a*b"]
)
def test_texts_match_their_expression(llm: LLM, expression: str) -> None:
    for settings in SETTINGS[1:5]:
        for out in results(llm, Form(regex=expression), **{**settings, "max_tokens": 30}):
            if out.finish_reason == "stop":
                assert re.fullmatch(expression, out.text, re.ASCII), out.text
            else:
                assert len(out.token_ids) == 30


def test_choices_and_grammars(llm: LLM) -> None:
    choices = ['say "x"', "a", "ab", "back\\slash"]
    seen = {o.text for s in range(12) for o in results(llm, Form(choice=choices), seed=s, temperature=4)}
    assert seen <= set(choices)
    assert len(seen) > 2
    balanced = 'start: pair\npair: "(" pair* ")"\n'
    for text in (balanced, 'root ::= pair\npair ::= "(" pair* ")"\n'):
        for s in range(4):
            for out in results(llm, Form(grammar=text), seed=s):
                depth = [out.text[: k + 1].count("(") - out.text[: k + 1].count(")") for k in range(len(out.text))]
                assert set(out.text) <= set("()")
                assert (depth[-1] == 0) == (out.finish_reason == "stop")
                assert 0 not in depth[:-1]


def test_a_result_ends_where_nothing_may_follow(llm: LLM) -> None:
    """Without an end token, so before ``min_tokens`` too; where something may follow, the end token ends it."""
    (out,) = results(llm, Form(choice=["abc"]), min_tokens=20, ignore_eos=True)
    assert (out.text, out.finish_reason, out.stop_reason) == ("abc", "stop", None)
    assert len(out.token_ids) == 3
    always = {"logit_bias": {END: 100}}
    (out,) = results(llm, Form(regex="abc*"), **always)
    assert (out.text, out.token_ids[-1]) == ("ab", END)
    (out,) = results(llm, Form(regex="abc*"), **always, min_tokens=9)
    assert (out.text, len(out.token_ids)) == ("abcccccc" + "c", 10)
    (out,) = results(llm, Form(regex="abc*"), **always, ignore_eos=True)
    assert (out.text, out.finish_reason) == ("ab" + "c" * 58, "length")
    c = tokenizer().encode("c").ids[0]
    (out,) = results(llm, Form(regex="abc*d"), logit_bias={c: 100}, stop_token_ids=[c], ignore_eos=True)
    assert out.text == "abd"  # a token that ends a result may not come where the text is incomplete


def test_log_probabilities_are_those_of_the_model(llm: LLM) -> None:
    (plain,) = llm.generate("The sky is", SamplingParams(temperature=0, max_tokens=1, logprobs=128))[0].outputs
    (out,) = results(llm, Form(choice=["q"]), temperature=0, logprobs=0)
    token = out.token_ids[0]
    assert plain.logprobs is not None
    assert out.logprobs[0][token] == dataclasses.replace(plain.logprobs[0][token], decoded_token=None)


def test_results_are_the_same_whatever_runs_beside_them() -> None:
    """With guesses of both kinds, preemption, little chunks, and a cold and a warm prefix cache."""
    forms = [Form(json=s, disable_any_whitespace=True) for s in SCHEMAS] + [Form(regex="(ab|ac){3,20}"), None]
    prompts = [f"Prompt {k}: ab ab ac ac ab ab ac ac" for k in range(len(forms))]
    params = [
        SamplingParams(structured_outputs=f, seed=k, n=2, max_tokens=30, temperature=0.7) for k, f in enumerate(forms)
    ]
    want = [
        [o.token_ids for o in LLM(package(), device="sim", enable_prefix_caching=False).generate(p, s)[0].outputs]
        for p, s in zip(prompts, params)
    ]
    text, draft = ({"num_speculative_tokens": 3, "adaptive": False, **m} for m in ({}, {"model": package()}))
    kinds: list[dict[str, Any]] = [
        {"speculative": text, "num_pages": 15}, {"num_pages": 15, "max_prefill_chunk": 5}, {"speculative": draft},
    ]  # fmt: skip
    for kind in kinds:
        llm = LLM(package(), device="sim", **kind)
        for _ in range(2 if "num_pages" in kind else 1):
            found = llm.generate(prompts, params)
            assert [[o.token_ids for o in out.outputs] for out in found] == want, kind
        stats = llm.stats()
        assert stats.accepted > 0 or "speculative" not in kind
        assert stats.preemptions > 0 or "num_pages" not in kind


def test_drawn_guesses_keep_the_first_one_that_is_refused(llm: LLM) -> None:
    """Rejection sampling is exact only if it rejects that one itself."""
    sequence = Sequence(0, [5], SamplingParams())
    result = Result(sequence, 0, llm.tokenizer, [END], 128, llm.core.grammars.start(Form(regex="ab+")))
    ids = tokenizer().encode("abba").ids
    drawn = tuple(Guess(t, np.array([t]), np.array([1.0])) for t in [*ids, *ids])
    assert result.possible(drawn) == tuple(ids)
    assert result.possible(tuple(Guess(t) for t in ids)) == tuple(ids[:3])
    assert result.possible(()) == ()


def test_guesses_stop_where_the_grammar_refuses_them(llm: LLM) -> None:
    state = llm.core.grammars.start(Form(regex="ab+"))
    ids = tokenizer().encode("abba").ids
    assert state.prefix(ids) == 3
    for token in ids[:2]:
        state.take(token)
    assert state.prefix(ids[1:]) == 2
    assert state.prefix(ids) == 0


WRONG: list[tuple[Form, str]] = [
    (Form(regex="("), "unclosed group"), (Form(regex="(?=a)b"), "look-around"), (Form(regex=""), "no text"),
    (Form(regex="(a{300}){300}"), "90000 characters with repeats"), (Form(regex="\ud800"), "no Unicode"),
    (Form(regex="(" * 60_000), "nest|unclosed|regex"), (Form(regex="a" * 200_000), "more than 131072"),
    (Form(json="{"), "no JSON"), (Form(json={"type": "x"}), "Invalid type"), (Form(json={"not": {}}), "Unimplemented"),
    (Form(json={"$ref": "http://127.0.0.1/x"}), "does not fetch"), (Form(json={"$ref": "#"}), "refused"),
    (Form(json={"type": "string", "pattern": "^(a{300}){300}$"}), "pattern of the JSON schema"),
    (Form(json="[" * 100_000), "no JSON"), (Form(json='{"items":' * 100 + "{}" + "}" * 100), "levels"),
    (Form(json={"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(8)]} for i in range(8)]}), "large"),
    (Form(grammar="start: nothing"), "nothing"), (Form(grammar="root ::= ((("), "GBNF|Expected"),
    (Form(grammar="start: " + "(" * 5000), "nested"), (Form(grammar='start: A\nA: "a"{300}\nB: A{300}'), "repeats"),
    (Form(grammar="".join(f"r{k}: r{k + 1}\n" for k in range(600)) + 'start: r0\nr600: "a"'), "rules"),
    (Form(grammar='start: %json {"not": {}}'), "Unimplemented"),
]  # fmt: skip


def test_wrong_forms_are_one_error(llm: LLM) -> None:
    for form, text in WRONG:
        with pytest.raises(UsageError, match=text) as error:
            results(llm, form)
        assert "\n" not in error.value.message
        assert len(error.value.message) < 500
    assert not llm.core.requests
    assert results(llm, Form(choice=["fine"]))[0].text == "fine"
    with pytest.raises(UsageError, match="one of"):
        Form()
    with pytest.raises(UsageError, match="one of"):
        Form(regex="a", json_object=True)
    for choice in ([], [""], "abc"):
        with pytest.raises(UsageError, match="list of texts"):
            Form(choice=choice)


def test_lenient_schemas_leave_out_what_cannot_be_kept(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3}
    with pytest.raises(UsageError, match="uniqueItems"):
        results(llm, Form(json=schema))
    (out,) = results(llm, Form(json=schema, lenient=True, disable_any_whitespace=True))
    assert set(json.loads(out.text)) <= {1, 2}
    assert "uniqueItems" in caplog.text


def test_chains_of_rules_do_not_end_the_process() -> None:
    """Almost as long as the limits allow, in the thread of a process with an ordinary stack."""
    text = """
        import sys
        from arcweld.runtime.llm.grammar import Grammars
        from arcweld.runtime.llm.params import StructuredOutputsParams as Form
        from arcweld.runtime.llm.tokenizer import Tokenizer

        def link(k):
            return {"items": {"properties": {"a": {"anyOf": [{"$ref": f"#/$defs/d{k}"}, {"type": "null"}]}}}}

        grammars = Grammars(Tokenizer(sys.stdin.read()), 128)
        defs = {f"d{k}": link(k + 1) for k in range(480)}
        grammars.start(Form(json={"$ref": "#/$defs/d0", "$defs": {**defs, "d480": {"type": "null"}}}))
        grammars.start(Form(grammar="start: R0\\n" + "".join(f"R{k}: R{k + 1}\\n" for k in range(490)) + 'R490: "a"'))
        print("fine")
    """
    words, given = [sys.executable, "-c", textwrap.dedent(text)], tokenizer().to_str()
    found = subprocess.run(words, input=given, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout) == (0, "fine\n"), found.stderr[-2000:]


def test_grammars_that_fail_end_their_request_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    good = results(llm, Form(regex="[ab]{9}"), temperature=0)[0].text
    llm.core.grammars.start(Form(regex="[ab]{8}"))
    monkeypatch.setattr(grammar, "MASK_SECONDS", -1)
    (out,) = results(llm, Form(regex="[ab]{8}"))
    assert out.finish_reason == "error"
    assert "more than -1 s" in out.error
    monkeypatch.undo()
    assert results(llm, Form(regex="[ab]{9}"), temperature=0)[0].text == good
    monkeypatch.setattr(grammar, "COMPILE_SECONDS", -1)
    with pytest.raises(UsageError, match="to compile"):
        results(llm, Form(regex="[ab]{7}"))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = LLM(dataclasses.replace(package(), tokenizer=None), device="sim")
    params = SamplingParams(structured_outputs=Form(regex="a"))
    with pytest.raises(UsageError, match="need a tokenizer"):
        bare.generate([[5, 6]], params)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EnvironmentError_, match="llguidance") as error:
        LLM(package(), device="sim").generate("a", params)
    assert "arcweld[llm]" in (error.value.hint or "")


def test_grammars_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(package(), device="sim")
    compiled = []
    compile_ = llm.core.grammars._compiled
    monkeypatch.setattr(llm.core.grammars, "_compiled", lambda *a: compiled.append(a) or compile_(*a))
    for _ in range(3):
        results(llm, Form(regex="[ab]{3}"), n=2)
    assert len(compiled) == 1
