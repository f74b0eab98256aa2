"""One job on a node whose record cannot be written: it is tried again, and the job ends in any case."""

import pytest
import pytest_asyncio

from tdn_interop.app.evidence.statements import VERDICT_KIND
from tdn_interop.app.evidence.wire import decode_statement
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.flow import flow_from_json
from tdn_interop.app.jobs.job_replay import replay
from tdn_interop.app.jobs.party import PartyState, PartyTask
from tdn_interop.app.store import jobs as rows
from tdn_interop.errors import Reason, Unavailable
from tdn_interop.transport.records_wire import decode_signed
from tests.app.job_mesh import ends, flow, job_mesh, reasons
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
DOWN = Unavailable(Reason.STORE_UNAVAILABLE, "database: disk I/O error")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


def failing(mesh, node, monkeypatch, when, times):
    """Let the next `times` records of a job of `node` fail once `when(run)` holds."""
    records = mesh.nodes[node].jobs._records
    real, left = records.write, [times]

    async def write(run):
        if left[0] and when(run):
            left[0] -= 1
            raise DOWN
        await real(run)

    monkeypatch.setattr(records, "write", write)
    return left


@pytest.mark.parametrize("node", [RESEARCH, AIRLINE])
async def test_a_record_that_fails_once_is_written_again(mesh, monkeypatch, node):
    left = failing(mesh, node, monkeypatch, lambda run: run.party.state is PartyState.RUNNING, 2)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="again.csv"))
    found = await ends(mesh, job_id)
    assert left == [0]
    assert {row.state for row in found.values()} == {"SUCCEEDED"}, found[RESEARCH].failure
    (mesh.folder / RESEARCH / "results" / "again.csv").unlink()


async def test_a_record_that_cannot_be_written_fails_the_job_everywhere(mesh, monkeypatch):
    left = failing(mesh, AIRLINE, monkeypatch, lambda run: run.party.state is PartyState.RUNNING, 3)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="never.csv"))
    found = await ends(mesh, job_id)
    assert left == [0]
    assert reasons(found) == {("FAILED", "INTERNAL", AIRLINE)}
    assert "disk" not in str([row.failure for row in found.values()])


async def test_a_verdict_is_given_though_the_step_to_it_is_not_recorded(mesh, monkeypatch):
    """The machine has stepped, so nothing would ask for the verdict again."""
    ended = lambda run: run.job is not None and run.job.state.name == "SUCCEEDED"
    left = failing(mesh, RESEARCH, monkeypatch, ended, 3)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="given.csv"))
    found = await ends(mesh, job_id)
    assert left == [0]
    assert {row.state for row in found.values()} == {"SUCCEEDED"}
    (mesh.folder / RESEARCH / "results" / "given.csv").unlink()


async def test_verdict_and_record_are_one_transaction(mesh, monkeypatch):
    """If the record of the verdict cannot be written, there is no event about it either."""
    jobs = mesh.nodes[AIRLINE].jobs
    real, seen = rows.put_party, []

    def put_party(connection, party):
        run = jobs._runs.get(party.job_id)
        if run and run.papers.verdict and not seen:
            seen.append(party.job_id)
            raise DOWN
        real(connection, party)

    job_id = await mesh.nodes[REGISTRY].jobs.run(flow((AIRLINE, REGISTRY), path="one.csv"))
    monkeypatch.setattr(rows, "put_party", put_party)
    found = await ends(mesh, job_id, (AIRLINE, REGISTRY))
    assert {row.state for row in found.values()} == {"SUCCEEDED"}
    noted = [event.kind for _, event in await jobs._records._log.about(job_id)]
    assert (len(seen), noted.count(VERDICT_KIND)) == (1, 1)
    for node in found:
        (mesh.folder / node / "results" / "one.csv").unlink()


async def test_a_statement_is_on_record_when_it_is_sent(mesh, monkeypatch):
    """In one transaction; nothing that is not on record leaves the node."""
    post, said = mesh.nodes[AIRLINE].mesh.post, []
    real = post.send_in

    def send_in(connection, peer, body, valid_s):
        job_id, message = job_wire.decode_message(AIRLINE, body)
        if isinstance(message, words.Stated):
            said.append(
                (message.statement, rows.parties(connection, job_id), rows.events(connection, job_id))
            )
        real(connection, peer, body, valid_s)

    monkeypatch.setattr(post, "send_in", send_in)
    job_id = await mesh.nodes[REGISTRY].jobs.run(flow((AIRLINE, REGISTRY), path="said.csv"))
    await ends(mesh, job_id, (AIRLINE, REGISTRY))
    ((sent, parties, events),) = said
    (mine,) = [row for row in parties if row.party == AIRLINE]
    assert decode_signed(mine.statement) == sent
    assert decode_statement(sent.statement).party == AIRLINE
    assert [event.kind for event in events][-1] == "StatementSigned"
    for node in (AIRLINE, REGISTRY):
        (mesh.folder / node / "results" / "said.csv").unlink()


async def test_what_was_not_recorded_is_recorded_the_next_time(mesh, monkeypatch):
    """The journal misses nothing: it replays to what the machines are."""
    left = failing(mesh, AIRLINE, monkeypatch, lambda run: run.party.state is PartyState.RUNNING, 3)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="never.csv"))
    await ends(mesh, job_id)
    assert left == [0]
    past = await mesh.nodes[AIRLINE].jobs._records.past(job_id)
    machine = PartyTask(AIRLINE, RESEARCH, flow_from_json(past.row.flow).timeouts)
    replay(past, {"party": machine}, lambda *_: None)
    assert machine.state is PartyState.FAILED
    assert [row.idx for row in past.events] == list(range(len(past.events)))
