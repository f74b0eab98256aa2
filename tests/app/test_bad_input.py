"""Whatever an operator gets wrong: one reason, at every party the same, and nothing half done left behind."""

import asyncio

import pytest
import pytest_asyncio

from tdn_interop.app.data.table import CsvFormat
from tdn_interop.errors import Reason, TdnError
from tests.app.job_mesh import (
    BOTH,
    LEFT,
    PARTIES,
    ends,
    flow,
    job_mesh,
    left_behind,
    open_jobs,
    reasons,
    restart,
    run,
    table,
    text_of,
)
from tests.mesh import AIRLINE, HUB_1, HUB_2, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def network(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        for node in PARTIES:  # sessions with nodes that were stopped end soon
            await restart(running, node, ("idle_s = 120", "idle_s = 2"))
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(network):
    """The mesh; at the end of the test nothing is left and a good job still runs."""
    yield network
    assert left_behind(network) == []
    assert await open_jobs(network) == []


def refused(error, reason, *parts):
    assert error.value.reason is reason
    for part in parts:
        assert part in error.value.message
    assert error.value.requirement


async def finds_it_later(mesh, path, back):
    """A job that begins although somebody is away, and is done when everybody is back."""
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path=path, step_s=60))
    await back()
    for node in PARTIES:
        await asyncio.wait_for(mesh.nodes[node].mesh.link.linked.wait(), 20)
    rows = await ends(mesh, job_id)
    assert {row.state for row in rows.values()} == {"SUCCEEDED"}, rows[RESEARCH].failure
    (mesh.folder / RESEARCH / "results" / path).unlink()


# -- registering ---------------------------------------------------------------------------------

FILES = {
    "missing column": (b"id,note\nk1,n\n", CsvFormat(), ["phone"], Reason.INPUT_INVALID, "phone"),
    "wrong delimiter": (b"id;note\nk1;n\n", CsvFormat(), ["id"], Reason.INPUT_INVALID, "';'"),
    "wrong encoding": ("id,name\nk1,张\n".encode("gbk"), CsvFormat(), ["id"], Reason.INPUT_INVALID, "utf-8"),
    "unknown encoding": (b"id\nk1\n", CsvFormat("klingon"), ["id"], Reason.INPUT_INVALID, "klingon"),
    "two delimiters": (b"id\nk1\n", CsvFormat("utf-8", ",,"), ["id"], Reason.INPUT_INVALID, "delimiter"),
    "empty file": (b"", CsvFormat(), ["id"], Reason.INPUT_INVALID, "empty"),
    "header only": (b"id,note\n", CsvFormat(), ["id"], Reason.EMPTY_SET, "no row"),
    "only empty keys": (b"id,note\n ,n\n,n\n", CsvFormat(), ["id"], Reason.EMPTY_SET, "2 rows"),
    "ragged row": (b"id,note\nk1\n", CsvFormat(), ["id"], Reason.INPUT_INVALID, "line 2"),
    "no key": (b"id,note\nk1,n\n", CsvFormat(), [], Reason.INPUT_INVALID, "key column"),
}


@pytest.mark.parametrize("case", FILES)
async def test_bad_table_is_not_registered(mesh, tmp_path, case):
    content, form, keys, reason, part = FILES[case]
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    resources = mesh.nodes[AIRLINE].resources
    before = await resources.every()
    with pytest.raises(TdnError) as error:
        await resources.register("table", file, form, keys)
    refused(error, reason, part)
    assert await resources.every() == before


@pytest.mark.parametrize("name", ["nothing.csv", "", "node.db/table.csv"])
async def test_unreadable_file_is_not_registered(mesh, name):
    file = mesh.folder / AIRLINE / name
    with pytest.raises(TdnError) as error:
        await mesh.nodes[AIRLINE].resources.register("table", file, CsvFormat(), ["id"])
    refused(error, Reason.INPUT_INVALID, file.name)


# -- the flow --------------------------------------------------------------------------------------

FLOWS = {
    "not TOML": ("name = ", Reason.FLOW_INVALID, "not TOML"),
    "unknown key": (flow() + "\n[extra]\n", Reason.FLOW_INVALID, "extra: unknown key"),
    "wrong type": (flow(step_s='"long"'), Reason.FLOW_INVALID, "timeouts.step_s"),
    "missing key": (flow().replace('name = "overlap"', ""), Reason.FLOW_INVALID, "name: missing"),
    "duplicate party": (flow((AIRLINE,)).replace("parties = [", f'parties = ["{AIRLINE}", '), Reason.FLOW_INVALID, "twice"),
    "receiver not a party": (
        flow().replace(f', "{RESEARCH}"]\n[timeouts]', "]\n[timeouts]"), Reason.RESULT_NOT_PERMITTED, RESEARCH,
    ),
    "somebody else's resource": (flow(left=f"{REGISTRY}/right"), Reason.FLOW_INVALID, "does not belong to"),
    "unknown algorithm": (flow().replace('"psi"\nreceivers', '"sort"\nreceivers'), Reason.UNSUPPORTED_ALGO, "there is: psi"),
    "unknown node": (flow().replace(REGISTRY, "nobody.guangdong.cn"), Reason.NO_ROUTE, "nobody.guangdong.cn"),
    "unknown hub": (flow().replace(REGISTRY, "nobody.fujian.cn"), Reason.NO_ROUTE, "nobody.fujian.cn"),
    "another mesh": (flow().replace(REGISTRY, "nobody.fujian.us"), Reason.NO_ROUTE, "nobody.fujian.us"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLOWS)
async def test_bad_flow_starts_no_job(mesh, case):
    text, reason, part = FLOWS[case]
    before = await mesh.nodes[RESEARCH].jobs.every()
    with pytest.raises(TdnError) as error:
        await mesh.nodes[RESEARCH].jobs.run(text)
    refused(error, reason, part)
    assert await mesh.nodes[RESEARCH].jobs.every() == before


async def test_flow_is_proposed_by_one_of_its_parties(mesh):
    with pytest.raises(TdnError) as error:
        await mesh.nodes[RESEARCH].jobs.run(flow((AIRLINE,)))
    refused(error, Reason.POLICY_DENIED, RESEARCH)


# -- the parties -----------------------------------------------------------------------------------


# Whoever may not use something need not know whether it is there.
UNKNOWN = {
    "no such column": ({"key": "phone"}, "no column phone"),
    "a column that is no key": ({"key": "note"}, "does not offer note"),
    "no such resource": ({"right": "nothing"}, "no resource registry.guangdong.cn/nothing"),
    "no such version": ({"right": "right@7"}, "no resource registry.guangdong.cn/right@7"),
}


@pytest.mark.parametrize("case", UNKNOWN)
async def test_what_the_other_party_does_not_have(mesh, case):
    """The others hear one sentence; the owner of the node hears what it is about."""
    options, told = UNKNOWN[case]
    rows = await run(mesh, flow(**options))
    ((state, reason, who),) = reasons(rows)
    assert (state, reason, who in {AIRLINE, REGISTRY}) == ("REJECTED", "RESOURCE_UNKNOWN", True)
    assert told in rows[who].failure["message"]
    heard = {row.failure["message"] for node, row in rows.items() if node != who}
    assert heard == {Reason.RESOURCE_UNKNOWN.value.summary[0]}


@pytest.mark.parametrize("change", ["changed", "gone"])
async def test_file_that_has_changed_since_it_was_registered(mesh, change):
    file = await table(mesh, AIRLINE, "left", text_of(LEFT))
    if change == "changed":
        file.write_text(text_of([*LEFT, 99]))
    else:
        file.unlink()
    rows = await run(mesh, flow())
    reason = {"changed": "DIGEST_MISMATCH", "gone": "INPUT_INVALID"}[change]
    assert reasons(rows) == {("FAILED", reason, AIRLINE)}
    assert "left.csv" in rows[AIRLINE].failure["message"]
    for node in (REGISTRY, RESEARCH):
        assert rows[node].failure["message"] == Reason[reason].value.summary[0]
        assert rows[node].failure["metadata"] == {}
    file.write_text(text_of(LEFT))


async def test_suite_that_nobody_has(mesh):
    rows = await run(mesh, flow(suites=["rot13"]))
    assert reasons(rows) == {("FAILED", "UNSUPPORTED_PARAMS", RESEARCH)}
    assert "rot13" in rows[AIRLINE].failure["message"]


CONFIGS = {
    "no common suite": ("[approval]", "suites = []\n[approval]", "REJECTED", "UNSUPPORTED_PARAMS", AIRLINE),
    "set too large": ("[approval]", "max_items = 3\n[approval]", "FAILED", "TOO_LARGE", AIRLINE),
    "no rule": ('algorithms = ["psi"]', 'algorithms = ["sum"]', "REJECTED", "POLICY_DENIED", AIRLINE),
    "no rule for the receiver": (
        'algorithms = ["psi"]', f'receivers = ["{AIRLINE}"]', "REJECTED", "RESULT_NOT_PERMITTED", AIRLINE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
async def test_party_that_is_configured_against_it(mesh, case):
    old, new, state, reason, who = CONFIGS[case]
    before = await restart(mesh, AIRLINE, (old, new))
    try:
        assert reasons(await run(mesh, flow())) == {(state, reason, who)}
    finally:
        await restart(mesh, AIRLINE, (new, old))
    assert (mesh.folder / AIRLINE / "node.toml").read_text() == before


async def test_nobody_decides_in_time(mesh):
    await restart(mesh, REGISTRY, ('mode = "rules"', 'mode = "manual"'))
    try:
        rows = await run(mesh, flow(approval_s=1))
    finally:
        await restart(mesh, REGISTRY, ('mode = "manual"', 'mode = "rules"'))
    assert reasons(rows) == {("REJECTED", "DEADLINE", RESEARCH)}
    assert REGISTRY in rows[RESEARCH].failure["message"]
    assert AIRLINE not in rows[RESEARCH].failure["message"]


# -- the output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../stolen.csv", "/tmp/stolen.csv", "a/../../stolen.csv"])
async def test_flow_of_another_node_writes_into_the_results_only(mesh, path):
    rows = await run(mesh, flow((AIRLINE,), path=path), REGISTRY, (AIRLINE, REGISTRY))
    assert reasons(rows) == {("REJECTED", "POLICY_DENIED", AIRLINE)}


async def test_nothing_is_overwritten(mesh):
    file = mesh.folder / RESEARCH / "results" / "taken.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    rows = await run(mesh, flow(path="taken.csv"))
    assert reasons(rows) == {("REJECTED", "OUTPUT_EXISTS", RESEARCH)}
    assert file.read_text() == "mine"
    file.unlink()


async def test_output_appears_while_the_job_runs(mesh, monkeypatch):
    """Not overwritten either; the other receiver keeps what it had before, and has stated."""
    file = mesh.folder / AIRLINE / "results" / "taken.csv"
    work = mesh.nodes[AIRLINE].jobs._work
    load = work.load

    async def slow_load(part):
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        await load(part)

    monkeypatch.setattr(work, "load", slow_load)
    rows = await run(mesh, flow((AIRLINE, REGISTRY), path="taken.csv"), AIRLINE, (AIRLINE, REGISTRY))
    assert reasons(rows) == {("FAILED", "OUTPUT_EXISTS", AIRLINE)}
    assert file.read_text() == "mine"
    file.unlink()
    theirs = mesh.folder / REGISTRY / "results" / "taken.csv"
    assert theirs.exists() == (rows[REGISTRY].party_state == "SUCCESS")
    theirs.unlink(missing_ok=True)


# -- nodes that are not there ----------------------------------------------------------------------


@pytest.mark.parametrize("node", [REGISTRY, HUB_2, HUB_1])
async def test_nodes_that_do_not_run_when_the_job_is_proposed(mesh, node):
    """A party, its hub, or the hub of the node that proposes."""
    await mesh.stop(node)
    await finds_it_later(mesh, "later.csv", lambda: mesh.start(node))


async def test_the_mesh_still_works(mesh):
    """After everything above, a good job."""
    rows = await run(mesh, flow(path="good.csv"))
    assert [rows[node].state for node in PARTIES] == ["SUCCEEDED"] * 3, rows[RESEARCH].failure
    file = mesh.folder / RESEARCH / "results" / "good.csv"
    assert file.read_text().split() == ["id", *BOTH]
    file.unlink()
