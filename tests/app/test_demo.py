"""`tdn demo`: the main job in one command, and nothing left behind however it ends."""

import csv
import dataclasses
import importlib.resources
import json
import pathlib
import signal

import pytest

from tdn_interop.app import cli
from tdn_interop.app.cli.words import LANGUAGES
from tdn_interop.app.lab import demo
from tdn_interop.app.lab.lab import Lab
from tdn_interop.errors import TdnError
from tests.app.lab_world import User, processes, until

SAMPLES = importlib.resources.files("tdn_interop.app.data") / "samples"
AIRLINE, REGISTRY, RESEARCH = "airline.shandong.cn", "registry.guangdong.cn", "research.shandong.cn"


@pytest.fixture
def user(tmp_path):
    """A user; afterwards no process and no temporary file is left."""
    user = User(tmp_path)
    yield user
    assert processes(tmp_path) == {}
    assert list(user.temporary.iterdir()) == []


def tails(file):
    with file.open(newline="") as lines:
        return [row["tailnum"] for row in csv.DictReader(lines)]


def test_the_main_job(user):
    found = user.json("demo")
    assert list(found) == ["intersection", "recipient", "hops", "suite", "seconds", "nodes", "evidence"]
    both = set(tails(SAMPLES / "airline_operations.csv")) & set(tails(SAMPLES / "aircraft_registry.csv"))
    assert found["intersection"] == len(both) == 3316
    assert (found["recipient"], found["hops"], found["suite"]) == (RESEARCH, 3, "x25519-sha256-ell2")
    assert found["seconds"] > 0
    assert {node["id"]: node["learned"] for node in found["nodes"]} == {
        "cn": {},
        "shandong.cn": {},
        "guangdong.cn": {},
        AIRLINE: {REGISTRY: 3322},
        REGISTRY: {AIRLINE: 4037},
        RESEARCH: {AIRLINE: 4037, REGISTRY: 3322, "common": 3316},
    }
    assert [node["role"] for node in found["nodes"]] == ["top", "hub", "hub", "child", "child", "child"]
    evidence = found["evidence"]
    assert list(evidence) == ["verified", "bundle", "bytes"]
    bundle = user.folder / evidence["bundle"]
    assert evidence["verified"] is True
    assert bundle.stat().st_size == evidence["bytes"] <= 8192
    proven = user.json("evidence", "verify", bundle, "--top-key", bundle.with_name("top.key"))
    assert (proven["outcome"], proven["coordinator"]) == ("SUCCEEDED", RESEARCH)
    assert sorted(tails(bundle.with_name("common-aircraft.csv"))) == sorted(both)
    assert sorted(path.name for path in user.folder.iterdir()) == ["tdn-demo", "tmp"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(user, number):
    process = user.start("demo")
    until(lambda: processes(user.folder))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")
    assert list((user.folder / "tdn-demo").iterdir()) == []


@pytest.mark.parametrize(
    ("before", "options", "code", "reason"),
    [
        (lambda folder: (folder / "tdn-demo").write_text(""), (), 3, "INPUT_INVALID"),
        (lambda folder: (folder / "mine").mkdir(), ("--dir", "."), 5, "ALREADY_EXISTS"),
    ],
)
def test_it_does_not_begin_what_cannot_end(user, before, options, code, reason):
    before(user.folder)
    found, error = user.error("demo", *options)
    assert (found, error["reason"]) == (code, reason)
    assert {path.name for path in user.folder.iterdir()} <= {"tmp", "mine", "tdn-demo"}


async def test_a_job_that_fails_takes_everything_down(tmp_path, monkeypatch):
    """The register offers another column; its node refuses, the demo says so, and the folder shows the rest."""
    monkeypatch.setattr(demo, "FLOW", demo.FLOW.replace('["tailnum"]', '["model"]'))
    phases = []
    with pytest.raises(TdnError) as refused:
        await demo.run(Lab(tmp_path / "lab"), tmp_path / "out", lambda phase, _part: phases.append(phase))
    assert refused.value.reason.name == "RESOURCE_UNKNOWN"
    assert list(dict.fromkeys(phases)) == ["network", "data", "job", "stop"]
    assert processes(tmp_path) == {}
    assert list((tmp_path / "out").iterdir()) == []


REPORT = demo.Report(
    {
        "intersection": 2, "recipient": RESEARCH, "hops": 3, "suite": "x25519-sha256-ell2", "seconds": 5.5,
        "nodes": [{"id": AIRLINE, "role": "child", "learned": {REGISTRY: 7}}],
        "evidence": {"verified": True, "bundle": "out/job/evidence.bundle", "bytes": 3000},
    },
    {"network": 3.25, "stop": 1.0}, pathlib.Path("out/job/common-aircraft.csv"), pathlib.Path("out/job/top.key"),
)  # fmt: skip


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The demo, as if it had run."""

    async def run(lab, out, note):
        note("network", 0.5)
        lab.directory.mkdir(exist_ok=True)
        run.asked = (lab.directory, out)
        return REPORT

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return run


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_summary(finished, capsys, lang):
    assert cli.run(["demo", "--lang", lang]) == 0
    out, err = capsys.readouterr()
    for text in (
        "x25519-sha256-ell2",
        f"{REGISTRY}=7",
        "out/job/evidence.bundle",
        "out/job/common-aircraft.csv",
    ):
        assert text in out
    assert "3.2 s" in err
    assert "tdn evidence verify out/job/evidence.bundle --top-key out/job/top.key" in err


def test_its_json_is_the_document(finished, capsys):
    assert cli.run(["demo", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (dataclasses.asdict(REPORT)["document"], "")


def test_a_folder_that_was_asked_for_stays(finished, tmp_path):
    assert cli.run(["demo", "--dir", str(tmp_path / "kept"), "--out", str(tmp_path / "papers")]) == 0
    assert finished.asked == (tmp_path / "kept", tmp_path / "papers")
    assert (tmp_path / "kept").is_dir()
    assert cli.run(["demo"]) == 0
    assert not finished.asked[0].exists()
