"""How many pages there are, by what a user says."""

from __future__ import annotations

import math
import re

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.package import Description

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def at_most(name: str, value: int | None, most: int) -> int:
    """A setting, by default ``most``. Raises UsageError for one that is not 1 to ``most``."""
    if value is not None and not 1 <= value <= most:
        raise UsageError(f"{name} is {value}, not 1 to {most}, which the engine was built for")
    return most if value is None else value


def bytes_with_draft(model: Description, draft: Description | None) -> int:
    """Bytes of a page, and of the draft model's keys and values of the same positions, rounded up."""
    if draft is None:
        return model.page_bytes
    return model.page_bytes + math.ceil(model.page_size * draft.page_bytes / draft.page_size)


def page_count(pages: int | None, memory: int | str | None, sequences: int, each: int, size: int) -> int:
    """How many pages there are; ``each`` are those of a sequence at full length, ``size`` is a page's bytes."""
    if pages is not None and memory is not None:
        raise UsageError("num_pages and kv_cache_memory say the same: give one of them")
    if pages is not None:
        found = pages
    elif memory is not None:
        found = _bytes(memory) // size
    else:
        found = max(each, min(sequences * each, (1 << 30) // size))
    if found < 1:
        raise UsageError(f"kv_cache_memory {memory} holds no page: one has {size} bytes")
    return found


def _bytes(text: int | str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"kv_cache_memory {text!r} is no number of bytes", hint='as in 536870912 or "512M"')
    return int(float(match[1]) * _UNITS[match[2].upper()])
