"""The chat template of a model: a conversation as the text of a prompt, by Jinja in its sandbox.

A template is a program of whoever made the checkpoint. Jinja's sandbox keeps it from the host; it bounds neither its
time nor its memory, so it runs in a process of its own (``chat_process.py``), which is started when it is needed first.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcweld.compiler.errors import EnvironmentError_, UsageError

MOST_CHARACTERS = 1 << 22  # of a prompt
MOST_SECONDS = 5.0  # of CPU time for a prompt
MOST_MEMORY = 1 << 30  # bytes of addresses of the process
_JOINED = re.compile(
    r"""[+~]\s*[\w.\[\]'"]*(?:\.arguments|\[\s*['"]arguments['"]\s*\])\s*(?:[+~]|-?[%}]\})"""
)
_SCRIPT = Path(__file__).with_name("chat_process.py")


class ChatTemplate:
    """A template in Jinja, as model cards and checkpoints have it, with the names of special tokens that it may use.

    ``tool_text`` is the template of conversations with tools, where a model has another one for these. Threads may
    share it.
    """

    def __init__(self, text: str, special: Mapping[str, str], tool_text: str | None = None) -> None:
        self.text, self.tool_text, self.special = text, text if tool_text is None else tool_text, dict(special)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # the process that started it: a fork must not talk to its parent's

    def joins_arguments(self, tools: bool = False) -> bool:
        """Whether it joins the arguments of calls to texts as they are, so that they are given to it as JSON texts.

        ``tools``: in a conversation with tools.
        """
        return _JOINED.search(self.tool_text if tools else self.text) is not None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None, **more: Any,
    ) -> str:  # fmt: skip
        """The prompt of a conversation. All that is given is plain data, as JSON has it.

        Raises UsageError for a template that is damaged, refuses the conversation, reaches for the host or needs more
        than ``MOST_CHARACTERS``, ``MOST_SECONDS`` or ``MOST_MEMORY``, EnvironmentError_ where no process can be
        started.
        """
        given = {
            "documents": None, **self.special, **more, "messages": list(messages), "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        limits = {"most": MOST_CHARACTERS, "seconds": MOST_SECONDS, "memory": MOST_MEMORY}
        try:
            text = self.text if tools is None else self.tool_text
            line = json.dumps({"template": text, "given": given, **limits})
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the conversation is no plain data: {error}") from error
        with self._lock:
            answer = self._asked(line)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer["text"]

    def _asked(self, line: str) -> dict[str, str]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except BrokenPipeError:
            said = ""
        if said:
            answer: dict[str, str] = json.loads(said)
            return answer
        self._process = None
        _end(process)
        if process.returncode == -signal.SIGPROF:
            return {"error": f"the chat template takes more than {MOST_SECONDS:g} s of CPU time"}
        return {"error": f"the chat template ended its process (status {process.returncode})"}

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid():
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    encoding="utf-8",
                )  # fmt: skip
            except OSError as error:
                raise EnvironmentError_(f"no process for the chat template can be started: {error}") from error
            weakref.finalize(self, _end, process)
            self._process, self._owner = process, os.getpid()
        return self._process


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process that answers no more."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except BrokenPipeError:  # what was written last has no reader any more
                continue
