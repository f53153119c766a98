"""Chat templates: Jinja's text, and templates that a stranger made to do harm, each with one clear error."""

from __future__ import annotations

import gc
import json
import threading
from typing import Any

import jinja2
import pytest

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm import chat
from arcweld.runtime.llm.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Who — \ud800?"}, {"role": "assistant", "content": '"I"'}]
PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% if not loop.last %},{% endif %}\n"
    "{% endfor %}{% if tools %}{{ tools | length }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"


def test_the_text_is_jinjas() -> None:
    own = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(PLAIN)
    template = ChatTemplate(PLAIN, {"bos_token": "<s>"})
    given: list[dict[str, Any]] = [{}, {"tools": [{"a": 1}]}]
    for more in given:
        want = own.render(messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", **more)
        assert template.render(MESSAGES, **more) == want
    assert not template.render(MESSAGES, add_generation_prompt=False).endswith("<assistant>")
    assert ChatTemplate("{{ messages | tojson }}", {}).render(MESSAGES) == json.dumps(MESSAGES, ensure_ascii=False)


HOSTILE = [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", r"more than 0.3 s of CPU time"),
    (TWICE, "more than 0.3 s of CPU time"),
    (DOUBLING, "more than 256 MiB of memory"),
    ("{{ 'x' * 10 ** 10 }}", "more than 256 MiB of memory"),
    ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 4194304 characters"),
    ("{{ 9 ** 99999999 }}", "more than 0.3 s of CPU time"),
    ("{% for a in range(10 ** 9) %}{% endfor %}", "refuses this conversation: Range too big"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses this conversation: access to attribute"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this conversation: maximum recursion"),
    ("{{ raise_exception('no system role') }}", "refuses this conversation: no system role"),
    ("{% for %}", "is damaged"),
    ("{% if a %}" * 5000 + "{% endif %}" * 5000, "is damaged|refuses"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ messages[7].content }}", "has no element 7"),
    ("{% include '/etc/passwd' %}", "no loader"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), HOSTILE, ids=[str(k) for k in range(len(HOSTILE))])
def test_templates_that_do_harm_are_one_error(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.3 if "CPU" in says else 60.0)
    monkeypatch.setattr(chat, "MOST_MEMORY", 256 << 20)
    template = ChatTemplate(text, {})
    for _ in range(2):  # the process is a new one where the first one was ended
        with pytest.raises(UsageError, match=says) as found:
            template.render(MESSAGES)
        assert len(found.value.message) < 500


def test_what_is_no_plain_data_is_refused() -> None:
    with pytest.raises(UsageError, match="no plain data"):
        ChatTemplate(PLAIN, {"bos_token": ""}).render([{"role": "user", "content": object()}])


def test_threads_share_a_template() -> None:
    template = ChatTemplate(PLAIN, {"bos_token": ""})
    found: list[tuple[str, str]] = []

    def ask(number: int) -> None:
        said: list[dict[str, Any]] = [{"role": "user", "content": str(number)}]
        for _ in range(20):
            found.append((f"<user>{number}<assistant>", template.render(said)))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 80
    assert all(want == got for want, got in found)


def test_its_process_ends_with_it() -> None:
    template = ChatTemplate("{{ messages[0].role }}", {})
    assert template.render(MESSAGES) == "user"
    process = template._process
    assert process is not None
    assert process.poll() is None
    del template
    gc.collect()
    assert process.poll() is not None
