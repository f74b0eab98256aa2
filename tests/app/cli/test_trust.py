"""`tdn registry export|federate|part|tops` and `tdn ca`, typed at running nodes."""

import asyncio
import io
import json
from contextlib import redirect_stderr, redirect_stdout

import pytest
from structlog.testing import capture_logs

from tdn_interop.app.cli import run
from tdn_interop.app.members.federation import read_card
from tests.interop.forge import until
from tests.mesh import HUB_1, TOP, Mesh


@pytest.fixture
async def mesh(tmp_path):
    mesh = Mesh(tmp_path)
    try:
        for node, role in ((TOP, "top"), ("hk", "top"), (HUB_1, "hub")):
            await mesh.enrol(node, role, listens=True)
            await mesh.start(node)
        yield mesh
    finally:
        for node in reversed(list(mesh.stacks)):
            await mesh.stop(node)


async def tdn(mesh, node, *words, answer=""):
    """(exit code, stdout, stderr) of a command, beside the nodes, which run in this process, too."""
    out, err = io.StringIO(), io.StringIO()
    argv = [*words, "--config", str(mesh.config(node).dir / "node.toml")]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), capture_logs():
        patch.setattr("sys.stdin", io.StringIO(answer))
        code = await asyncio.to_thread(run, argv)
    return code, out.getvalue(), err.getvalue()


async def document(mesh, node, *words):
    code, out, err = await tdn(mesh, node, *words, "--json")
    assert code == 0, err
    return json.loads(out)


async def test_federation_by_hand(mesh):
    hk = mesh.nodes["hk"].mesh.federation
    code, card, err = await tdn(mesh, "hk", "registry", "export")
    assert (code, read_card(card)) == (0, hk.bundle.own)
    assert "registry federate" in err
    file = mesh.folder / "hk.card"
    file.write_text(card)

    code, _, err = await tdn(mesh, TOP, "registry", "federate", str(file), answer="n\n")
    assert code == 1
    shown = await document(mesh, "hk", "registry", "tops")
    assert shown["tops"][0]["identity_sha256"] in err
    assert not mesh.nodes[TOP].mesh.trust.knows("hk")

    code, _, err = await tdn(mesh, TOP, "registry", "federate", card.strip(), answer="y\n")
    assert code == 0, err
    assert [top["top"] for top in (await document(mesh, TOP, "registry", "tops"))["tops"]] == [TOP, "hk"]
    await until(lambda: mesh.nodes[HUB_1].mesh.trust.knows("hk"))

    assert await document(mesh, TOP, "registry", "part", "hk") == {"top": "hk"}
    assert not mesh.nodes[TOP].mesh.trust.knows("hk")
    code, _, err = await tdn(mesh, TOP, "registry", "federate", "x" * 256, "--yes")
    assert code == 6
    assert "INVALID_REQUEST" in err
    code, _, err = await tdn(mesh, TOP, "registry", "federate", "no-such.card", "--yes")
    assert code == 3
    assert "no-such.card cannot be read" in err
    code, _, err = await tdn(mesh, HUB_1, "registry", "export")
    assert "UNSUPPORTED" in err


async def test_a_new_root_by_hand(mesh):
    before = await document(mesh, TOP, "ca", "show")
    assert [(one["node_id"], one["current"]) for one in before["members"]] == [(HUB_1, True)]
    assert before["overlap_ends_at_ms"] == 0
    after = await document(mesh, TOP, "ca", "rollover", "--overlap", "2h")
    assert after["certificate_sha256"] != before["certificate_sha256"]
    assert after["overlap_ends_at_ms"] > 0
    hub = mesh.nodes[HUB_1].mesh
    await until(lambda: hub.renewal.hangs_on_newest_root)
    code, out, _ = await tdn(mesh, TOP, "ca", "show", "--lang", "zh")
    assert code == 0
    assert "旧根有效至" in out
    retired = await document(mesh, TOP, "ca", "retire")
    assert retired["overlap_ends_at_ms"] == 0
    assert [one["current"] for one in retired["members"]] == [True]
    assert len(hub.standing.roots) <= 2
