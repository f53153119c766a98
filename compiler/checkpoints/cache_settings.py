"""What the configuration of a quantised checkpoint says of caches of keys and values.

That is ``kv_cache_scheme`` (compressed-tensors, newer ModelOpt, AutoFP8) or ``kv_cache_quant_algo`` (ModelOpt).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcweld.compiler.errors import UnsupportedError

_READ = {"num_bits": 8, "type": "float", "dynamic": False, "symmetric": True}  # of a scheme, and its defaults


def states_caches(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a quantised checkpoint say that keys and values are quantised too."""
    return any(settings.get(name) is not None for name in ("kv_cache_quant_algo", "kv_cache_scheme"))


def states_float8(settings: Mapping[str, Any]) -> bool:
    """Whether the settings say that keys and values are kept as f8e4m3 with static scales.

    False if they say nothing of caches. Raises UnsupportedError for caches of any other kind.
    """
    algorithm, scheme = settings.get("kv_cache_quant_algo"), settings.get("kv_cache_scheme")
    other = "" if algorithm in (None, "FP8") else str(algorithm)
    if isinstance(scheme, Mapping):
        differs = [f"{name} {scheme[name]}" for name, value in _READ.items() if scheme.get(name, value) != value]
        other = other or ", ".join(differs)
    elif scheme not in (None, "static"):  # AutoFP8 says no more
        other = other or str(scheme)
    if other:
        raise UnsupportedError(
            f"the checkpoint says that keys and values are quantised by {other[:80]!r}, and floats of 8 bits with "
            "static scales are read", node="quantization_config", hint="name another type: --kv-cache-dtype int8",
        )  # fmt: skip
    return states_caches(settings)
