"""Opens a checkpoint, whatever form it has."""

from __future__ import annotations

import logging
from pathlib import Path

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.gguf_file import open_gguf
from arcweld.compiler.checkpoints.huggingface import open_folder
from arcweld.compiler.errors import ModelError

log = logging.getLogger("arcweld.import")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``: the folder of a Hugging Face model, or a GGUF file.

    Files are mapped; nothing but headers and configurations is read. A line of the log says what is there, and what
    would be widened. Raises ModelError for a checkpoint that is missing, damaged or inconsistent, UnsupportedError for
    forms that are not read, EnvironmentError_ for a package that a tensor's type needs.
    """
    place = Path(path)
    if not place.exists():
        raise ModelError("there is no such checkpoint", node=str(place),
                         hint="name the folder of a Hugging Face model, or a GGUF file")  # fmt: skip
    found = open_folder(place) if place.is_dir() else open_gguf(place)
    if log.isEnabledFor(logging.INFO):  # the summary reads the group indices of act-order
        log.info("%s", found.summary())
    return found
