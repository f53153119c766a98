"""Whether an engine file may run where its kernels are host code (the ``sim`` device).

It may if this user built or checked it here (``records.py``), if its program and sources are what this version makes of
its graph, or if the caller says so. Kernels on a GPU are not judged.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from arcweld.compiler.errors import UntrustedError
from arcweld.runtime import injected, records
from arcweld.runtime.device import Device
from arcweld.runtime.engine_file import EngineData

log = logging.getLogger("arcweld.runtime")

VARIABLE = "ARCWELD_TRUST"


def accepted(data: EngineData, device: Device, trusted: bool) -> EngineData:
    """``data``, marked as vouched for if ``device`` runs kernels as host code.

    Raises UntrustedError, which says what is odd about the file, if nothing vouches for it.
    """
    if not data.unchecked or device.needs_object_code:
        return data
    vouched = replace(data, unchecked="")
    if trusted or os.environ.get(VARIABLE) == "1":
        log.info("running %s as host code: the caller trusts it", data.program.name)
        return vouched
    if records.known(data.unchecked):
        return vouched
    if injected.difference is None:
        odd = "nothing here can compare it with its graph"
    else:
        odd = injected.difference(data)
    if not odd:
        records.add(data.unchecked)
        return vouched
    raise UntrustedError(
        f"{data.program.name!r} was not built here and is not what this Arcweld makes of its graph ({odd}); "
        f"on the {device.name} device its kernels would run as host code, with all of your rights",
        hint=f"build the engine again from its model; if you trust its maker, load(..., trusted=True), --trust or "
        f"{VARIABLE}=1",
    )
