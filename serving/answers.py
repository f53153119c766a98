"""Results as OpenAI's API has them: whole answers, and the chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arcweld.runtime.llm.outputs import CompletionOutput, RequestOutput
from arcweld.runtime.llm.sampling import Logprob
from arcweld.runtime.llm.tokenizer import Tokenizer
from arcweld.serving.tool_calls.answer import News
from arcweld.serving.tool_calls.reader import CallReader, read
from arcweld.serving.worker import Piece

LEAST = -9999.0  # stands for the logarithm of 0, which JSON does not have
Reported = Mapping[int, Logprob] | None  # of one token: the most likely ones and itself


def names(tokenizer: Tokenizer | None, token: int) -> str:
    """A token as text; without a tokenizer by its number."""
    return f"token_id:{token}" if tokenizer is None else tokenizer.token(token)


def usage(prompt: int, cached: int, results: int) -> dict[str, Any]:
    """Counts of tokens."""
    return {
        "prompt_tokens": prompt, "completion_tokens": results, "total_tokens": prompt + results,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def usage_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """The tokens of a request's prompts and results."""
    return usage(
        sum(len(o.prompt_token_ids) for o in outputs), sum(o.num_cached_tokens for o in outputs),
        sum(len(r.token_ids) for o in outputs for r in o.outputs),
    )  # fmt: skip


class CompletionForm:
    """Results of ``/v1/completions``.

    top   how many of the most likely tokens are reported with each; None: none
    echo  the texts of the prompts, which come before the results; None: they don't
    bare  the results themselves are left out: only the prompts are wanted
    """

    whole = chunks = "text_completion"

    def __init__(
        self, tokenizer: Tokenizer | None, top: int | None, echo: Sequence[str] | None = None, bare: bool = False
    ) -> None:
        self.tokenizer, self.top, self.echo, self.bare = tokenizer, top, echo, bare
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, number: int, prompt: RequestOutput, result: CompletionOutput) -> dict[str, Any]:
        """A complete result of the prompt with this number."""
        ids, reported = list(result.token_ids), list(result.logprobs or ())
        text = result.text
        if self.bare:
            ids, reported, text = [], [], ""
        if self.echo is not None:
            text = self.echo[number] + text
            ids, reported = [*prompt.prompt_token_ids, *ids], [*(prompt.prompt_logprobs or ()), *reported]
        reason = "length" if self.bare else result.finish_reason
        return self._choice(index, text, ids, reported, reason, result.stop_reason)

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """What is new of a result."""
        return self._choice(index, piece.text, piece.token_ids, piece.logprobs, piece.finish_reason, piece.stop_reason)

    def opening(self, index: int, text: str) -> dict[str, Any]:
        """The text of the prompt before the results of a stream."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _choice(
        self, index: int, text: str, ids: Sequence[int], reported: Sequence[Reported], reason: str | None,
        stop: int | str | None,
    ) -> dict[str, Any]:  # fmt: skip
        logprobs = None if self.top is None else self._logprobs(index, ids, reported)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, "stop_reason": stop}

    def _logprobs(self, index: int, ids: Sequence[int], reported: Sequence[Reported]) -> dict[str, Any]:
        texts = [names(self.tokenizer, t) for t in ids]
        at, offsets = self._offsets.get(index, 0), []
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        return {
            "text_offset": offsets, "tokens": texts,
            "token_logprobs": [None if e is None else _finite(e[t].logprob) for t, e in zip(ids, reported)],
            "top_logprobs": [None if e is None else self._top(e) for e in reported],
        }  # fmt: skip

    def _top(self, entry: Mapping[int, Logprob]) -> dict[str, float]:
        """The most likely tokens by their text; of tokens with one text the most likely one."""
        found: dict[str, float] = {}
        for token, value in entry.items():
            found.setdefault(names(self.tokenizer, token), _finite(value.logprob))
        return found


class ChatForm:
    """Results of ``/v1/chat/completions``.

    top     as for ``CompletionForm``
    reader  makes what tells calls of tools from other text; None: all is text
    """

    whole, chunks = "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, top: int | None, reader: Callable[[], CallReader] | None = None) -> None:
        self.tokenizer, self.top, self._reader = tokenizer, top, reader
        self._readers: dict[int, CallReader] = {}

    def choice(self, index: int, number: int, prompt: RequestOutput, result: CompletionOutput) -> dict[str, Any]:
        """A complete result."""
        reader = None if self._reader is None else self._reader()
        text, calls = (result.text, ()) if reader is None else read(reader, result.text)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if reader is not None and calls:
            message["tool_calls"] = [
                {"id": reader.form.call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in calls
            ]
        return {
            "index": index, "message": message, "logprobs": self._logprobs(result.token_ids, result.logprobs or ()),
            "finish_reason": _reason(result.finish_reason, bool(calls)), "stop_reason": result.stop_reason,
        }  # fmt: skip

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """What is new of a result."""
        found: dict[str, Any] = {"content": piece.text} if piece.text else {}
        called = False
        if self._reader is not None:
            reader = self._readers.setdefault(index, self._reader())
            news = reader.add(piece.text), reader.finish() if piece.finish_reason else News()
            found = _news(news, reader.form.call_id)
            called = reader.count > 0
        return {
            "index": index, "delta": found, "logprobs": self._logprobs(piece.token_ids, piece.logprobs),
            "finish_reason": _reason(piece.finish_reason, called),
        }  # fmt: skip

    def opening(self, index: int, text: str) -> dict[str, Any]:
        """What comes before the results of a stream: who speaks."""
        return {
            "index": index, "delta": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": None,
        }  # fmt: skip

    def _logprobs(self, ids: Sequence[int], reported: Sequence[Reported]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        content = []
        for token, entry in zip(ids, reported):
            assert entry is not None
            likely = [self._token(t, v) for t, v in entry.items() if v.rank <= self.top]
            content.append({**self._token(token, entry[token]), "top_logprobs": likely})
        return {"content": content, "refusal": None}

    def _token(self, token: int, value: Logprob) -> dict[str, Any]:
        text = self.tokenizer.token(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else the token is a part of a character
        return {"token": text, "logprob": _finite(value.logprob), "bytes": list(text.encode()) if whole else None}


def _reason(reason: str | None, called: bool) -> str | None:
    """Why a result ended, as OpenAI names it: one that calls tools did not end, it waits for them."""
    return "tool_calls" if reason == "stop" and called else reason


def _news(pieces: Sequence[News], call_id: Callable[[], str]) -> dict[str, Any]:
    """Text and pieces of calls as a stream has them: the name where a call begins, then its arguments bit by bit."""
    text = "".join(p.text for p in pieces)
    calls: list[dict[str, Any]] = []
    for number, name, arguments in (c for p in pieces for c in p.calls):
        function: dict[str, Any] = {"arguments": arguments}
        if name is None:
            calls.append({"index": number, "function": function})
        else:
            calls.append({
                "index": number, "id": call_id(), "type": "function", "function": {"name": name, **function},
            })  # fmt: skip
    return {**({"content": text} if text else {}), **({"tool_calls": calls} if calls else {})}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


class Envelope:
    """What every answer and every chunk of one request has round its choices."""

    def __init__(self, form: CompletionForm | ChatForm, identifier: str, model: str) -> None:
        self.form = form
        self._common = {"id": identifier, "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> dict[str, Any]:
        """A complete answer."""
        return {**self._common, "object": self.form.whole, "choices": list(choices), "usage": dict(counts)}

    def chunk(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """A part of a stream."""
        return {**self._common, "object": self.form.chunks, "choices": list(choices), **more}
