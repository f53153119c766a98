"""What the runtime uses without importing it: the code generator and the compiler. ``arcweld/__init__.py`` sets them.

They are None where the runtime is used by itself; what needs them then says that they are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arcweld.runtime.engine_file import EngineData

# (kernel name, source, headers, arch) -> cubin for exactly that architecture
Rebuild = Callable[[str, str, dict[str, str], str], bytes]

rebuild: Rebuild | None = None
# what in an engine file this version would not make of the file's graph; "" if it would make all of it
difference: Callable[[EngineData], str] | None = None
# what a call takes on a card (its name, or a description's path), with the values of the symbols: driver/estimate.py's
# Estimate
estimate: Callable[[EngineData, str, Mapping[str, int]], Any] | None = None
