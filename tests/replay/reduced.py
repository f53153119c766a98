"""A kernel's source with its headers in place, without comments, and without definitions that nothing reaches.

Equal reduced texts give equal object code. So a header may gain a function, or a comment, and no kernel is compiled.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<space>(?:\s|//[^\n]*|/\*.*?\*/)+)"
    r"|(?P<directive>#(?:[^\n\\/]|\\\n|\\.|/(?![/*]))*)"
    r'|(?P<text>"(?:[^"\\\n]|\\.)*"' + r"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>.)",
    re.S,
)
_INCLUDE = re.compile(r'#\s*include\s+"([^"]+)"')
_ONCE = re.compile(r"#\s*pragma\s+once\b")
_NAME = re.compile(r"[A-Za-z_]\w*")
_TYPES = ("struct", "class", "union")  # an enum stays: its values are used without its name
_QUALIFIERS = ("noexcept", "requires", "decltype", "alignas", "__align__", "__launch_bounds__", "__attribute__")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A directive or a declaration at file scope.

    ``defines`` is the name of a function or a type that may be left out if nothing uses it; empty: it always stays.
    Overloads and specialisations share a name, so that they stay or go together.
    """

    text: str
    defines: str
    uses: frozenset[str]


def reduced(source: str, headers: Mapping[str, str]) -> str:
    """The text that remains, still a complete program."""
    chunks = list(_expanded(source, headers, set()))
    named: dict[str, list[_Chunk]] = {}
    for c in chunks:
        named.setdefault(c.defines, []).append(c)
    reached, todo = {""}, [u for c in named.get("", ()) for u in c.uses]
    while todo:
        name = todo.pop()
        if name in named and name not in reached:
            reached.add(name)
            todo += [u for c in named[name] for u in c.uses]
    return "\n".join(c.text for c in chunks if c.defines in reached) + "\n"


def _expanded(text: str, headers: Mapping[str, str], seen: set[str]) -> Iterator[_Chunk]:
    """The chunks of a text, included headers in their place and each of them once."""
    for c in _chunks(text):
        found = _INCLUDE.match(c.text)
        if found is None or found[1] not in headers:
            yield c
        elif found[1] not in seen:
            seen.add(found[1])
            yield from _expanded(headers[found[1]], headers, seen)


@functools.lru_cache(maxsize=256)
def _chunks(text: str) -> tuple[_Chunk, ...]:
    """The declarations of one file. What isn't recognised joins its neighbour, which then stays with it."""
    found: list[_Chunk] = []
    tokens: list[tuple[str, str]] = []
    depth, function = 0, False
    for kind, token in _tokens(text):
        if kind == "space" and not tokens:
            continue
        if kind == "directive" and not tokens:
            if not _ONCE.match(token):
                found.append(_Chunk(token, "", frozenset(_NAME.findall(token))))
            continue
        if depth == 0 and token == "{":
            function = _last_sign(tokens) == ")"
        tokens.append((kind, token))
        depth += (kind == "sign") * ((token in "({[") - (token in ")}]"))
        if depth == 0 and kind == "sign" and (token == ";" or (token == "}" and function)):
            found.append(_chunk(tokens))
            tokens, function = [], False
    if tokens:
        found.append(_chunk(tokens))
    return tuple(found)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """(kind, token); a run of blanks and comments is one blank, and a directive has a line of its own."""
    for m in _TOKEN.finditer(text):
        kind = str(m.lastgroup)
        if kind == "space":
            yield kind, " "
        else:
            yield kind, f"{m[0].strip()}\n" if kind == "directive" else m[0]


def _last_sign(tokens: Sequence[tuple[str, str]]) -> str:
    return next((t for kind, t in reversed(tokens) if kind != "space"), "")


def _chunk(tokens: Sequence[tuple[str, str]]) -> _Chunk:
    text = "".join(f"\n{t}" if kind == "directive" else t for kind, t in tokens)
    uses = frozenset(t for kind, t in tokens if kind == "name")
    uses |= {n for kind, t in tokens if kind == "directive" for n in _NAME.findall(t)}
    return _Chunk(text.strip(), _defined([t for kind, t in tokens if kind != "space"]), uses)


def _defined(tokens: Sequence[str]) -> str:
    """The name of the function or type that is defined with a body; empty for anything else, and for kernels."""
    if "{" not in tokens or "__global__" in tokens:
        return ""
    head = tokens[: tokens.index("{")]
    name = _function_name(head) if head[-1] == ")" else _type_name(head)
    return name if _NAME.fullmatch(name) and name not in _QUALIFIERS else ""


def _function_name(head: Sequence[str]) -> str:
    """What stands before the last parentheses; empty where those may hold no parameters, as in ``-> decltype(x)``."""
    if "operator" in head or "-" in head or ":" in head:
        return ""
    depth = 0
    for k in range(len(head) - 1, 0, -1):
        depth += (head[k] == ")") - (head[k] == "(")
        if depth == 0:
            return head[k - 1]
    return ""


def _type_name(head: Sequence[str]) -> str:
    """What follows ``struct`` and ``alignas(…)``; empty for other attributes and where no type is defined."""
    for k, t in enumerate(head):
        if t in _TYPES and head[:k].count("<") == head[:k].count(">"):  # not a template's parameter
            rest = head[k + 1 :]
            if rest[:1] == ["alignas"]:
                rest = rest[_closing(rest) + 1 :]
            return rest[0] if rest else ""
    return ""


def _closing(tokens: Sequence[str]) -> int:
    """The index of the parenthesis that closes the first one."""
    depth = 0
    for k, t in enumerate(tokens):
        depth += (t == "(") - (t == ")")
        if t == ")" and depth == 0:
            return k
    return len(tokens)
