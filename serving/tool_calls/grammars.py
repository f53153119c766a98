"""Grammars of calls, by which an answer is held to a form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from arcweld.serving.tool_calls.form import CallForm


def calls_grammar(
    form: CallForm, functions: Mapping[str, Any], *, single: bool, special: Mapping[str, int] | None = None,
    answer: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """A grammar in Lark's form of one call at least.

    functions  the JSON schemas of arguments by the function's name
    single     one call alone
    special    the numbers of tokens that are no text, by their names: a tag that is one is written as that token
    answer     a JSON schema: JSON of it is allowed too, in place of calls
    """
    frame = form.frame(special or {})
    lines = [f"start: calls{' | answer' if answer is not None else ''}"]
    lines += [f"answer: %json {json.dumps(answer)}"] if answer is not None else []
    more = () if single else (f"({' '.join((*frame.between, 'call'))})*",)
    lines += [f"calls: {' '.join((*frame.before, 'call', *more, *frame.behind))}"]
    lines += ["call: " + " | ".join(f"call{k}" for k in range(len(functions)))]
    for k, (name, schema) in enumerate(functions.items()):
        lines += form.call(k, name, schema, special or {})
    return "\n".join(dict.fromkeys(lines)) + "\n"  # rules that several calls need are given once
