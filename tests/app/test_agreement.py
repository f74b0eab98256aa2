"""The agreement follows from what the parties signed: whoever edits anything is found out by everybody else."""

from dataclasses import replace

import pytest

from tdn_interop import identity
from tdn_interop.algo import catalogue
from tdn_interop.app.jobs import agreement as agreements
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.agreement import Approved
from tdn_interop.app.jobs.terms import InputOffer, Offer
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport.records_wire import NodeRecord, encode_record
from tdn_interop.transport.trust import Trust
from tests.app.evidence_mesh import JOB, NOW
from tests.app.evidence_mesh import identity as key_of
from tests.app.job_mesh import PARTIES, flow
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

FLOW = flows.flow_from_toml(flow())
INPUTS = {AIRLINE: (f"{AIRLINE}/left@1",), REGISTRY: (f"{REGISTRY}/right@3",), RESEARCH: ()}
TRUST = Trust("cn", key_of("cn").public_key, lambda _node, key: key)


def offer(party, **changes):
    """The offer of `party` as it would make it."""
    inputs = tuple(InputOffer(resource, bytes(32)) for resource in INPUTS[party])
    made = Offer(JOB, flows.flow_sha256(FLOW), catalogue.offer(party), inputs, NOW, "rule")
    return replace(made, **changes)


def approved(party, made=None, *, signer=None, key=None):
    """`made`, signed by `party` or by the key of `signer`, with the record of `party`."""
    signed = key_of(signer or party).sign(identity.OFFER, job_wire.encode_offer(made or offer(party)))
    record = NodeRecord(party, "child", key or key_of(party).public_key, party.partition(".")[2], NOW)
    return Approved(
        replace(signed, signer=party), key_of("cn").sign(identity.NODE_RECORD, encode_record(record))
    )


def all_approved(**changed):
    return [changed.get(party.partition(".")[0], approved(party)) for party in PARTIES]


def agree(found):
    return agreements.agree(JOB, FLOW, found, TRUST.record)


def confirm(data, found, party=AIRLINE):
    own = next(one.offer for one in found if one.offer.signer == party)
    records = [one.record for one in sorted(found, key=lambda one: one.offer.signer)]
    return agreements.confirm(data, records, JOB, FLOW, own, TRUST.record)


def without_suites(party):
    """What is left of the proposal when somebody strips it."""
    full = catalogue.offer(party)
    return replace(full, algorithms=tuple(replace(a, suites=("weak",)) for a in full.algorithms))


def test_everybody_computes_the_same():
    found = all_approved()
    made = agree(found)
    assert made == agree(found[::-1])
    data = job_wire.encode_agreement(made)
    assert {confirm(data, found, party) == made for party in PARTIES} == {True}
    assert [one.signer for one in made.offers] == sorted(PARTIES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"job_id": "f" * 32}, Reason.TRANSCRIPT_MISMATCH),
        ({"flow_sha256": bytes(32)}, Reason.TRANSCRIPT_MISMATCH),
        ({"proposal": catalogue.offer(REGISTRY)}, Reason.TRANSCRIPT_MISMATCH),
        ({"inputs": ()}, Reason.TRANSCRIPT_MISMATCH),
        ({"inputs": (InputOffer(f"{AIRLINE}/other@1", bytes(32)),)}, Reason.TRANSCRIPT_MISMATCH),
        ({"inputs": (InputOffer(f"{AIRLINE}/left2@1", bytes(32)),)}, Reason.TRANSCRIPT_MISMATCH),
        ({"inputs": 2 * (InputOffer(f"{AIRLINE}/left@1", bytes(32)),)}, Reason.TRANSCRIPT_MISMATCH),
        ({"proposal": without_suites(AIRLINE)}, Reason.UNSUPPORTED_PARAMS),
    ],
)
def test_offer_for_something_else(change, reason):
    with pytest.raises(TdnError) as error:
        agree(all_approved(airline=approved(AIRLINE, offer(AIRLINE, **change))))
    assert error.value.reason is reason


def test_refusal_of_the_suites_names_what_each_side_wants():
    with pytest.raises(TdnError) as error:
        agree(all_approved(airline=approved(AIRLINE, offer(AIRLINE, proposal=without_suites(AIRLINE)))))
    assert f"{AIRLINE}: weak" in error.value.message
    assert f"{REGISTRY}: x25519-sha256-ell2" in error.value.message


FORGED = {
    "another key signed": (approved(AIRLINE, signer=REGISTRY), Reason.SIGNATURE_INVALID),
    "the record is of another key": (approved(AIRLINE, key=key_of(REGISTRY).public_key), Reason.SIGNATURE_INVALID),
    "the record is of another node": (
        replace(approved(AIRLINE), record=approved(REGISTRY).record), Reason.TRANSCRIPT_MISMATCH,
    ),
    "the record is signed by a hub": (
        replace(approved(AIRLINE), record=key_of("shandong.cn").sign(
            identity.NODE_RECORD, approved(AIRLINE).record.statement)), Reason.SIGNATURE_INVALID,
    ),
    "the offer is cut": (
        replace(approved(AIRLINE), offer=replace(approved(AIRLINE).offer, statement=approved(AIRLINE).offer.statement[:-1])),
        Reason.SIGNATURE_INVALID,
    ),
    "the signature was for something else": (
        replace(approved(AIRLINE), offer=key_of(AIRLINE).sign(identity.CONSENT, job_wire.encode_offer(offer(AIRLINE)))),
        Reason.SIGNATURE_INVALID,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_forged_offers(case):
    forged, reason = FORGED[case]
    with pytest.raises(TdnError) as error:
        agree(all_approved(airline=forged))
    assert error.value.reason is reason


@pytest.mark.parametrize(
    "parties",
    [PARTIES[:2], (*PARTIES, AIRLINE), (AIRLINE, AIRLINE, REGISTRY)],
    ids=["one less", "one more", "twice"],
)
def test_offers_of_other_parties(parties):
    with pytest.raises(TdnError) as error:
        agree([approved(party) for party in parties])
    assert error.value.reason is Reason.TRANSCRIPT_MISMATCH


EDITS = {
    "the choice": lambda made: replace(made, choice=replace(made.choice, suite="weak")),
    "the format": lambda made: replace(made, choice=replace(made.choice, format="raw/1")),
    "the algorithm": lambda made: replace(made, choice=replace(made.choice, algorithm="psi.ecdh/1")),
    "the model": lambda made: replace(made, security_model="none/1"),
    "the job": lambda made: replace(made, job_id="f" * 32),
    "the flow": lambda made: replace(made, flow_sha256=bytes(32)),
    "a key": lambda made: replace(made, identity_keys=(bytes(32), *made.identity_keys[1:])),
    "an offer left out": lambda made: replace(made, offers=made.offers[1:], identity_keys=made.identity_keys[1:]),
    "the order": lambda made: replace(made, offers=made.offers[::-1]),
    "our own proposal": lambda made: replace(
        made, offers=(approved(AIRLINE, offer(AIRLINE, proposal=without_suites(AIRLINE))).offer, *made.offers[1:])
    ),
    "our own offer, once more": lambda made: replace(
        made, offers=(approved(AIRLINE, offer(AIRLINE, approved_at_ms=1)).offer, *made.offers[1:])
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_edited_agreement_is_found_out(edit):
    found = all_approved()
    edited = job_wire.encode_agreement(EDITS[edit](agree(found)))
    with pytest.raises(TdnError) as error:
        confirm(edited, found)
    chosen = edit in {"the choice", "the format", "the algorithm"}
    assert error.value.reason is (Reason.HANDSHAKE_REFUSED if chosen else Reason.TRANSCRIPT_MISMATCH)


def test_proposal_of_another_party_that_was_stripped():
    """Its signature does not fit any more, so nobody has to know what it was."""
    found = all_approved()
    made = agree(found)
    stripped = offer(REGISTRY, proposal=without_suites(REGISTRY))
    forged = replace(made.offers[1], statement=job_wire.encode_offer(stripped))
    edited = replace(made, offers=(made.offers[0], forged, made.offers[2]))
    with pytest.raises(TdnError) as error:
        confirm(job_wire.encode_agreement(edited), found)
    assert error.value.reason is Reason.SIGNATURE_INVALID


def test_as_many_records_as_offers():
    found = all_approved()
    with pytest.raises(TdnError) as error:
        agreements.confirm(
            job_wire.encode_agreement(agree(found)),
            [found[0].record],
            JOB,
            FLOW,
            found[0].offer,
            TRUST.record,
        )
    assert error.value.reason is Reason.TRANSCRIPT_MISMATCH
