"""Profiles: what ``bench --exportProfile`` writes, what is made of it, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_tools import Printed, check_trace, exported, profiled
from export_tools import engine as engine
from export_tools import folder as folder
from export_tools import measuring as measuring
from export_tools import model as model
from export_tools import on_the_simulator as on_the_simulator
from export_tools import printed as printed
from export_tools import staged as staged

from arcweld.cli.app import main
from arcweld.runtime import profiler

KEYS = {"name", "timeMs", "averageMs", "medianMs", "percentage"}  # of trtexec's profile


def test_a_profile_has_trtexec_s_keys(engine: Path, tmp_path: Path, measuring: None) -> None:
    first, *rows = profiled(engine, tmp_path / "p.json", "--shapes=x:6x16")
    assert first["count"] == profiler.ROUNDS
    assert first["arcweld"]["sizes"] == {"N": 6}
    assert all(set(r) == KEYS for r in rows)
    assert [r["medianMs"] for r in rows] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert [r["averageMs"] for r in rows] == pytest.approx([2e-3, 4e-3, 6e-3])
    assert [r["timeMs"] for r in rows] == pytest.approx([first["count"] * r["averageMs"] for r in rows])
    assert [r["percentage"] for r in rows] == pytest.approx([100 / 6, 200 / 6, 300 / 6])
    trace = exported(engine, "perfetto", tmp_path / "t.json", f"--profile={tmp_path / 'p.json'}")
    slices = check_trace(trace)
    assert [e["dur"] for e in slices] == pytest.approx([1, 2, 3])
    assert trace["otherData"]["sizes"] == "N=6"
    assert "measured on sim" in trace["otherData"]["times"]
    assert all(e["args"]["modelled us"] != e["dur"] for e in slices)


def test_a_line_of_trtexec_writes_a_profile(engine: Path, tmp_path: Path, measuring: None) -> None:
    target = tmp_path / "p.json"
    words = ["--shapes=x:6x16", "--separateProfileRun", "--duration=0", "--iterations=1", f"--exportProfile={target}"]
    assert main([f"--loadEngine={engine}", *words, "--dumpProfile"]) == 0
    assert [r["medianMs"] for r in json.loads(target.read_text())[1:]] == pytest.approx([1e-3, 2e-3, 3e-3])


def test_a_profile_of_trtexec_s_form_alone_is_known_by_its_names(engine: Path, tmp_path: Path, measuring: None) -> None:
    rows = profiled(engine, tmp_path / "p.json")[1:]
    (tmp_path / "p.json").write_text(json.dumps([{"count": 7}, *rows]))
    assert len(check_trace(exported(engine, "perfetto", tmp_path / "t.json", f"--profile={tmp_path / 'p.json'}"))) == 3


def test_a_launch_that_the_estimate_lacks_is_shown_as_one(model: Path, tmp_path: Path, measuring: None) -> None:
    """As where data decide a size that another range serves."""
    path = tmp_path / "ranges.engine"
    words = ["--arch=sm_80", "--verify=off", "--quiet", "--minShapes=x:1x16", "--maxShapes=x:64x16"]
    assert main([str(model), "-o", str(path), "--sizeRanges=N=1..4", *words]) == 0
    profile = tmp_path / "p.json"
    rows = profiled(path, profile, "--shapes=x:6x16")
    rows[2]["name"] += "@N=1..4"
    profile.write_text(json.dumps(rows))
    found = exported(path, "perfetto", tmp_path / "t.json", f"--profile={profile}", "--card=a100")
    assert [(e["name"], e["cat"]) for e in check_trace(found)][1] == ("d@N=1..4", "kernel")


def test_a_report_has_measured_beside_modelled_times(engine: Path, tmp_path: Path, measuring: None) -> None:
    profiled(engine, tmp_path / "p.json", "--shapes=x:6x16")
    words = ["report", str(engine), f"--profile={tmp_path / 'p.json'}", "-o", str(tmp_path / "r.html")]
    assert main(words) == 0
    page = (tmp_path / "r.html").read_text()
    start = page.index('id="data">') + len('id="data">')
    found = json.loads(page[start : page.index("</script>", start)])
    assert [r["measured_us"] for r in found["rows"]] == pytest.approx([1, 2, 3])
    assert all(r["modelled_us"] not in (0, r["measured_us"]) for r in found["rows"])
    assert found["sizes"] == {"N": 6}
    assert ">measured us</button>" in page
    assert "Kernels were also measured on sim, each launch by itself 7 times." in page
    assert "<dt>measured, one after another</dt><dd>6 us</dd>" in page
    assert "Nothing was measured" not in page


def test_a_report_of_stages_counts_what_the_host_took(staged: Path, tmp_path: Path, measuring: None) -> None:
    rows = profiled(staged, tmp_path / "p.json")[1:]
    words = ["report", str(staged), f"--profile={tmp_path / 'p.json'}", "-o", str(tmp_path / "r.html")]
    assert main(words) == 0
    total = sum(r["medianMs"] for r in rows) * 1e3
    assert f"<dt>measured, one after another</dt><dd>{total:.4g} us</dd>" in (tmp_path / "r.html").read_text()


ROW = {"name": "y", "timeMs": 1, "averageMs": 1, "medianMs": 1, "percentage": 1}
SAID = {"engine": "0", "device": "d", "arch": "sm_90a", "sizes": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no profile"),
        ("[", "is no profile"),
        ("[" * 100_000, "is no profile"),
        ("\xff\x00", "is no profile"),
        ("{}", "is no profile"),
        ("[]", "is no profile"),
        (json.dumps([ROW]), "is no profile"),
        (json.dumps([{"count": 0}, ROW]), "counts 0 measurements"),
        (json.dumps([{"count": 1}, {**ROW, "timeMs": "long"}]), "is no profile"),
        (json.dumps([{"count": 1}, {**ROW, "more": 1}]), "is no profile"),
        (json.dumps([{"count": 1}, {**ROW, "medianMs": -1}]), "has a time that is no time"),
        (json.dumps([{"count": 1}, ROW, ROW]), "is there twice"),
        (json.dumps([{"count": 1}, ROW]), "of another engine: only the engine has a launch"),
        (json.dumps([{"count": 1}, {**ROW, "name": "\x1bz"}]), "of another engine: only the profile has a launch"),
        (json.dumps([{"count": 1, "arcweld": {}}, ROW]), "is no profile"),
        (json.dumps([{"count": 1, "arcweld": SAID}, ROW]), "of another engine"),
        (json.dumps([{"count": 1, "arcweld": {"times": "modelled"}}, ROW]), "modelled, not measured"),
    ],
)
def test_profiles_that_are_none(content: str, message: str, engine: Path, tmp_path: Path, printed: Printed) -> None:
    profile, target = tmp_path / "p.json", tmp_path / "t.json"
    profile.write_text(content, encoding="latin-1")
    target.write_text("before")
    said = printed("export", str(engine), "--format=perfetto", "-o", str(target), f"--profile={profile}", code=2)
    assert message in said
    assert "\x1b" not in said
    assert str(profile) in said
    assert target.read_text() == "before"


def test_a_profile_of_the_same_model_in_another_precision(
    model: Path, engine: Path, tmp_path: Path, measuring: None, printed: Printed
) -> None:
    """Its launches have the same names."""
    words = ["-o", str(tmp_path / "other.engine"), "--arch=sm_90a", "--device=sim", "--verify=off", "--quiet"]
    assert main([str(model), *words]) == 0
    profile, target = tmp_path / "p.json", tmp_path / "t.json"
    rows = profiled(engine, profile)
    said = printed("export", words[1], "--format=perfetto", "-o", str(target), f"--profile={profile}", code=2)
    assert "the profile is of another engine" in said
    assert not target.exists()
    profile.write_text(json.dumps([*rows[:-1], {**rows[-1], "name": "z"}]))
    said = printed("export", str(engine), "--format=perfetto", "-o", str(target), f"--profile={profile}", code=2)
    assert "the profile is damaged: the engine has no launch 'z'" in said
    profile.write_text(json.dumps(rows))
    options = ["--format=perfetto", "-o", str(target), f"--profile={profile}", "--shapes=x:9x16"]
    assert "with other sizes than --shapes gives" in printed("export", str(engine), *options, code=2)
    (tmp_path / "p.json").write_text(json.dumps(rows)[:-40])  # damaged
    assert "is no profile" in printed(
        "export", str(engine), "--format=perfetto", "-o", str(target), f"--profile={profile}", code=2
    )  # fmt: skip
