"""Logging: silent by default, switched on for all areas or for some with ``ARCWELD_LOG``."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from arcweld.compiler.errors import UsageError

AREAS = ("import", "passes", "fusion", "codegen", "nvrtc", "runtime", "verify", "torch", "sim")


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
        handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
        root.addHandler(handler)
    for word in (w.strip().lstrip("+").lower() for w in text.split(",")):
        if word in ("info", "debug", "warning"):
            root.setLevel(word.upper())
        elif word in AREAS:
            root.setLevel(min(root.level or logging.INFO, logging.INFO))
            logging.getLogger(f"arcweld.{word}").setLevel(logging.DEBUG)
        else:
            raise UsageError(f"ARCWELD_LOG: unknown area {word!r}", hint=f"info, debug or some of {', '.join(AREAS)}")
