"""A folder with a configuration, a fake node behind it, and the command line."""

import dataclasses
import pathlib
import sys
import types

import pytest

from tdn_interop.app import cli
from tdn_interop.config import remove_runtime_dir, runtime_dir
from tests.app.cli import fake
from tests.app.cli.fake_trust import card
from tests.app.evidence_mesh import papers


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with everything the examples name; the working directory of the test."""
    (tmp_path / "node.toml").write_text('id = "bank-a.cn"\nrole = "child"\n')
    (tmp_path / "flow.toml").write_text(fake.FLOW)
    (tmp_path / "secret.txt").write_text("correct horse\n")
    monkeypatch.chdir(tmp_path)
    for name in ("TDN_CONFIG", "NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    runtime_dir(tmp_path)
    yield tmp_path
    remove_runtime_dir(tmp_path)


@pytest.fixture
def node(folder):
    with fake.running(folder / "node.toml") as running:
        yield running


@pytest.fixture
def tdn(capsys):
    """Run a command line; (exit code, stdout, stderr)."""

    def call(*words):
        code = cli.run([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def modules(monkeypatch):
    """Stand-ins for the parts of a node that these commands call; what they were called with."""
    calls = []

    def stand_in(module, **functions):
        found = types.ModuleType(f"tdn_interop.app.{module}")
        vars(found).update(functions)
        monkeypatch.setitem(sys.modules, found.__name__, found)
        monkeypatch.setattr(f"tdn_interop.app.{module}", found, raising=False)

    async def join(config, token):
        calls.append(("join", config.id, token))

    async def run_node(config):
        calls.append(("run", config.id))

    def init_node(directory, node, role, *, listen, enrolment):
        calls.append(("init", directory, node, role, listen, enrolment))
        return pathlib.Path(directory, "node.toml")

    @dataclasses.dataclass
    class Finding:
        name: str
        ok: bool
        detail: str
        advice: str

    findings = [Finding("certificate", True, "24 h left", ""), Finding("port", True, "free", "")]
    stand_in("members.setup", init_node=init_node, join=join)
    stand_in("check", check_node=lambda config: findings)
    stand_in("node", run_node=run_node)
    stand_in("backup.backup", restore=lambda path, directory, passphrase: findings[0], back_up_stopped=None)
    stand_in("telemetry", set_up_logging=lambda log, *, verbose: calls.append(("log", log, verbose)))
    return types.SimpleNamespace(calls=calls, findings=findings, Finding=Finding)


@pytest.fixture
def bundle(folder):
    """A real bundle of two parties, the key of its top, and the statement the node got when it enrolled."""
    made = papers(["bank-a.shandong.cn", "bank-b.shandong.cn"])
    (folder / "job.bundle").write_bytes(made.bundle())
    (folder / "top.key").write_text(made.top_key.hex().upper() + "\n")
    (folder / "hk.card").write_text(card("hk"))
    return made
