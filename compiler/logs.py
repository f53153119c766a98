"""Logging: silent by default, switched on for all areas or for some with ``ARCWELD_LOG``."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from arcweld.compiler.errors import UsageError

AREAS = ("import", "passes", "fusion", "codegen", "nvrtc", "runtime", "verify", "torch", "sim")


# what a terminal obeys instead of showing it: control characters but for tab and line feed, and changes of direction
_OBEYED = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}
_OBEYED |= {c: f"\\u{c:04x}" for c in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """``text`` with escapes instead of what terminals obey: names of a model or an engine may hold anything."""
    return text.translate(_OBEYED)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to ``sys.stderr`` as it is when a line is written: a program may replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(spec: str | None = None) -> None:
    """Sets the loggers' levels from ``spec``, or from ``ARCWELD_LOG`` where it is None.

    The text lists levels (``info``, ``debug``, ``warning``) and areas, such as ``+fusion,codegen``. A listed area logs
    at level debug. Raises UsageError for any other word.
    """
    text = os.environ.get("ARCWELD_LOG", "") if spec is None else spec
    if not text:
        return
    root = logging.getLogger("arcweld")
    if not root.handlers:
        handler = _Stderr()
        handler.setFormatter(_Printable("[%(name)s] %(message)s"))
        root.addHandler(handler)
    for word in (w.strip().lstrip("+").lower() for w in text.split(",")):
        if word in ("info", "debug", "warning"):
            root.setLevel(word.upper())
        elif word in AREAS:
            root.setLevel(min(root.level or logging.INFO, logging.INFO))
            logging.getLogger(f"arcweld.{word}").setLevel(logging.DEBUG)
        else:
            raise UsageError(f"ARCWELD_LOG: unknown area {word!r}", hint=f"info, debug or some of {', '.join(AREAS)}")
