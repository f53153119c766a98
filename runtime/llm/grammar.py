"""Structured output: a grammar says which tokens may come next, by the library ``llguidance``.

A schema, a regular expression or a grammar is compiled once and kept by its text. Each result has a state of its own,
which goes on with its tokens: pages may be given up and computed again meanwhile, and the state stays. Guesses are cut
where the grammar refuses them, before they cost a row of a step.

Nobody may stop the loop by a grammar. Before the library sees a text, the limits below are checked: it recurs along
chains of rules until the stack ends, and repeats within repeats take it minutes. Then its own limits hold.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.runtime.llm.grammar_limits import check_size
from arcweld.runtime.llm.params import SamplingParams, StructuredOutputsParams
from arcweld.runtime.llm.sampling import LogitsError
from arcweld.runtime.llm.tokenizer import Tokenizer

log = logging.getLogger("arcweld.llm")
T = TypeVar("T")

KEPT = 64  # compiled grammars, the ones used last
MOST_SYMBOLS = 100_000  # of a compiled grammar
MOST_LEXER_STATES = 20_000  # of a result: 1 to 2 kB each
COMPILE_SECONDS = 10.0
MASK_SECONDS = 2.0  # for the tokens that may come next, once
STACK_BYTES = 256 << 20  # to compile; only what is used of it takes memory
_STACK_LOCK = threading.Lock()  # the size is the process's, for the next thread


class MaskError(LogitsError):
    """The grammar of a result cannot say which tokens may come next."""


class Grammars:
    """The grammars for one model, of ``vocabulary`` tokens. Any thread may use it."""

    def __init__(self, tokenizer: Tokenizer | None, vocabulary: int) -> None:
        self._tokenizer, self.vocabulary = tokenizer, vocabulary
        self._kept: OrderedDict[str, Any] = OrderedDict()  # matchers at their beginning, and errors
        self._lock = threading.Lock()
        self._words: tuple[Any, int] | None = None

    def of_results(self, params: SamplingParams) -> list[Constraint | None]:
        """The states of a request's results; raises as ``start`` does."""
        form = params.structured_outputs
        return [None if form is None else self.start(form) for _ in range(params.best_of or params.n)]

    def start(self, wanted: StructuredOutputsParams) -> Constraint:
        """The state of a result that has no token yet.

        Raises UsageError for a schema, an expression or a grammar that is wrong or beyond the limits, and for a model
        without a tokenizer; EnvironmentError_ without the library.
        """
        if self._tokenizer is None:
            raise UsageError("structured outputs need a tokenizer, and the engine has none")
        text = definition(wanted)
        with self._lock:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
        if found is None:
            found = self._compiled(wanted, text)
            with self._lock:
                self._kept[text] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        if isinstance(found, str):
            raise UsageError(found, hint="docs/language-models.md says what grammars may be")
        return Constraint(found.deep_copy(), self.vocabulary, self._tokens()[1])

    def _compiled(self, wanted: StructuredOutputsParams, text: str) -> Any:
        """A matcher at its beginning, or what is wrong with the grammar."""
        llguidance, (tokens, end) = library(), self._tokens()
        limits = llguidance.LLParserLimits(
            max_grammar_size=MOST_SYMBOLS, max_lexer_states=MOST_LEXER_STATES, verbose_errors=False
        )
        began = time.monotonic()
        matcher = _with_stack(lambda: llguidance.LLMatcher(tokens, text, log_level=0, limits=limits))
        wrong = matcher.get_error()
        if not wrong:
            for warning in matcher.get_grammar_warnings():
                log.warning("%s of a request: %s", wanted.kind, warning)
            first = Constraint(matcher.deep_copy(), self.vocabulary, end)
            wrong = first.error or ("it allows no text" if first.complete else "")
        if not wrong and (spent := time.monotonic() - began) > COMPILE_SECONDS:
            wrong = f"it took {spent:.0f} s to compile, more than {COMPILE_SECONDS:g} s"
        return f"the {wanted.kind} is refused: {_first_line(wrong)}" if wrong else matcher

    def _tokens(self) -> tuple[Any, int]:
        with self._lock:
            if self._words is None:
                assert self._tokenizer is not None
                self._words = _words(self._tokenizer, self.vocabulary)
            return self._words


class Constraint:
    """Which tokens may follow those that a result has.

    complete  the result is one that the grammar allows, and nothing may follow it
    error     why the grammar cannot go on; empty if it can
    """

    def __init__(self, matcher: Any, vocabulary: int, end: int) -> None:
        """``matcher`` is the library's, at its beginning, and belongs to the state; ``end`` is its token of the end."""
        self._matcher, self._vocabulary, self._end = matcher, vocabulary, end
        self.complete, self.error = False, ""
        self._refresh()

    def _refresh(self) -> None:
        began = time.monotonic()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little").astype(bool)
        self._accepting = bool(mask[self._end])
        mask[self._end] = False  # which tokens end a result is said by ``allowed``
        self._mask = mask[: self._vocabulary]
        self.error = _first_line(self._matcher.get_error())
        if not self.error and (spent := time.monotonic() - began) > MASK_SECONDS:
            self.error = f"the next tokens took {spent:.1f} s to find, more than {MASK_SECONDS:g} s"
        self.complete = not self.error and self._accepting and not self._mask.any()

    def allowed(self, ends: Collection[int]) -> np.ndarray:
        """bool[vocabulary]: the tokens that may come next. Of ``ends``, at which a result ends, all or none may.

        Raises MaskError if the grammar cannot go on.
        """
        if self.error:
            raise MaskError(f"the grammar gives no tokens: {self.error}")
        found = self._mask.copy()
        found[list(ends)] = self._accepting
        return found

    def take(self, token: int) -> None:
        """The token that was allowed comes next."""
        if not self.error:
            self._matcher.consume_token(token)
            self._refresh()

    def prefix(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first one on, the grammar allows one after another."""
        return 0 if self.error else int(self._matcher.validate_tokens(list(tokens)))


def library() -> Any:
    """The package ``llguidance``. Raises EnvironmentError_ without it."""
    try:
        import llguidance
    except ImportError as error:
        raise EnvironmentError_(
            "structured outputs need the package llguidance", hint='pip install "arcweld[llm]", or arcweld[serve]'
        ) from error
    return llguidance


def definition(wanted: StructuredOutputsParams) -> str:
    """The grammar in the library's dialect of Lark. Raises UsageError for a text that is none of its kind or too large.

    The library does not tokenize texts that are forced (``no_forcing``): where one holds the name of a special token,
    it would take that token, which is no text, and then refuse it.
    """
    check_size(wanted)
    try:
        text = _lark(wanted)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the {wanted.kind} is refused: {_first_line(str(error))}") from error
    return text if text.lstrip().startswith("%llguidance") else f'%llguidance {{"no_forcing": true}}\n{text}'


def _lark(wanted: StructuredOutputsParams) -> str:
    make = library().LLMatcher
    if wanted.regex is not None:
        return str(json.loads(make.grammar_from_regex(wanted.regex))["grammars"][0]["lark_grammar"])
    if wanted.grammar is not None:
        return _translated(wanted.grammar)
    if wanted.choice is not None:
        return "start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in wanted.choice)
    options = {"whitespace_flexible": not wanted.disable_any_whitespace, "lenient": wanted.lenient}
    made = json.loads(make.grammar_from_json_schema(schema(wanted), overrides=options))["grammars"][0]["json_schema"]
    return f"start: %json {json.dumps(made, ensure_ascii=False)}"


def schema(wanted: StructuredOutputsParams) -> str:
    """The JSON schema as a text."""
    if wanted.json_object:
        return '{"type": "object"}'
    return wanted.json if isinstance(wanted.json, str) else json.dumps(wanted.json, ensure_ascii=False)


def _translated(text: str) -> str:
    """A grammar in Lark's form; GBNF's ``name ::= …`` is translated by the library."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(text)).removeprefix("%llguidance {}")
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(str(error)) from error


def _words(tokenizer: Tokenizer, vocabulary: int) -> tuple[Any, int]:
    """The library's form of the tokenizer, and a token in it that is none of the model's and stands for the end.

    Raises UsageError for a tokenizer whose tokens are no known bytes.
    """
    llguidance = library()
    try:
        if tokenizer.is_plain:
            words = llguidance.TokenizerWrapper(_PlainTokens(tokenizer, vocabulary))
            return llguidance.LLTokenizer(words, n_vocab=vocabulary + 1, eos_token=[vocabulary]), vocabulary
        text, end = tokenizer.with_end()
        return llguidance.LLTokenizer(text, n_vocab=max(vocabulary, end + 1), eos_token=[end]), end
    except ValueError as error:
        raise UsageError(f"structured outputs do not know this tokenizer: {_first_line(str(error))}") from error


class _PlainTokens:
    """The tokens of a tokenizer that joins their texts as they are, by the names that the library asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end
        self.special_token_ids = sorted({*tokenizer.special, end})
        names = [*(tokenizer.name(k).encode() for k in range(end)), b"<end>"]
        special = frozenset(self.special_token_ids)  # a byte that no text has tells them from text
        self.tokens = [b"\xff" * (k in special) + name for k, name in enumerate(names)]

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, add_special_tokens=False)


def _with_stack(work: Callable[[], T]) -> T:
    """The result of ``work`` in a thread whose stack holds the library's recursion over what the limits allow."""
    with _STACK_LOCK, ThreadPoolExecutor(1, "arcweld-grammar") as pool:
        before = threading.stack_size(STACK_BYTES)
        try:
            found = pool.submit(work)
        finally:
            threading.stack_size(before)
        return found.result()


def _first_line(text: str) -> str:
    """What an error of the library's says, without the place that it draws."""
    lines = text.strip().split("\n")
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (reasons or lines)[0][:300]
