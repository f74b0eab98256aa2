"""Job messages from those who have no say, or that say what is not so: refused, noted, and the job goes on."""

import asyncio
from dataclasses import replace

import pytest
import pytest_asyncio

from tdn_interop import identity
from tdn_interop.app.evidence.statements import Consent, Outcome, Statement, Verdict
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.errors import Reason
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure
from tests.app.job_mesh import BOTH, ends, flow, job_mesh, left_behind, open_jobs, reasons, until
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOLDERS = (AIRLINE, REGISTRY)
NONE = Signed(b"", "", b"")
FAILURE = Failure(Reason.INTERNAL, "made up", AIRLINE)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


class Held:
    """A job of the two holders, coordinated by the registry, that is held while it runs at the airline."""

    def __init__(self, mesh, monkeypatch):
        self.mesh = mesh
        self.runs = 0
        self.refusals = {node: asyncio.Queue() for node in HOLDERS}
        self._go_on = asyncio.Event()
        work = mesh.nodes[AIRLINE].jobs._work
        run = work.run

        async def held(*arguments):
            self.runs += 1
            await self._go_on.wait()
            await run(*arguments)

        monkeypatch.setattr(work, "run", held)
        for node, refusals in self.refusals.items():
            monkeypatch.setattr(mesh.nodes[node].mesh, "refused", refusals.put_nowait)

    async def start(self):
        self.id = await self.mesh.nodes[REGISTRY].jobs.run(flow((REGISTRY,), path="forged.csv"))
        for node in HOLDERS:
            await until(self.mesh, node, self.id, party_state="RUNNING")
        return self

    @property
    def agreement_sha256(self):
        return self.run(REGISTRY).part.agreement_digest

    def run(self, node):
        return self.mesh.nodes[node].jobs._runs[self.id]

    async def say(self, sender, to, message):
        """Send as `sender`; the refusal of `to`."""
        data = message if isinstance(message, bytes) else job_wire.encode_message(self.id, message)
        await self.post(sender, to, data)
        async with asyncio.timeout(10):
            return await self.refusals[to].get()

    async def post(self, sender, to, data):
        node = self.mesh.nodes[sender]
        await node.jobs._store.run(lambda c: node.mesh.post.send_in(c, to, data, 60))
        node.mesh.post.wake(to)

    async def goes_on(self):
        """Nothing that was refused has changed anything: the job succeeds, and ran once."""
        self._go_on.set()
        rows = await ends(self.mesh, self.id, HOLDERS)
        assert {row.state for row in rows.values()} == {"SUCCEEDED"}, rows[REGISTRY].failure
        file = self.mesh.folder / REGISTRY / "results" / "forged.csv"
        assert [line.split(",")[0] for line in file.read_text().split()] == ["id", *BOTH]
        file.unlink()
        assert self.runs == 1
        assert left_behind(self.mesh) == []
        assert await open_jobs(self.mesh) == []


@pytest_asyncio.fixture(loop_scope="module")
async def held(mesh, monkeypatch):
    return await Held(mesh, monkeypatch).start()


def verdict(sender, job_id, outcome):
    made = Verdict(job_id, outcome, bytes(32), (), HOLDERS, "INTERNAL")
    return words.Conclude(
        sender, 9, Signed(job_wire.encode_verdict(made, FAILURE), sender, bytes(64)), outcome
    )


def orders(sender, job_id):
    """What only a coordinator may say."""
    return [
        words.Propose(sender, 0, b"{}"),
        words.Admit(sender, 0, b"", ()),
        words.Prepare(sender, 0),
        words.Start(sender, 2, bytes(32)),
        words.Release(sender, 1),
        words.Abort(sender, 1, Outcome.CANCELLED, FAILURE),
        verdict(sender, job_id, Outcome.FAILED),
    ]


def reports(sender, job_id):
    """What parties say to the coordinator."""
    statement = Statement(job_id, sender, Outcome.FAILED, bytes(32), 1, b"", 1, REGISTRY)
    signed = Signed(job_wire.encode_statement(statement), sender, bytes(64))
    return [
        words.Stored(sender, 0),
        words.Approval(sender, 0, NONE, NONE),
        words.Refusal(sender, 0, FAILURE),
        words.Admitted(sender, 0, NONE),
        words.Prepared(sender, 0),
        words.Computed(sender, 1, 0),
        words.Stated(sender, 1, signed, Outcome.FAILED),
        words.Attested(sender, 1, b"x"),
        words.Fail(sender, 1, FAILURE),
        words.Cancel(sender, 1, "mine now"),
    ]


async def test_words_of_a_node_that_is_no_party(held):
    for to in HOLDERS:
        for message in [*orders(RESEARCH, held.id), *reports(RESEARCH, held.id)]:
            error = await held.say(RESEARCH, to, message)
            expected = {
                Reason.IDENTITY_MISMATCH,
                Reason.POLICY_DENIED,
                Reason.SIGNATURE_INVALID,
                Reason.INVALID_REQUEST,
            }
            assert error.reason in expected, message
    await held.goes_on()


async def test_orders_of_a_mere_party_to_the_coordinator(held):
    for message in orders(AIRLINE, held.id):
        assert (await held.say(AIRLINE, REGISTRY, message)).reason is Reason.IDENTITY_MISMATCH
    await held.goes_on()


async def test_reports_of_the_coordinator_to_a_mere_party(held):
    for message in reports(REGISTRY, held.id):
        error = await held.say(REGISTRY, AIRLINE, message)
        assert error.reason in {Reason.IDENTITY_MISMATCH, Reason.INVALID_REQUEST}
    await held.goes_on()


async def test_statement_that_somebody_else_signed(held):
    key = held.mesh.nodes[RESEARCH].mesh.standing.key
    made = Statement(held.id, AIRLINE, Outcome.SUCCEEDED, held.agreement_sha256, 1, b"", 1, REGISTRY)
    data = job_wire.encode_statement(made)
    for signed in (
        replace(key.sign(identity.STATEMENT, data), signer=AIRLINE),
        key.sign(identity.STATEMENT, data),
        held.mesh.nodes[AIRLINE].mesh.standing.key.sign(identity.CONSENT, data),
    ):
        error = await held.say(AIRLINE, REGISTRY, words.Stated(AIRLINE, 1, signed, Outcome.SUCCEEDED))
        assert error.reason is Reason.SIGNATURE_INVALID
    await held.goes_on()


async def test_statement_about_another_job(held):
    key = held.mesh.nodes[AIRLINE].mesh.standing.key
    made = Statement("f" * 32, AIRLINE, Outcome.SUCCEEDED, held.agreement_sha256, 1, b"", 1, REGISTRY)
    signed = key.sign(identity.STATEMENT, job_wire.encode_statement(made))
    error = await held.say(AIRLINE, REGISTRY, words.Stated(AIRLINE, 1, signed, Outcome.SUCCEEDED))
    assert error.reason is Reason.IDENTITY_MISMATCH
    await held.goes_on()


async def test_consent_to_another_agreement(held):
    key = held.mesh.nodes[AIRLINE].mesh.standing.key
    consent = Consent(held.id, bytes(32), REGISTRY, HOLDERS)
    signed = key.sign(identity.CONSENT, job_wire.encode_consent(consent))
    error = await held.say(AIRLINE, REGISTRY, words.Admitted(AIRLINE, 0, signed))
    assert error.reason in {Reason.DIGEST_MISMATCH, Reason.IDENTITY_MISMATCH}
    await held.goes_on()


async def test_verdict_that_a_party_did_not_hear(held):
    """Not even the coordinator may tell a party that the job succeeded before the party says so."""
    error = await held.say(REGISTRY, AIRLINE, verdict(REGISTRY, held.id, Outcome.SUCCEEDED))
    assert error.reason is Reason.STATE_CONFLICT
    await held.goes_on()


async def test_repeated_and_stale_starts_run_once(held):
    start = words.Start(REGISTRY, 1, held.agreement_sha256)
    await held.post(REGISTRY, AIRLINE, job_wire.encode_message(held.id, start))
    for message, reason in (
        (words.Start(REGISTRY, 0, held.agreement_sha256), Reason.STALE),
        (words.Start(REGISTRY, 1, bytes(32)), Reason.STATE_CONFLICT),
        (words.Release(REGISTRY, 0), Reason.STALE),
        (words.Release(REGISTRY, 2), Reason.STATE_CONFLICT),
    ):
        assert (await held.say(REGISTRY, AIRLINE, message)).reason is reason
    await held.goes_on()


async def test_bytes_that_are_no_message(held):
    for data in (b"", b"\xff" * 50, b"\x0a\x20" + b"0" * 32):
        assert (await held.say(RESEARCH, AIRLINE, data)).reason is Reason.INVALID_REQUEST
    await held.goes_on()


async def test_words_about_a_job_that_nobody_knows(held):
    data = job_wire.encode_message("f" * 32, words.Cancel(AIRLINE, 0, ""))
    assert (await held.say(AIRLINE, REGISTRY, data)).reason is Reason.JOB_UNKNOWN
    await held.goes_on()


async def test_proposal_of_a_node_that_is_no_party(mesh, held):
    """The refusal goes back to it, and no job is kept."""
    proposal = words.Propose(RESEARCH, 0, held.run(REGISTRY).job._flow)
    data = job_wire.encode_message("e" * 32, proposal)
    assert (await held.say(RESEARCH, AIRLINE, data)).reason is Reason.POLICY_DENIED
    assert all(row.job_id != "e" * 32 for row in await mesh.nodes[AIRLINE].jobs.every())
    await held.goes_on()


async def test_proposal_of_a_job_that_has_ended(mesh, held):
    flow_json = held.run(REGISTRY).job._flow
    await held.goes_on()
    mesh.nodes[AIRLINE].jobs._drop(held.id)
    error = await held.say(REGISTRY, AIRLINE, words.Propose(REGISTRY, 0, flow_json))
    assert error.reason is Reason.STATE_CONFLICT
    assert held.runs == 1


AGREEMENT_EDITS = {
    "the choice": (lambda made: replace(made, choice=replace(made.choice, suite="weak")), "HANDSHAKE_REFUSED"),
    "the model": (lambda made: replace(made, security_model="none/1"), "TRANSCRIPT_MISMATCH"),
    "an offer": (
        lambda made: replace(made, offers=(replace(made.offers[0], statement=made.offers[1].statement), made.offers[1])),
        "TRANSCRIPT_MISMATCH",
    ),
    "the offer of the other": (
        lambda made: replace(made, offers=(made.offers[0], replace(made.offers[1], statement=made.offers[0].statement))),
        "SIGNATURE_INVALID",
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", AGREEMENT_EDITS)
async def test_agreement_that_the_coordinator_edits(mesh, monkeypatch, edit):
    """The airline finds out, and the job fails with its reason everywhere."""
    change, reason = AGREEMENT_EDITS[edit]
    encode = job_wire.encode_message

    def edited(job_id, message):
        if isinstance(message, words.Admit):
            made = job_wire.decode_agreement(message.agreement)
            message = replace(message, agreement=job_wire.encode_agreement(change(made)))
        return encode(job_id, message)

    monkeypatch.setattr(job_wire, "encode_message", edited)
    job_id = await mesh.nodes[REGISTRY].jobs.run(flow((REGISTRY,)))
    rows = await ends(mesh, job_id, HOLDERS)
    assert reasons(rows) == {("FAILED", reason, AIRLINE)}
    assert left_behind(mesh) == []
