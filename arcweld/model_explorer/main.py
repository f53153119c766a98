"""The adapter that Model Explorer loads from an extension's ``main``: an engine file becomes a graph of its launches.

The package ``ai-edge-model-explorer`` imports this; nothing of Arcweld does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from dacite import from_dict
from model_explorer import Adapter, AdapterMetadata, ModelExplorerGraphs, graph_builder

from arcweld.cli.estimate import engine_sizes
from arcweld.compiler.cards import card as card_called
from arcweld.driver.estimate import estimate_engine
from arcweld.report.explorer import collection
from arcweld.report.timeline import modelled
from arcweld.runtime.engine_file import read_engine

CARD = "h100"  # where the settings name none


class EngineAdapter(Adapter):  # type: ignore[misc]
    """Opens ``.engine`` files. Times are modelled, for the card that the setting ``card`` names."""

    metadata: ClassVar[AdapterMetadata] = AdapterMetadata(
        id="arcweld", name="Arcweld engine", source_repo="", fileExts=["engine"],
        description="The kernels of an engine, with their nodes and modelled times.",
    )  # fmt: skip

    def convert(self, model_path: str, settings: dict[str, Any]) -> ModelExplorerGraphs:
        """The graph collection of an engine file, at the sizes that it was verified with. Raises ArcweldError as
        ``read_engine`` and ``estimate_engine`` do.
        """
        data = read_engine(model_path)
        estimate = estimate_engine(data, card_called(str(settings.get("card", CARD))), engine_sizes(data, ""))
        made = collection(modelled(estimate), data.program, Path(model_path).name)
        return {"graphCollections": [from_dict(graph_builder.GraphCollection, made)]}
