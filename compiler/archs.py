"""Names of GPU architectures, such as ``sm_80`` and ``sm_90a``, and which code runs on which.

As in nvcc, code with suffix ``a`` runs on exactly one architecture, and code with suffix ``f`` on one family.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"sm_([1-9]\d{1,2})([af]?)")


def parse_arch(name: str) -> tuple[int, str] | None:
    """``sm_90a`` as (90, "a"); None for anything that is not an architecture."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


def runs_on(code: str, target: str) -> bool:
    """Whether code for the architecture ``code`` runs on ``target``. Raises ValueError for any other name."""
    written, given = parse_arch(code), parse_arch(target)
    if written is None or given is None:
        raise ValueError(f"{code!r} or {target!r} is not an architecture")
    (need, suffix), (have, _) = written, given
    if suffix == "a":
        return written == given
    if suffix == "f":
        return need // 10 == have // 10 and need <= have
    return need <= have
