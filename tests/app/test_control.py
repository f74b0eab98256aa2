"""The owner's socket: only the owner, every answer typed, no secret in it."""

import asyncio
import json
import stat

import pytest
import pytest_asyncio

from tdn_interop import config as configuration
from tdn_interop.app.control.control_client import connected
from tdn_interop.errors import Reason, TdnError
from tests.app.job_mesh import ends, flow, job_mesh, left_behind, run
from tests.mesh import AIRLINE, HUB_1, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


def client(mesh, node):
    return connected(configuration.control_socket(mesh.config(node)), node)


async def test_nobody_else_may_ask(mesh):
    folder = configuration.runtime_dir(mesh.config(AIRLINE).dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "control.sock").stat().st_mode) == 0o600


async def test_no_salt_in_the_view_of_a_job(mesh):
    """The salt opens the commitment to the result; it stays in the database."""
    rows = await run(mesh, flow(path="shown.csv"))
    (mesh.folder / RESEARCH / "results" / "shown.csv").unlink()
    salt = rows[RESEARCH].facts["result_salt"]
    async with client(mesh, RESEARCH) as node:
        shown = [await node.job(rows[RESEARCH].job_id), *(await node.jobs())["jobs"]]
    assert salt not in json.dumps(shown)
    assert shown[0]["facts"]["result_rows"] == "10"


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda node: node.job("ffff"), Reason.JOB_UNKNOWN),
        (lambda node: node.job(""), Reason.JOB_UNKNOWN),
        (lambda node: node.decide("ffff", "", approve=True), Reason.JOB_UNKNOWN),
        (lambda node: node.cancel("ffff", ""), Reason.JOB_UNKNOWN),
        (lambda node: node.bundle("ffff"), Reason.JOB_UNKNOWN),
        (lambda node: node.run_job("name = "), Reason.FLOW_INVALID),
        (lambda node: node.resource("nothing"), Reason.RESOURCE_UNKNOWN),
        (lambda node: node.register("t", "/nothing.csv", ["id"], "utf-8", ","), Reason.INPUT_INVALID),
        (lambda node: node.ping("nobody.guangdong.cn", 5), Reason.NO_ROUTE),
        (lambda node: node.route("nobody.guangdong.cn"), Reason.NO_ROUTE),
        (lambda node: node.invite("x.airline.shandong.cn", "child", 60), Reason.UNSUPPORTED),
    ],
)
async def test_refusals_keep_their_reason(mesh, ask, reason):
    async with client(mesh, AIRLINE) as node:
        with pytest.raises(TdnError) as error:
            await ask(node)
    assert error.value.reason is reason
    assert error.value.requirement


async def test_tokens_only_for_nodes_right_below(mesh):
    async with client(mesh, HUB_1) as hub:
        assert (await hub.invite("new.shandong.cn", "child", 60))["token"]
        for node, role in (
            ("new.guangdong.cn", "child"),
            ("a.b.shandong.cn", "child"),
            ("new.shandong.cn", "hub"),
        ):
            with pytest.raises(TdnError) as error:
                await hub.invite(node, role, 60)
            assert error.value.reason is Reason.POLICY_DENIED


async def test_bundle_is_where_the_job_was_coordinated(mesh):
    rows = await run(mesh, flow(path="proven.csv"))
    (mesh.folder / RESEARCH / "results" / "proven.csv").unlink()
    job_id = rows[RESEARCH].job_id
    async with client(mesh, RESEARCH) as node:
        bundle, key = await node.bundle(job_id)
    assert 0 < len(bundle) <= 8192
    assert len(key) == 32
    async with client(mesh, AIRLINE) as node:
        with pytest.raises(TdnError) as error:
            await node.bundle(job_id)
    assert error.value.reason is Reason.STATE_CONFLICT
    assert RESEARCH in error.value.message


async def test_watching_ends_with_the_job(mesh):
    async with client(mesh, REGISTRY) as node, asyncio.timeout(30):
        job_id = (await node.run_job(flow((REGISTRY,), path="watched.csv")))["job_id"]
        seen = [job async for job in node.watch(job_id)]
    assert [job["state"] for job in seen][-1] == "SUCCEEDED"
    assert [job["progress"] for job in seen] == sorted(job["progress"] for job in seen)
    assert [job["ended_at_ms"] > 0 for job in seen] == [False] * (len(seen) - 1) + [True]
    await ends(mesh, job_id, (AIRLINE, REGISTRY))
    (mesh.folder / REGISTRY / "results" / "watched.csv").unlink()


async def test_a_receiver_that_hangs_up_leaves_nothing(mesh, tmp_path):
    """The owner pressed Ctrl-C: the call is cancelled, and the next one may receive on the topic."""
    target = configuration.control_socket(mesh.config(REGISTRY))
    async with connected(target, REGISTRY) as node:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                async for _ in node.receive_file("hang", str(tmp_path / "got"), 0):
                    pass
    (tmp_path / "sent").write_bytes(b"content")

    async def end(steps):
        async for _ in steps:
            pass

    async with client(mesh, RESEARCH) as sender, client(mesh, REGISTRY) as receiver, asyncio.timeout(20):
        await asyncio.gather(
            end(sender.send_file(REGISTRY, "hang", str(tmp_path / "sent"))),
            end(receiver.receive_file("hang", str(tmp_path / "got"), 10)),
        )
    assert (tmp_path / "got").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "sent"]
    assert left_behind(mesh) == []
