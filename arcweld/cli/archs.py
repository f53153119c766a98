"""``--arch``: architectures by name, ``native`` for those of the local GPUs, and ``list`` for what can be asked for."""

from __future__ import annotations

from arcweld.cli.common import out
from arcweld.compiler.archs import parse_arch
from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.options import OLDEST_ARCH
from arcweld.driver.build import DEFAULT_ARCHS
from arcweld.runtime.devices import gpu_count, open_device

LEVELS = ("none", "ampere+", "sameComputeCapability")


def parse_archs(text: str, level: str = "none") -> tuple[str, ...] | None:
    """The architectures that ``--arch`` names; None for the local GPU's, and none at all after ``list`` was answered.

    ``level`` is trtexec's ``--hardwareCompatibilityLevel``: ``ampere+`` means every architecture of ``DEFAULT_ARCHS``,
    ``sameComputeCapability`` means ``native``. Raises UsageError for an unknown level, EnvironmentError_ for ``native``
    without a GPU.
    """
    if level not in LEVELS:
        raise UsageError(f"hardwareCompatibilityLevel: {level!r} is not one of {', '.join(LEVELS)}")
    words = [w.strip() for w in text.split(",") if w.strip()]
    if "list" in words:
        _print_known()
        return ()
    if not words and level != "none":
        words = [*DEFAULT_ARCHS] if level == "ampere+" else ["native"]
    found = [a for w in words for a in (_native() if w == "native" else [w])]
    return tuple(dict.fromkeys(found)) or (None if gpu_count() else DEFAULT_ARCHS)


def _native() -> list[str]:
    count = gpu_count()
    if not count:
        raise EnvironmentError_("native is the local GPU's architecture, and there is no GPU", hint="name it: sm_90a")
    return [open_device(f"cuda:{i}").arch for i in range(count)]


def _print_known() -> None:
    from arcweld.codegen.nvrtc.compiler import supported_archs

    native = set(_native()) if gpu_count() else set()
    numbers = [f"sm_{n}" for n in supported_archs() if n >= OLDEST_ARCH]
    for name in sorted({*numbers, *DEFAULT_ARCHS}, key=lambda a: (parse_arch(a) or (0, ""))):
        said = [w for w, true in (("of the local GPU", name in native), ("by default", name in DEFAULT_ARCHS)) if true]
        out.print(name + (f"  ({', '.join(said)})" if said else ""))
