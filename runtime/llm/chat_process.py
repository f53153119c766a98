"""The process that renders a chat template: a stranger's program, which may loop for ever or fill the memory.

It is run as a script by ``chat.py``, imports nothing of Arcweld's, and has limits of its own. A request is a line of
JSON on standard input, its answer a line on standard output: ``text``, or ``error``.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from typing import Any

_FAILURES = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)  # of templates
_OVERHEAD = 16 << 20  # bytes that are given back when memory is over, to say so


def render(template: Any, most: int, given: dict[str, Any]) -> dict[str, str]:
    """The answer to a request: the text of a conversation, of ``most`` characters at most."""
    from jinja2 import TemplateError

    pieces, length = [], 0
    try:
        for piece in template.generate(**given):
            pieces.append(piece)
            length += len(piece)
            if length > most:
                return {"error": f"the chat template gives more than {most} characters"}
    except (TemplateError, *_FAILURES) as error:
        return {"error": f"the chat template refuses this conversation: {error}"}
    return {"text": "".join(pieces)}


def compiled(text: str) -> Any:
    """The template. Raises what Jinja raises."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the model has said, for training: here it is shown as the rest."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.If(nodes.Const(True), body, [], []).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=("jinja2.ext.loopcontrols", Generation)
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment.from_string(text)


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """The filter ``tojson`` as transformers has it: characters stay as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    """What templates call for the date, by ``strftime``."""
    return datetime.datetime.now().strftime(form)


def _raise(message: str) -> None:
    """What templates call to refuse a conversation."""
    from jinja2 import TemplateError

    raise TemplateError(message)


def _answer(request: dict[str, Any], templates: dict[str, Any]) -> dict[str, str]:
    from jinja2 import TemplateError

    reserve: bytearray | None = bytearray(_OVERHEAD)
    try:
        text = request["template"]
        if text not in templates:
            templates[text] = compiled(text)
        return render(templates[text], request["most"], request["given"])
    except MemoryError:
        reserve = None
        return {"error": f"the chat template needs more than {request['memory'] >> 20} MiB of memory"}
    except (TemplateError, RecursionError) as error:
        return {"error": f"the chat template is damaged: {error}"}
    finally:
        del reserve


def _limit_memory(nbytes: int) -> None:
    """Limits the process's addresses, unless they are limited to fewer."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or nbytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def main() -> None:
    """Answers requests until standard input ends. SIGPROF, whose time is that of the CPU, ends the process."""
    templates: dict[str, Any] = {}
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may have left it ignored
    for line in sys.stdin:
        request = json.loads(line)
        _limit_memory(request["memory"])
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = _answer(request, templates)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
