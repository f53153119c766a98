"""The demo's steps: where text is, what is cut out, and the whole run on the simulator."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_models import mlp

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.driver.api import compile as compile_model
from arcweld.models import demo
from arcweld.models.fetch import fetch
from arcweld.runtime.engine import load


def test_the_box_is_the_core_of_the_text_grown_to_whole_letters() -> None:
    probabilities = np.zeros((96, 320), np.float32)
    probabilities[40:50, 30:200] = 0.9
    probabilities[:4] = 0.2  # paper
    grown = round(1.5 * 10 * 170 / (2 * (10 + 170)))
    assert demo.text_box(probabilities) == (30 - grown, 40 - grown, 200 + grown, 50 + grown)
    probabilities[40:96, 0:320] = 0.9
    left, top, right, bottom = demo.text_box(probabilities)
    assert (left, right, bottom) == (0, 320, 96)
    assert 0 < top < 40


def test_a_page_without_text_is_said_to_be_one() -> None:
    with pytest.raises(UsageError, match="no text"):
        demo.text_box(np.zeros((32, 32), np.float32))


@pytest.mark.parametrize("text", ["i", "A line of some length"])
def test_lines_fit_the_recogniser_and_pages_the_detector(text: str) -> None:
    page = demo.draw(text)
    assert page.shape[0] % 32 == page.shape[1] % 32 == 0
    assert page.min() < 64 < 192 < page.max()
    line = demo.cut(page, (30, 20, page.shape[1] - 30, 70))
    assert line.shape[0] == 48
    assert line.shape[1] % 8 == 0


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert demo.main(["--device", "sim", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be created" in capsys.readouterr().err


def test_the_hint_runs_as_it_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "its engines"
    folder.mkdir()
    compile_model(mlp(folder / "mlp.onnx"), device="sim").save(folder / "mlp.engine")
    shell = {"shell": True, "cwd": "/", "env": {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}}
    done = subprocess.run(demo.look_into(folder / "mlp.engine"), text=True, capture_output=True, check=False, **shell)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mlp: 3 kernels")


@pytest.mark.models
@pytest.mark.slow
def test_the_demo_reads_what_it_drew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        fetch("ppocr_rec")
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    arguments = ["--device", "sim", "--arch", "sm_90a", "--text", "Total: 81.50", "--out", str(tmp_path)]
    assert demo.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("Total: 81.50") == 3  # drawn, read by the engines, read by ONNX Runtime
    assert "simulator" in said
    assert f"-m arcweld inspect {tmp_path / 'ppocr_rec.engine'}" in said
    engine = load(tmp_path / "ppocr_rec.engine", device="sim")
    assert {arch for arch, _ in engine.data.cubins} == {"sm_90a"}
