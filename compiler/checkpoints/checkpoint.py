"""An opened checkpoint: its tensors by name, and what its files say of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcweld.compiler.checkpoints.tensors import StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint whose files are mapped, not read.

    path          the folder or the file
    form          ``Hugging Face`` or ``GGUF``
    quantisation  the method that the configuration names, such as ``gptq``; empty for none, and for GGUF, whose tensors
                  have a type each
    config        what describes the model: ``config.json``, or GGUF's metadata
    tensors       by name
    settings      what the configuration says of the method
    """

    path: Path
    form: str
    quantisation: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def widened(self) -> dict[str, str]:
        """Each tensor that becomes f32 in the IR though it is stored in fewer bits, with the reason."""
        reasons = {name: t.widened for name, t in self.tensors.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def summary(self) -> str:
        """One line: how many tensors there are of each layout, their bytes, and what is widened."""
        kinds = Counter(t.layout.kind for t in self.tensors.values())
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        size = sum(t.nbytes for t in self.tensors.values())
        widened = Counter(self.widened().values())
        said = "".join(f"; {count} widened to f32: {reason}" for reason, count in widened.items())
        method = f" ({self.quantisation})" if self.quantisation else ""
        return f"{self.form}{method}: {listed}; {size / 1e6:.1f} MB{said}"
