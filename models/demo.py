"""The demonstration, ``python -m arcweld.models.demo``: builds two published models, saves and loads them, reads text.

PP-OCRv4 reads a picture of one line of text: the detector finds the text, the recogniser reads it. Both are engines
with code for five architectures. Without a GPU they run on the simulator. ONNX Runtime's results are compared.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from arcweld.cli.common import progress_bar
from arcweld.compiler.errors import ArcweldError, EnvironmentError_, UsageError
from arcweld.compiler.paths import cache_dir
from arcweld.driver import api
from arcweld.driver.build import DEFAULT_ARCHS, Build
from arcweld.driver.metrics import relative_error
from arcweld.driver.summary import summary
from arcweld.models.catalogue import Feeds, ctc_text, planes
from arcweld.models.fetch import fetch, is_fetched
from arcweld.runtime.device import Device
from arcweld.runtime.devices import choose, gpu_count, open_device
from arcweld.runtime.engine import Engine, load

if TYPE_CHECKING:
    import onnxruntime

TEXT = "Fused kernels, verified: 2024"
TEXT_HEIGHT = 48  # pixels, which the recogniser was trained on
GRID = 32  # the sides of the detector's image are multiples of this, because it halves the image five times
INK = 0.3  # probability from which a pixel counts as text
GROWTH = 1.5  # the detector marks a shrunken line of text; its box grows by this times area over perimeter
T = TypeVar("T")


@dataclass
class Part:
    """One of the two models: its build, its engine as loaded from the file, and what was measured.

    ``seconds`` is by stage, ``error`` the relative difference from ONNX Runtime, ``sizes`` the symbols' sizes.
    """

    name: str
    build: Build
    engine: Engine
    file: Path
    peer: onnxruntime.InferenceSession | None
    seconds: dict[str, float] = field(default_factory=dict)
    error: float = float("nan")
    sizes: dict[str, int] = field(default_factory=dict)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The engine's result for ``f32[1, 3, H, W]``, and ONNX Runtime's where it is installed."""
        name = self.engine.inputs[0].name
        got, self.seconds["run"] = _timed(lambda: np.asarray(self.engine(image)))
        if self.peer is None:
            return got, None
        peer = self.peer
        (want,), self.seconds["peer"] = _timed(lambda: peer.run(None, {name: image}))
        self.error = relative_error(got, want)
        return got, want


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration. Returns the exit code: 0 if the text was read correctly, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m arcweld.models.demo", description=__doc__)
    parser.add_argument("--text", default=TEXT, help="the line to draw and read")
    parser.add_argument("--device", default=None, help="cuda, cuda:N or sim; default: a GPU if there is one")
    parser.add_argument("--arch", default=",".join(DEFAULT_ARCHS), help="architectures to compile for")
    parser.add_argument("--out", default=None, help="folder for the engines and the picture; default: the cache")
    args = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        return demonstrate(
            console, args.text, args.device, args.arch.split(","), Path(args.out or cache_dir() / "demo")
        )
    except ArcweldError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        return error.exit_code


def demonstrate(console: Console, text: str, device: str | None, archs: Sequence[str], folder: Path) -> int:
    """Runs all steps, prints them on ``console`` and writes engines and picture to ``folder``; the exit code."""
    started = time.perf_counter()
    where = open_device(choose(device))
    why = "" if gpu_count() else ", because this machine has no NVIDIA GPU: times below are the simulator's"
    console.print(f"Device: [bold]{where.name}[/] {where.arch}{why}")
    console.print(f"Code for {', '.join(archs)}")
    _make(folder)
    page = draw(text)
    picture = folder / "page.png"
    _save_picture(page, picture)
    detector_input = planes(page, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    detector = prepare(console, "ppocr_det", (1, 3, "32*h", "32*w"), {"x": detector_input}, archs, where, folder)
    found, found_peer = detector.run(detector_input)
    left, top, right, bottom = text_box(found[0, 0])
    console.print(f"Found text in x {left}..{right}, y {top}..{bottom} of {page.shape[1]} x {page.shape[0]} pixels")
    line = planes(cut(page, (left, top, right, bottom)), (0.5,) * 3, (0.5,) * 3)
    recogniser = prepare(console, "ppocr_rec", (1, 3, TEXT_HEIGHT, "8*w"), {"x": line}, archs, where, folder)
    read, read_peer = recogniser.run(line)
    characters = alphabet(fetch("ppocr_rec"))
    ours = ctc_text(read[0], characters)
    console.print(report((detector, recogniser)))
    console.print(f"\nDrawn         {text}\nArcweld       {ours}", markup=False)
    if read_peer is None or found_peer is None:
        console.print("ONNX Runtime  is not installed: nothing to compare with (pip install onnxruntime)")
    else:
        console.print(f"ONNX Runtime  {ctc_text(read_peer[0], characters)}", markup=False)
        worst = max(float(np.abs(a - b).max()) for a, b in ((found, found_peer), (read, read_peer)))
        console.print(f"Largest difference of a probability: {worst:.1e}")
    console.print(f"\nPicture {picture}")
    for part in (detector, recogniser):
        console.print(f"Engine  {part.file}")
    console.print(f"Look into one: {look_into(recogniser.file)}", markup=False)
    console.print(f"All in {time.perf_counter() - started:.0f} s")
    return 0 if squeezed(ours) == squeezed(text) else 1


def look_into(file: Path) -> str:
    """The command line that describes an engine, which runs in any folder, in an activated environment or not."""
    return f"{shlex.quote(sys.executable)} -m arcweld inspect {shlex.quote(str(file.absolute()))}"


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be created: {error.strerror}", hint="name another --out") from error


def squeezed(text: str) -> str:
    """The text without spaces, which the recogniser does not read reliably."""
    return "".join(text.split())


# ---------------------------------------------------------------------------------------------------------- models


def prepare(
    console: Console, name: str, shape: Sequence[int | str], feeds: Feeds, archs: Sequence[str], where: Device,
    folder: Path,
) -> Part:  # fmt: skip
    """Fetches, imports, compiles, verifies on ``feeds``, saves and loads one model.

    ``shape`` is that of the input and may have symbolic dimensions.
    """
    how = "from the cache" if is_fetched(name) else "downloaded"
    path, fetching = _timed(lambda: fetch(name))
    console.print(f"\n[bold]{name}[/]: {path.stat().st_size / 1e6:.1f} MB, {how} in {fetching:.1f} s")
    graph, importing = _timed(lambda: api.import_model(path, inputs=[api.Input("x", shape)]))
    with progress_bar() as progress:
        build, engine = api.build_engine(
            graph, arch=archs, device=where, feeds=feeds, verify_budget=10.0, progress=progress
        )
    console.print(f"  {summary(build, where)}")
    file = folder / f"{name}.engine"
    engine.save(file)
    loaded, loading = _timed(lambda: load(file, device=where))
    part = Part(name, build, loaded, file, _peer(path))
    part.seconds = {**build.seconds, "import": importing, "load": loading}
    part.sizes = dict(build.sizes)
    return part


def _peer(path: Path) -> onnxruntime.InferenceSession | None:
    """ONNX Runtime's session for the same file; None if it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def alphabet(path: Path) -> list[str]:
    """The recogniser's characters, from the metadata of the file, and a space as the last one.

    Raises EnvironmentError_ for a file without them.
    """
    found = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    if "character" not in found:
        raise EnvironmentError_("the recogniser's file does not name its characters", node=str(path))
    return [*found["character"].splitlines(), " "]


def report(parts: Sequence[Part]) -> Table:
    """A table with one column for each model: sizes and times."""
    table = Table(box=None, padding=(0, 2), show_edge=False)
    table.add_column("", style="dim")
    for part in parts:
        table.add_column(part.name, justify="right")
    for title, cell in ROWS:
        table.add_row(title, *[cell(p) for p in parts])
    return table


def _kernels(p: Part) -> str:
    return f"{len(p.engine.program.launches)} ({len(p.build.data.sources)} distinct)"


def _workspace(p: Part) -> str:
    return f"{p.engine.memory(**p.sizes).arena / 1e6:.2f} MB"


ROWS: tuple[tuple[str, Callable[[Part], Any]], ...] = (
    ("nodes in the model", lambda p: str(len(p.build.imported.nodes))),
    ("kernel launches", _kernels),
    ("kernels compiled, all architectures", lambda p: str(len(p.build.data.cubins))),
    ("weights", lambda p: f"{sum(w.nbytes for w in p.build.data.weights.values()) / 1e6:.2f} MB"),
    ("workspace", _workspace),
    ("engine file", lambda p: f"{p.file.stat().st_size / 1e6:.2f} MB"),
    ("import, passes, fusion", lambda p: f"{sum(p.seconds[k] for k in ('import', 'passes', 'fusion')):.2f} s"),
    ("write kernels", lambda p: f"{p.seconds['codegen']:.2f} s"),
    ("compile kernels (NVRTC)", lambda p: f"{p.seconds['nvrtc']:.2f} s"),
    ("verify", lambda p: f"{p.seconds['verify']:.2f} s"),
    ("load", lambda p: f"{p.seconds['load']:.2f} s"),
    ("run", lambda p: f"{p.seconds['run'] * 1e3:.1f} ms"),
    ("ONNX Runtime on the CPU", lambda p: f"{p.seconds['peer'] * 1e3:.1f} ms" if p.peer else "not installed"),
    ("relative difference", lambda p: f"{p.error:.1e}" if p.peer else "not compared"),
)


# --------------------------------------------------------------------------------------------------------- picture


def draw(text: str) -> np.ndarray:
    """Black text on a white page, as ``u8[H, W, 3]`` with sides that are multiples of ``GRID``."""
    image_, draw_, font_ = _pillow()
    font = font_.load_default(size=40)
    width = int(font.getlength(text)) + 64
    page = image_.new("RGB", (-(-width // GRID) * GRID, 3 * GRID), "white")
    draw_.Draw(page).text((32, 24), text, fill="black", font=font)
    return np.asarray(page)


def text_box(probabilities: np.ndarray) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom; in pixels) around the text in ``f32[H, W]`` probabilities of text.

    It is enlarged to whole letters. Raises UsageError if there is no text.
    """
    rows, columns = (np.flatnonzero((probabilities > INK).any(axis=a)) for a in (1, 0))
    if not rows.size:
        raise UsageError("the detector sees no text in the picture", hint="draw other --text")
    tall, wide = int(rows[-1] + 1 - rows[0]), int(columns[-1] + 1 - columns[0])
    margin = round(GROWTH * tall * wide / (2 * (tall + wide)))
    height, width = probabilities.shape
    return (
        max(int(columns[0]) - margin, 0), max(int(rows[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, width), min(int(rows[-1]) + 1 + margin, height),
    )  # fmt: skip


def cut(page: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part of a page inside a box, scaled to ``TEXT_HEIGHT`` and padded with white to a width in multiples of 8."""
    image_, _, _ = _pillow()
    part = image_.fromarray(page).crop(box)
    width = max(round(part.width * TEXT_HEIGHT / part.height), 8)
    line = image_.new("RGB", (-(-width // 8) * 8, TEXT_HEIGHT), "white")
    line.paste(part.resize((width, TEXT_HEIGHT)))
    return np.asarray(line)


def _save_picture(page: np.ndarray, path: Path) -> None:
    _pillow()[0].fromarray(page).save(path)


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise EnvironmentError_("the demo draws its text with Pillow", hint="pip install pillow") from error
    return Image, ImageDraw, ImageFont


if __name__ == "__main__":
    sys.exit(main())
