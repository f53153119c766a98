"""``report``: what the page holds, that it needs nothing else, and that no name from a file becomes markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import onnx
import pytest
from cli_models import mlp, mlp_weights, save_model
from export_tools import Printed
from export_tools import on_the_simulator as on_the_simulator
from export_tools import printed as printed
from onnx import helper as h
from PIL import Image

from arcweld.cli.app import main
from arcweld.report import page as report_page
from arcweld.runtime.cubin import registers
from arcweld.runtime.engine_file import read_engine, write_engine

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</script><img src=x onerror=alert(1)>"
HOSTILE_VALUE = "x\"'><svg onload=alert(2)>&amp;"


class Page(HTMLParser):
    """What a browser would make of a page: its elements with attributes, and the text by the section that it is in."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: dict[str, str] = {}
        self.section, self.data, self.inside = "", "", ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self.section = found.get("id") or "" if tag == "section" else self.section
        self.inside = "data" if found.get("id") == "data" else tag
        if tag == "tbody":
            self.rows.append([])
        if tag == "td" and self.rows and len(self.rows[-1]) < 16:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "data":
            self.data += data
        self.text[self.section] = self.text.get(self.section, "") + data
        if self.section == "kernels" and self.rows and self.rows[-1] and self.inside != "pre":
            self.rows[-1][-1] += data

    def values(self) -> dict[str, Any]:
        """The page's data, as JSON has them."""
        found: dict[str, Any] = json.loads(self.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        return found

    def pictures(self) -> dict[str, list[ET.Element]]:
        """The pictures by their title, read by an XML parser."""
        found: dict[str, list[ET.Element]] = {}
        for text in re.findall(r"<svg.*?</svg>", self.source, re.S):
            picture = ET.fromstring(text)
            found.setdefault(picture.attrib["aria-label"].split()[0], []).append(picture)
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``mlp`` with a node whose name would end a script and begin another one."""
    path = mlp(tmp_path_factory.mktemp("report") / "hostile.onnx")
    found = onnx.load(path)
    for node in found.graph.node:
        node.name = HOSTILE if node.name == "relu" else node.name
    onnx.save(found, path)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    path = model.with_suffix(".engine")
    assert main([str(model), "-o", str(path), "--fp16", "--arch=sm_90a", "--device=sim", "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def page(engine: Path) -> Page:
    path = engine.parent / "engine.html"
    assert main(["report", str(engine), "-o", str(path)]) == 0
    return Page(path)


def elements_outside_text(page: Page) -> Iterator[tuple[str, str, str]]:
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            yield tag, name, value or ""


def test_a_page_refers_to_nothing_outside_of_it(page: Page) -> None:
    for tag, name, value in elements_outside_text(page):
        assert "://" not in value, (tag, name, value)
        if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
            assert value.startswith("#"), (tag, name, value)
    assert not {t for t, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base"}
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_links_lead_to_rows(page: Page) -> None:
    ids = {a["id"] for _, a in page.elements if "id" in a}
    links = [v for _, n, v in elements_outside_text(page) if n == "href"]
    assert links
    assert {v[1:] for v in links} <= ids


def test_names_from_a_file_are_text(page: Page) -> None:
    """No element and no handler comes of them, and they can be read all the same."""
    assert not [n for _, n, _ in elements_outside_text(page) if n.startswith("on")]
    assert [a.get("type") for t, a in page.elements if t == "script"] == ["application/json", None]
    assert HOSTILE in " ".join(row[2] for row in page.rows)
    assert HOSTILE in {n for r in page.values()["rows"] for n in r["nodes"]}


def test_an_engine_that_a_stranger_wrote_gives_text_too(engine: Path, tmp_path: Path) -> None:
    """Names that an import would not make: of the graph, of what built the engine, and in the evidence."""
    data = read_engine(engine)
    (output,) = data.verify["outputs"]
    evidence = {**data.verify, "device": HOSTILE_VALUE, "outputs": [{**output, "output": HOSTILE + "\x1b[2J\u202e"}]}
    program = msgspec.structs.replace(data.program, name=HOSTILE)
    strange = replace(data, program=program, provenance={HOSTILE_VALUE: HOSTILE}, verify=evidence)
    write_engine(tmp_path / "strange.engine", strange)
    assert main(["report", str(tmp_path / "strange.engine"), "-o", str(tmp_path / "strange.html")]) == 0
    page = Page(tmp_path / "strange.html")
    assert not [n for _, n, _ in elements_outside_text(page) if n.startswith("on")]
    assert [a.get("type") for t, a in page.elements if t == "script"] == ["application/json", None]
    assert page.values()["provenance"] == {HOSTILE_VALUE: HOSTILE}
    assert f"on {HOSTILE_VALUE}." in page.text["summary"]
    assert "\x1b" not in page.source
    assert "\u202e" not in page.source


def test_only_the_page_s_own_script_may_run(page: Page) -> None:
    (policy,) = [a["content"] or "" for t, a in page.elements if t == "meta" and "http-equiv" in a]
    script = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_all_launches_nodes_and_texts_are_there(page: Page, engine: Path, printed: Printed) -> None:
    data = read_engine(engine)
    report = json.loads(printed("inspect", str(engine), "--json"))
    assert [row[2].strip() for row in page.rows] == [", ".join(x["nodes"]) for x in report["launches"]]
    rows = page.values()["rows"]
    shown = [html.unescape(x) for x in re.findall(r"<pre><code>(.*?)</code></pre>", page.source, re.S)]
    assert len(shown) == len({r["kernel"] for r in rows})
    for r in rows:
        text = data.sources[r["kernel"]]
        assert text in shown
        assert re.fullmatch(r"verified, error \d\.\de-\d\d|verified, error 0\.0e\+00", r["verified"])
    assert page.values()["verified_kernels"] == page.values()["distinct_kernels"] == len(data.sources)


def test_numbers_are_those_of_the_launches(page: Page, engine: Path, printed: Printed) -> None:
    """Operations and grids by hand; times as ``estimate`` prints them, and called modelled."""
    found = page.values()
    assert found["sizes"] == {"N": 1}
    assert [r["flops"] for r in found["rows"][:2]] == [2 * 16 * 32, 2 * 32 * 10]
    assert found["weight_bytes"] == sum(2 * w.size for n, w in mlp_weights().items() if n != "b1") + 32 * 2
    for r in found["rows"]:
        assert all(n >= 1 for n in (*r["grid"], *r["block"]))
        assert r["gain_us"] == pytest.approx(r["modelled_us"] - r["floor_us"])
    (estimated,) = json.loads(printed("estimate", str(engine), "--json"))
    assert [r["modelled_us"] for r in found["rows"]] == [k["us"] for k in estimated["kernels"]]
    assert found["modelled_us"] == pytest.approx(estimated["latency_ms"] * 1e3)
    assert "modelled latency" in page.text["summary"]
    assert "modelled us" in page.text["kernels"]
    assert "Nothing was measured" in page.text[""]


def test_pictures_show_the_numbers(page: Page) -> None:
    found, pictures = page.values(), page.pictures()
    widths = [float(r.attrib["width"]) for r in pictures["Kernels"][0].iter("rect")]
    times = [r["modelled_us"] for r in found["rows"]]
    for width, us in zip(widths, times, strict=True):
        assert width == pytest.approx(us / sum(times) * sum(widths), abs=1.5)

    (plot,) = pictures["Operations"]
    ticks = {t.text: float(t.attrib["x"]) for t in plot.iter("text") if re.fullmatch("1e?|10", t.text or "")}
    decade = ticks["10"] - ticks["1"]
    dots = {int(a.attrib["href"][2:]): a.find("circle") for a in plot.iter("a")}
    assert dots
    for k, dot in dots.items():
        assert dot is not None
        r = found["rows"][k]
        intensity = 10 ** ((float(dot.attrib["cx"]) - ticks["1"]) / decade)
        assert intensity == pytest.approx(r["flops"] / r["bytes"], rel=0.02)


def test_no_two_tensors_of_the_memory_plan_overlap(page: Page) -> None:
    (memory,) = page.values()["memory"]
    (plan,) = page.pictures()["Offsets"]
    boxes = [{n: float(r.attrib[n]) for n in ("x", "y", "width", "height")} for r in plan.iter("rect")]
    assert len(boxes) == len(memory["tensors"]) > 0
    for k, a in enumerate(boxes):
        for b in boxes[k + 1 :]:
            beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
            assert beside or a["y"] + a["height"] <= b["y"] + 0.6 or b["y"] + b["height"] <= a["y"] + 0.6


def test_equal_inputs_give_equal_pages(page: Page, engine: Path, tmp_path: Path) -> None:
    assert main(["report", str(engine), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page.source


def test_a_model_has_the_refusals_that_explain_prints(model: Path, tmp_path: Path, printed: Printed) -> None:
    target = tmp_path / "model.html"
    assert "modelled" in printed("report", str(model), "-o", str(target), "--fp16", "--shapes", "", "--card=a100")
    page = Page(target)
    found = page.values()
    explained = [x for x in printed("explain", str(model), "--fp16").splitlines() if "[" in x]
    refused = {x.split(": ", 1)[1] if x.startswith("at ") else x for x in found["refusals"]}
    assert set(explained) == refused
    assert explained
    assert (found["kind"], found["card"]) == ("model", "A100 SXM4 80GB")
    assert {r["verified"] for r in found["rows"]} == {"not built"}
    assert "Nothing was built" in page.text["summary"]


def test_stages_have_pictures_and_steps_of_their_own(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Relu", ["x"], ["r"], name="before"), h.make_node("NonZero", ["r"], ["i"], name="where"),
        h.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT), h.make_node("Sqrt", ["f"], ["y"], name="after"),
    ]  # fmt: skip
    path = save_model(tmp_path / "staged.onnx", nodes, {"x": [6, 4]}, {"y": [2, "k"]})
    assert main(["report", str(path), "-o", str(tmp_path / "staged.html")]) == 0
    page = Page(tmp_path / "staged.html")
    found = page.values()
    stages = {r["stage"] for r in found["rows"]}
    assert len(stages) == len(page.pictures()["Kernels"]) > 1
    assert "run stage 0" in page.text["steps"]
    assert any(line.startswith("read ") for line in found["steps"])
    assert "what the host does between stages" in page.text["summary"]


def test_registers_are_those_of_the_object_code(engine: Path, tmp_path: Path) -> None:
    assert main(["report", str(engine), "--card=h100", "-o", str(tmp_path / "h100.html")]) == 0
    page = Page(tmp_path / "h100.html")
    data = read_engine(engine)
    for row, shown in zip(page.values()["rows"], page.rows, strict=True):
        codes = {arch: registers(data.cubins[arch, row["kernel"]]) for arch in ("sm_80", "sm_90a")
                 if (arch, row["kernel"]) in data.cubins}  # fmt: skip
        assert row["registers"] in codes.values()
        assert [x.strip() for x in shown[12:14]] == [str(row["registers"]), f"{100 * row['occupancy']:.0f} %"]


def test_texts_that_do_not_fit_are_said_to_be_left_out(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["report", str(engine), "-o", str(tmp_path / "whole.html")]) == 0
    size = (tmp_path / "whole.html").stat().st_size
    monkeypatch.setattr(report_page, "MOST_BYTES", size - 1000)
    assert main(["report", str(engine), "-o", str(tmp_path / "short.html")]) == 0
    page = Page(tmp_path / "short.html")
    assert page.path.stat().st_size <= size - 1000
    left_out = [r for r in page.values()["rows"] if f"The text of {r['kernel']} is left out" in page.text["kernels"]]
    assert len(left_out) == len(page.rows) - page.source.count("<pre><code>") == 1


def test_what_has_no_launch_or_no_element_has_a_page_too(tmp_path: Path) -> None:
    same = save_model(tmp_path / "same.onnx", [h.make_node("Reshape", ["x", "s"], ["y"])], {"x": [2, 3]}, {"y": [3, 2]},
                      {"s": np.array([3, 2], np.int64)})  # fmt: skip
    mlp(tmp_path / "mlp.onnx")
    for path, more in ((same, []), (tmp_path / "mlp.onnx", ["--shapes=x:1000x16"])):
        assert main(["report", str(path), "-o", str(tmp_path / "r.html"), *more]) == 0
        assert len(Page(tmp_path / "r.html").values()["memory"]) == 1


@pytest.mark.parametrize("changed", [{"flops": "0-5"}, {"iterations": "0-1000000*N"}, {"origin": ()}])
def test_formulas_of_a_stranger_leave_a_page(changed: dict[str, Any], engine: Path, tmp_path: Path) -> None:
    data = read_engine(engine)
    launches = tuple(msgspec.structs.replace(x, **changed) for x in data.program.launches)
    program = msgspec.structs.replace(data.program, launches=launches)
    write_engine(tmp_path / "strange.engine", replace(data, program=program))
    assert main(["report", str(tmp_path / "strange.engine"), "-o", str(tmp_path / "strange.html")]) == 0
    page = Page(tmp_path / "strange.html")
    assert all(r["modelled_us"] > 0 and r["flops"] >= 0 and r["bytes"] >= 0 for r in page.values()["rows"])
    widths = [float(r.attrib["width"]) for r in page.pictures()["Kernels"][0].iter("rect")]
    assert min(widths) > 0


@pytest.mark.slow
def test_a_network_fits_a_megabyte(tmp_path: Path) -> None:
    from arcweld.models.builders import build, export_onnx

    made = build("resnet18", size=64)
    export_onnx(made.module, made.args, tmp_path / "resnet18.onnx")
    assert main(["report", str(tmp_path / "resnet18.onnx"), "-o", str(tmp_path / "r.html"), "--fp16"]) == 0
    assert (tmp_path / "r.html").stat().st_size < 1_000_000
    page = Page(tmp_path / "r.html")
    convolutions = {n.name for n in onnx.load(tmp_path / "resnet18.onnx").graph.node if n.op_type == "Conv"}
    nodes = {n for r in page.values()["rows"] for n in r["nodes"]}
    assert convolutions
    assert convolutions <= nodes
    assert "left out" not in page.text["kernels"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{model}"], "no file to write was named"),
        (["{model}", "-o", "{folder}"], "it is a folder"),
        (["{model}", "-o", "{folder}/none/r.html"], "there is no folder"),
        (["{model}", "-o", "{model}"], "it is read"),
        (["{model}", "-o", "{folder}/r.html", "--card=gtx"], "unknown card 'gtx'"),
        (["{model}", "-o", "{folder}/r.html", "--fp16", "--bf16"], "exclude each other"),
        (["{folder}/none.onnx", "-o", "{folder}/r.html"], "cannot be read"),
        (["{engine}", "-o", "{engine}"], "it is read"),
        (["{engine}", "-o", "{folder}/r.html", "--fp16"], "an engine has its precision"),
        (["{engine}", "-o", "{folder}/r.html", "--card=a100", "--shapes=y:1"], "y"),
    ],
)
def test_bad_input(words: list[str], message: str, model: Path, engine: Path, tmp_path: Path, printed: Printed) -> None:
    places = {"model": str(model), "engine": str(engine), "folder": str(tmp_path)}
    before = model.read_bytes(), engine.read_bytes()
    assert message in printed("report", *(w.format(**places) for w in words), code=2)
    assert (model.read_bytes(), engine.read_bytes()) == before
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DRIVER = """
document.getElementById("search").value = "SOFTMAX";
document.getElementById("search").dispatchEvent(new Event("input"));
const numbers = () => Array.from(document.querySelectorAll("#table tbody:not([hidden])"), (b) => b.id).join(" ");
const seen = [numbers()];
document.getElementById("search").value = "";
document.getElementById("search").dispatchEvent(new Event("input"));
for (const k of [3, 3, 1]) {
  document.querySelectorAll("#table thead button")[k].click();
  seen.push(numbers());
}
document.body.dataset.seen = seen.join("|");
"""


def in_a_browser(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts, and the lines of the console."""
    done = browse(path, profile, "--dump-dom")
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def browse(path: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Opens a page in a browser without a window. Skips where there is none, except on GitHub, which has one."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        missing = f"no browser is installed, of {', '.join(BROWSERS)}: `apt install chromium` installs one on Debian"
        (pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip)(missing)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
               "--enable-logging=stderr", f"--user-data-dir={profile}"]  # fmt: skip
    command = [browser, *options, *more, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
def test_a_browser_has_nothing_to_complain_of(page: Page, engine: Path, tmp_path: Path) -> None:
    document, console = in_a_browser(engine.parent / "engine.html", tmp_path / "profile")
    assert console == []
    assert f"{len(page.rows)} of {len(page.rows)} launches" in document
    assert "<img" not in document.replace("&lt;", "")
    assert 'id="tools" hidden' not in document  # the script ran


@pytest.mark.slow
def test_search_and_order_in_a_browser(page: Page, tmp_path: Path) -> None:
    """A script that types and clicks is added to the page, and its hash to the policy."""
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    text = page.source.replace("script-src ", f"script-src 'sha256-{digest}' ")
    (tmp_path / "driven.html").write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"), "utf-8")
    document, console = in_a_browser(tmp_path / "driven.html", tmp_path / "profile")
    assert console == []
    seen = re.search(r'data-seen="([^"]*)"', document)
    assert seen is not None
    rows = page.values()["rows"]
    by_time = sorted(rows, key=lambda r: -r["modelled_us"])
    wanted = [
        [r for r in rows if "softmax" in r["kernel"]], by_time, by_time[::-1], sorted(rows, key=lambda r: r["kernel"]),
    ]  # fmt: skip
    assert seen[1].split("|") == [" ".join(f"k{r['number']}" for r in some) for some in wanted]


@pytest.mark.slow
def test_a_screenshot_is_kept(engine: Path, tmp_path: Path) -> None:
    """In ``build/report.png``, for whoever wants to see what the tests saw: light paper with text and colours on it."""
    picture = ROOT / "build" / "report.png"
    picture.parent.mkdir(exist_ok=True)
    picture.unlink(missing_ok=True)
    browse(engine.parent / "engine.html", tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,1600")
    with Image.open(picture) as found:
        assert found.size == (1200, 1600)
        colours = found.convert("RGB").getcolors(1 << 22)
    assert len(colours) > 100
    paper, (red, green, blue) = max(colours)
    assert paper > 1200 * 1600 / 2
    assert min(red, green, blue) > 200
    assert any(max(c) - min(c) > 60 for _, c in colours)


@pytest.mark.slow
def test_the_policy_stops_what_is_injected(page: Page, tmp_path: Path) -> None:
    """Even if a name became markup, nothing of it would run."""
    evil = "<script>document.title = 'run'</script><svg onload=\"document.title = 'run'\"></svg>"
    (tmp_path / "evil.html").write_text(page.source.replace("<header>", f"{evil}<header>"), "utf-8")
    document, console = in_a_browser(tmp_path / "evil.html", tmp_path / "profile")
    assert "<title>run" not in document
    assert len([line for line in console if "Content Security Policy" in line]) >= 2
