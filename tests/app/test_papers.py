"""What a party accepts as a verdict: nothing that the coordinator could make up alone."""

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.app.evidence.statements import Outcome, Statement, Verdict
from tdn_interop.app.jobs import job, job_wire
from tdn_interop.app.jobs.job_protocol import Stated
from tdn_interop.app.jobs.papers import Papers
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Identity

NODES = ("airline.shandong.cn", "registry.guangdong.cn", "research.shandong.cn")
ME, OTHER, COORDINATOR = NODES
JOB, DIGEST = "ab" * 16, b"d" * 32


@pytest.fixture
def keys():
    return {node: Identity(node, Ed25519PrivateKey.generate()) for node in NODES}


def papers(keys, node):
    membership = SimpleNamespace(record=None, top_identity_key=b"")
    standing = SimpleNamespace(key=keys[node], membership=membership)
    mesh = SimpleNamespace(me=node, standing=standing, key_of=lambda name: keys[name].public_key)
    flow = SimpleNamespace(parties=NODES)
    part = SimpleNamespace(
        job_id=JOB, flow=flow, coordinator=COORDINATOR, agreement_digest=DIGEST, commitment=b""
    )
    return Papers(mesh, part)


def signed(keys, node, outcome=Outcome.SUCCEEDED, **changes):
    fields = {
        "job_id": JOB, "party": node, "outcome": outcome, "agreement_sha256": DIGEST, "epoch": 1,
        "result_commitment": b"", "ended_at_ms": 1, "coordinator": COORDINATOR,
    }  # fmt: skip
    data = job_wire.encode_statement(Statement(**(fields | changes)))
    return keys[node].sign(identity.STATEMENT, data)


def verdict(keys, statements, outcome=Outcome.SUCCEEDED, missing=(), by=COORDINATOR, **changes):
    fields = {"job_id": JOB, "outcome": outcome, "agreement_sha256": DIGEST, "failure": ""}
    made = Verdict(statements=tuple(statements), missing=tuple(missing), **(fields | changes))
    return keys[by].sign(identity.VERDICT, job_wire.encode_verdict(made, None))


@pytest.fixture
def case(keys):
    """Our papers, after we have stated success, and the statements of all three."""
    ours = papers(keys, ME)
    mine = ours.statement(Outcome.SUCCEEDED, 1)
    return ours, [mine, signed(keys, OTHER), signed(keys, COORDINATOR)]


def test_an_honest_verdict_is_accepted(keys, case):
    ours, said = case
    end = verdict(keys, said)
    ours.accept(end)
    assert ours.verdict == end


F = Outcome.FAILED
BAD = {
    "signed by another party": lambda k, s: verdict(k, s, by=OTHER),
    "about another job": lambda k, s: verdict(k, s, job_id="cd" * 16),
    "about another agreement": lambda k, s: verdict(k, s, agreement_sha256=b"x" * 32),
    "with an older statement of ours": lambda k, s: verdict(k, [signed(k, ME, ended_at_ms=9), *s[1:]]),
    "with a forged statement": lambda k, s: verdict(
        k, [s[0], identity.Signed(s[1].statement, OTHER, b"s" * 64), s[2]]
    ),
    "with a statement to another coordinator": lambda k, s: verdict(
        k, [s[0], signed(k, OTHER, coordinator=OTHER), s[2]]
    ),
    "without a party": lambda k, s: verdict(k, [s[0], s[2]]),
    "failed though all succeeded": lambda k, s: verdict(k, s, F),
    "succeeded though one failed": lambda k, s: verdict(k, [s[0], signed(k, OTHER, F), s[2]]),
    "without the coordinator": lambda k, s: verdict(k, s[:2], F, missing=[COORDINATOR]),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_dishonest_verdict_is_refused(keys, case, make):
    ours, said = case
    with pytest.raises(TdnError):
        ours.accept(make(keys, said))
    assert ours.verdict is None


def test_a_verdict_of_another_job_is_named_as_such(keys, case):
    ours, said = case
    with pytest.raises(TdnError) as error:
        ours.accept(verdict(keys, said, job_id="cd" * 16))
    assert error.value.reason is Reason.IDENTITY_MISMATCH


def test_our_statement_may_be_missing(keys):
    ours = papers(keys, ME)
    end = verdict(keys, [signed(keys, OTHER, F), signed(keys, COORDINATOR, F)], F, missing=[ME])
    ours.accept(end)
    assert ours.verdict == end


def test_the_coordinator_refuses_statements_that_are_not_for_it(keys):
    ours = papers(keys, COORDINATOR)
    for wrong in (
        signed(keys, OTHER, coordinator=OTHER),
        signed(keys, OTHER, job_id="cd" * 16),
        signed(keys, OTHER, party=ME),
    ):
        with pytest.raises(TdnError) as error:
            ours.check(Stated(OTHER, 1, wrong, Outcome.SUCCEEDED))
        assert error.value.reason is Reason.IDENTITY_MISMATCH
    ours.check(Stated(OTHER, 1, signed(keys, OTHER), Outcome.SUCCEEDED))


def test_a_verdict_is_what_its_parties_can_accept(keys, case):
    ours, said = case
    theirs = papers(keys, COORDINATOR)
    stated = tuple(Stated(s.signer, 1, s, Outcome.SUCCEEDED) for s in said)
    ours.accept(theirs.sign_verdict(job.SignVerdict(Outcome.SUCCEEDED, stated, (), None)))


def test_a_verdict_brings_the_keys_of_parties_that_were_never_met(keys):
    """A job that is rejected at once: the parties have met the coordinator only."""
    ours = papers(keys, ME)
    ours._mesh.key_of = lambda node: b"" if node == OTHER else keys[node].public_key
    records = {b"record": SimpleNamespace(node_id=OTHER, identity_key=keys[OTHER].public_key)}
    ours._mesh.record = lambda signed: records[signed]
    end = verdict(keys, [signed(keys, OTHER, F), signed(keys, COORDINATOR, F)], F, missing=[ME])
    with pytest.raises(TdnError) as error:
        ours.accept(end)
    assert error.value.reason is Reason.SIGNATURE_INVALID
    ours.accept(end, [b"record"])
    assert ours.verdict == end


def test_a_party_cannot_bring_the_record_of_another(keys):
    ours = papers(keys, COORDINATOR)
    ours._mesh.record = lambda _: SimpleNamespace(node_id=ME, identity_key=b"")
    with pytest.raises(TdnError) as error:
        ours.check(Stated(OTHER, 1, signed(keys, OTHER), Outcome.SUCCEEDED, b"record"))
    assert error.value.reason is Reason.IDENTITY_MISMATCH
