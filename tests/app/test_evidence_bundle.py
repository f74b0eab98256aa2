"""Bundles: what verifies offline, and that nothing else does."""

import dataclasses
import hashlib
import json
import socket
import zlib

import pytest

from tdn_interop._pb.tdn.app.v1 import evidence_pb2, job_pb2
from tdn_interop.app.evidence import bundle as bundles
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.bundle import MAX_BUNDLE, STEPS, describe, verify
from tdn_interop.app.evidence.merkle import Tree
from tdn_interop.app.evidence.statements import Attestation, Content, Outcome, TreeHead, commitment, digest
from tdn_interop.errors import LocalProtocolError, Reason, TdnError
from tdn_interop.identity import EVENT, NODE_RECORD, TREE_HEAD, Signed
from tdn_interop.transport.records_wire import NodeRecord, decode_record, encode_record, signed_to_pb
from tests.app.evidence_mesh import (
    AGREEMENT,
    JOB,
    NOW,
    Mesh,
    Papers,
    consent,
    identity,
    papers,
    statement,
    verdict,
)

A, B, C, D, E = PARTIES = ["bank-a.shandong.cn", "bank-b.shandong.cn", "credit.beijing.cn", "hospital.beijing.cn",
                           "insurer.beijing.cn"]  # fmt: skip
APART = ["bank-a.shandong.cn", "bank-b.zhejiang.cn", "credit.beijing.cn", "hospital.shanghai.cn",
         "insurer.guangdong.cn"]  # fmt: skip


def pack(plain, **changes):
    """A bundle around any bytes."""
    packed = zlib.compress(plain, 9)
    fields = {"version": 1, "content_sha256": hashlib.sha256(packed).digest(), "content": packed}
    return evidence_pb2.EvidenceBundle(**(fields | changes)).SerializeToString()


def refusal(bundle, key):
    with pytest.raises(TdnError) as error:
        verify(bundle, key)
    assert error.value.reason in {Reason.EVIDENCE_BROKEN, Reason.SIGNATURE_INVALID, Reason.EQUIVOCATION}
    assert STEPS[int(error.value.metadata["step"]) - 1][0] == error.value.metadata["stepName"]
    return error.value


def changed(bundle, edit):
    """The bundle with edited content, packed as if it were whole."""
    content = wire.decode_content(wire.unpack_bundle(bundle))
    return wire.encode_bundle(edit(content))


@pytest.fixture(scope="module")
def case():
    return papers([A, B, C])


@pytest.fixture(scope="module")
def good(case):
    return case.bundle()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("names", [PARTIES, APART], ids=["two hubs", "a hub each"])
def test_a_bundle_proves_the_job(names, count):
    case = papers(names[:count])
    found = verify(case.bundle(), case.top_key)
    assert (found.job_id, found.outcome, found.failure, found.coordinator) == (
        JOB,
        Outcome.SUCCEEDED,
        "",
        names[0],
    )
    assert (found.agreement_sha256, found.verdict_sha256) == (AGREEMENT, digest(case.verdict))
    assert (found.tops, found.size_bytes) == ({"cn": case.mesh.key("cn")}, len(case.bundle()))
    assert [p.node for p in found.parties] == sorted(names[:count])
    for party in found.parties:
        assert (party.stated, party.consented, party.noted_at_ms) == (Outcome.SUCCEEDED, True, NOW)
        assert [head.node for head in party.logs] == [party.node, party.node.partition(".")[2], "cn"]


# Logs of nearly a million leaves; paths in hub and top have up to 18 hashes, those of the parties up to 12.
@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize(("names", "hub", "child", "later"), [
    (PARTIES, 2**20 - 64, 1000, 2), (PARTIES, 2**20 - 64, 4000, 0), (PARTIES, 987_654, 5000, 3), (APART, 987_654, 5000, 0),
], ids=["two hubs", "two hubs, quiet", "two hubs, busy", "a hub each"])  # fmt: skip
def test_a_bundle_from_large_logs_is_small_enough(names, hub, child, later, count):
    case = papers(names[:count], hub_size=hub, child_size=child, later=later)
    bundle = case.bundle()
    assert len(bundle) <= MAX_BUNDLE
    assert verify(bundle, case.top_key).size_bytes == len(bundle)


def test_a_bundle_that_would_be_too_large_is_not_made(monkeypatch, case):
    monkeypatch.setattr(bundles, "MAX_BUNDLE", len(case.bundle()) - 1)
    with pytest.raises(LocalProtocolError) as error:
        case.bundle()
    assert error.value.reason is Reason.TOO_LARGE


def test_a_bundle_that_is_too_large_is_not_read(good, case, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_BUNDLE", len(good) - 1)
    assert refusal(good, case.top_key).metadata["step"] == "1"


def test_verifying_needs_no_network_and_no_files(good, case, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("verification looked outside")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr("builtins.open", forbidden)
    assert verify(good, case.top_key).job_id == JOB


def test_the_description_is_json_and_complete(good, case):
    text = describe(verify(good, case.top_key))
    assert json.loads(json.dumps(text)) == text
    assert (text["job_id"], text["outcome"], text["coordinator"], text["top"]) == (JOB, "SUCCEEDED", A, "cn")
    assert text["top_identity_sha256"] == hashlib.sha256(case.top_key).hexdigest()
    assert [p["node"] for p in text["parties"]] == [A, B, C]
    assert text["parties"][2]["logs"][1]["node"] == "beijing.cn"
    assert len(text["steps"]) == len(STEPS)


def test_building_sorts_and_merges(case, good):
    shuffled = Papers(case.mesh, case.verdict, case.consents[::-1], case.attestations[::-1])
    assert shuffled.bundle() == good
    records = wire.decode_content(wire.unpack_bundle(good)).records
    assert [decode_record(r.statement).node_id for r in records] == sorted(
        [A, B, C, "shandong.cn", "beijing.cn"]
    )


# -- every byte


def test_every_changed_byte_of_a_bundle_is_found(good, case):
    for at in range(len(good)):
        wrong = bytearray(good)
        wrong[at] ^= 1 << at % 8
        refusal(bytes(wrong), case.top_key)


def test_every_changed_byte_of_the_content_is_found():
    """As an attacker does it: the container is made anew around the changed content."""
    case = papers([A, C])
    plain = wire.unpack_bundle(case.bundle())
    for at in range(len(plain)):
        wrong = bytearray(plain)
        wrong[at] ^= 1 << at % 8
        refusal(pack(bytes(wrong)), case.top_key)


def test_shorter_and_longer_bundles_are_found(good, case):
    for size in range(0, len(good), 61):
        refusal(good[:size], case.top_key)
    for more in (b"\0", b"\x22\x00", good):
        refusal(good + more, case.top_key)


@pytest.mark.parametrize("where", ["bundle", "content", "signed", "attestation"])
def test_unknown_fields_are_found(good, case, where):
    """Nested or not, a field nobody knows makes another form of the same bundle."""
    extra = b"\x9a\x06\x03abc"  # field 99, three bytes
    if where == "bundle":
        bundle = good + extra
    else:
        content = evidence_pb2.BundleContent.FromString(wire.unpack_bundle(good))
        place = {"content": content, "signed": content.verdict, "attestation": content.attestations[0]}[where]
        place.MergeFromString(extra)
        bundle = pack(content.SerializeToString())
    assert "canonical" in refusal(bundle, case.top_key).message


def test_another_encoding_of_the_same_content_is_found(good, case):
    plain = wire.unpack_bundle(good)
    assert plain[0] == 0x0A
    assert "canonical" in refusal(pack(b"\x8a\x00" + plain[1:]), case.top_key).message


def test_a_bundle_that_unpacks_without_end_is_refused_early(case):
    bomb = pack(bytes(50_000_000)[: 8 << 20])
    assert refusal(bomb[:MAX_BUNDLE], case.top_key).metadata["step"] in {"1", "2"}
    small = zlib.compress(bytes(1 << 20), 9)
    bomb = pack(b"", content=small, content_sha256=hashlib.sha256(small).digest())
    assert len(bomb) <= MAX_BUNDLE
    assert "longer than allowed" in refusal(bomb, case.top_key).message


@pytest.mark.parametrize("changes", [
    {"version": 2}, {"version": 0}, {"content_sha256": b""},
    {"content": b"no zlib", "content_sha256": hashlib.sha256(b"no zlib").digest()},
], ids=["version 2", "version 0", "no digest", "not packed"])  # fmt: skip
def test_other_containers_are_refused(good, case, changes):
    bundle = pack(wire.unpack_bundle(good), **changes)
    assert refusal(bundle, case.top_key).metadata["step"] == "2"


# -- whose key


def test_another_top_key_verifies_nothing(good):
    error = refusal(good, identity("cn", b"other").public_key)
    assert (error.reason, error.metadata["stepName"]) == (
        Reason.SIGNATURE_INVALID,
        "node records signed by the top",
    )


def test_a_whole_mesh_under_another_top_verifies_nothing(case, monkeypatch):
    """Everything is right, but under the key of an impostor with the same names."""
    monkeypatch.setattr("tests.app.evidence_mesh.Node.__init__", impostor)
    forged = papers([A, B, C])
    assert verify(forged.bundle(), forged.top_key).job_id == JOB
    assert refusal(forged.bundle(), case.top_key).reason is Reason.SIGNATURE_INVALID


def impostor(self, name, size=0):
    self.identity, self.name, self.tree, self.clock = identity(name, b"impostor"), name, Tree(), NOW


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_verifies_nothing(good, case, length):
    assert refusal(good, (case.top_key * 2)[:length]).reason is Reason.SIGNATURE_INVALID


# -- what is in it: (edit of the content, step that notices)


def drop(name, index):
    return lambda c: dataclasses.replace(
        c, **{name: getattr(c, name)[:index] + getattr(c, name)[index + 1 :]}
    )


def double(name, index):
    return lambda c: dataclasses.replace(
        c, **{name: getattr(c, name)[: index + 1] + getattr(c, name)[index:]}
    )


def swap(name):
    def edit(content):
        first, second, *rest = getattr(content, name)
        return dataclasses.replace(content, **{name: (second, first, *rest)})

    return edit


def in_chain(change):
    """Edit the chain of the first attestation."""

    def edit(content):
        first, *rest = content.attestations
        return dataclasses.replace(
            content, attestations=(dataclasses.replace(first, chain=change(first.chain)), *rest)
        )

    return edit


def exchange_events(content):
    first, second, *rest = content.attestations
    swapped = (dataclasses.replace(first, event=second.event), dataclasses.replace(second, event=first.event))
    return dataclasses.replace(content, attestations=(*swapped, *rest))


def other_index(chain):
    return (dataclasses.replace(chain[0], index=chain[0].index + 1), *chain[1:])


def records_at_attestation(content):
    first, *rest = content.attestations
    return dataclasses.replace(
        content, attestations=(dataclasses.replace(first, records=content.records[:1]), *rest)
    )


def signer_of_verdict(content):
    return dataclasses.replace(content, verdict=dataclasses.replace(content.verdict, signer=B))


EDITS = {
    "verdict said to be by another party": (signer_of_verdict, 5),
    "record of a party removed": (drop("records", 0), 5),
    "record of a hub removed": (drop("records", 4), 10),
    "record twice": (double("records", 1), 4),
    "records swapped": (swap("records"), 4),
    "no records": (lambda c: dataclasses.replace(c, records=()), 4),
    "consent removed": (drop("consents", 1), 8),
    "last consent removed": (drop("consents", 2), 8),
    "consent twice": (double("consents", 1), 8),
    "consents swapped": (swap("consents"), 8),
    "attestation of the coordinator removed": (drop("attestations", 0), 9),
    "last attestation removed": (drop("attestations", 2), 9),
    "attestation twice": (double("attestations", 1), 9),
    "attestations swapped": (swap("attestations"), 9),
    "events exchanged": (exchange_events, 9),
    "records at an attestation": (records_at_attestation, 9),
    "log of the party skipped": (in_chain(lambda chain: chain[1:]), 10),
    "log of the hub skipped": (in_chain(lambda chain: (chain[0], chain[2])), 10),
    "log of the top skipped": (in_chain(lambda chain: chain[:2]), 10),
    "chain goes on after the top": (in_chain(lambda chain: (*chain, chain[2])), 10),
    "chain turned around": (in_chain(lambda chain: chain[::-1]), 10),
    "leaf at another index": (in_chain(other_index), 10),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_bundle_is_found_at_its_step(good, case, edit):
    change, step = EDITS[edit]
    assert refusal(changed(good, change), case.top_key).metadata["step"] == str(step)


def test_an_unneeded_record_is_found(good, case):
    mesh = case.mesh
    extra = NodeRecord("zoo.beijing.cn", "child", b"k" * 32, "beijing.cn", NOW)
    signed = mesh.sign("cn", NODE_RECORD, encode_record(extra))
    bundle = changed(good, lambda c: dataclasses.replace(c, records=(*c.records, signed)))
    assert refusal(bundle, case.top_key).metadata["stepName"] == "nothing else in it"


def test_the_record_of_another_top_is_found(good, case):
    record = case.mesh.records[C]
    signed = dataclasses.replace(record, signer="de")
    edit = lambda c: dataclasses.replace(c, records=tuple(signed if r == record else r for r in c.records))
    assert "name 2 tops" in refusal(changed(good, edit), case.top_key).message


# -- what is said in it: signed by the right keys, but not the truth


@pytest.fixture
def mesh():
    return Mesh.of(A, B, C)


def ended(mesh, end, consents=(A, B, C), attested=(A, B, C)):
    return Papers(
        mesh,
        end,
        [consent(mesh, n, end.signer, (A, B, C)) for n in consents],
        [mesh.attest(n, end) for n in attested],
    )


def three(mesh, outcomes=(Outcome.SUCCEEDED,) * 3, **changes):
    return [
        statement(mesh, n, o, **({"coordinator": A} | changes))
        for n, o in zip((A, B, C), outcomes, strict=True)
    ]


S, F, X, R = Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED, Outcome.REJECTED


@pytest.mark.parametrize(("outcome", "stated"), [
    (F, (F, F, F)), (F, (F, S, F)), (X, (X, X, X)), (X, (X, F, S)), (R, (R, R, R)),
])  # fmt: skip
def test_other_ends_are_proven_as_well(mesh, outcome, stated):
    case = ended(mesh, verdict(mesh, three(mesh, stated), outcome))
    found = verify(case.bundle(), mesh.key("cn"))
    assert (found.outcome, found.failure) == (outcome, "DEADLINE")
    assert tuple(p.stated for p in found.parties) == stated


def test_a_failed_job_names_who_is_missing(mesh):
    end = verdict(mesh, three(mesh, (F, F, F))[:2], F, missing=[C])
    found = verify(ended(mesh, end, consents=[A, B, C], attested=[A]).bundle(), mesh.key("cn"))
    assert [(p.node, p.stated, p.consented, len(p.logs)) for p in found.parties] == [
        (A, F, True, 3), (B, F, True, 0), (C, None, True, 0),
    ]  # fmt: skip


def test_a_job_that_ended_before_an_agreement_is_proven(mesh):
    end = verdict(mesh, three(mesh, (R, R, R), agreement_sha256=b""), R, agreement_sha256=b"")
    found = verify(ended(mesh, end, consents=()).bundle(), mesh.key("cn"))
    assert (found.outcome, found.agreement_sha256, found.parties[0].consented) == (R, b"", False)


def test_a_party_that_never_saw_the_agreement_need_not_name_it(mesh):
    stated = [*three(mesh, (F, F, F))[:2], statement(mesh, C, F, coordinator=A, agreement_sha256=b"")]
    found = verify(ended(mesh, verdict(mesh, stated, F), consents=[A]).bundle(), mesh.key("cn"))
    assert found.outcome is F


LIES = {
    "success, one party failed": (lambda m: verdict(m, three(m, (S, S, F))), 7),
    "failure, all succeeded": (lambda m: verdict(m, three(m), F), 7),
    "rejected, nobody says so": (lambda m: verdict(m, three(m, (F, X, F)), R), 7),
    "success, one party missing": (lambda m: verdict(m, three(m)[:2], missing=[C]), 7),
    "success without an agreement": (
        lambda m: verdict(m, three(m, agreement_sha256=b""), agreement_sha256=b""), 7,
    ),
    "success of one party alone": (lambda m: verdict(m, three(m)[:1]), 7),
    "epochs differ": (lambda m: verdict(m, [*three(m)[:2], statement(m, C, coordinator=A, epoch=2)]), 7),
    "failure named for a success": (lambda m: verdict(m, three(m), failure={"reason": "DEADLINE"}), 7),
    "statement about another job": (lambda m: verdict(m, [*three(m)[:2], statement(m, C, coordinator=A, job_id="f" * 32)]), 6),
    "statement about another agreement": (
        lambda m: verdict(m, [*three(m)[:2], statement(m, C, coordinator=A, agreement_sha256=b"x" * 32)]), 6,
    ),
    "statement of no agreement in a success": (
        lambda m: verdict(m, [*three(m)[:2], statement(m, C, coordinator=A, agreement_sha256=b"")]), 6,
    ),
    "statement for another party": (lambda m: verdict(m, [*three(m)[:2], forged_statement(m)]), 6),
    "one party for another that is left out": (
        lambda m: verdict(m, [statement(m, A, coordinator=A), m.sign(C, "tdn/v1/statement", statement(m, B, coordinator=A).statement)]), 6,
    ),
    "statement forged": (lambda m: verdict(m, [*three(m)[:2], Signed(forged_statement(m).statement, C, b"s" * 64)]), 6),
    "statements not sorted": (lambda m: verdict(m, three(m)[::-1], by=A), 6),
    "statement twice": (lambda m: verdict(m, [*three(m), three(m)[2]]), 6),
    "party both there and missing": (lambda m: verdict(m, three(m, (F, F, F)), F, missing=[C]), 6),
    "coordinator is no party": (lambda m: verdict(m, three(m), by="shandong.cn"), 6),
    "coordinator made no statement": (lambda m: verdict(m, three(m, (F, F, F))[1:], F, missing=[A], by=A), 6),
}  # fmt: skip


def forged_statement(mesh):
    """B speaks for C."""
    return dataclasses.replace(
        mesh.sign(B, "tdn/v1/statement", statement(mesh, C, coordinator=A).statement), signer=B
    )


@pytest.mark.parametrize("lie", LIES)
def test_a_verdict_that_does_not_follow_is_found(mesh, lie):
    make, step = LIES[lie]
    error = refusal(ended(mesh, make(mesh)).bundle(), mesh.key("cn"))
    assert error.metadata["step"] == str(step), error.message


@pytest.mark.parametrize(
    "changes",
    [{"job_id": "f" * 32}, {"agreement_sha256": b"x" * 32}, {"coordinator": B}, {"parties": (A, B)}],
    ids=["job", "agreement", "coordinator", "parties"],
)
def test_a_consent_to_something_else_is_found(mesh, changes):
    case = ended(mesh, verdict(mesh, three(mesh)))
    case.consents[1] = consent(mesh, B, **({"coordinator": A, "parties": (A, B, C)} | changes))
    assert refusal(case.bundle(), mesh.key("cn")).metadata["step"] == "8"


def test_a_consent_of_somebody_else_is_found(mesh):
    case = ended(mesh, verdict(mesh, three(mesh)))
    case.consents.append(consent(mesh, "shandong.cn", A, (A, B, C)))
    assert refusal(case.bundle(), mesh.key("cn")).metadata["step"] == "8"


def test_a_consent_signed_by_another_party_is_found(mesh):
    case = ended(mesh, verdict(mesh, three(mesh)))
    case.consents[1] = dataclasses.replace(consent(mesh, A, A, (A, B, C)), signer=B)
    error = refusal(case.bundle(), mesh.key("cn"))
    assert (error.reason, error.metadata["step"]) == (Reason.SIGNATURE_INVALID, "8")


@pytest.mark.parametrize(
    "changes", [{"kind": "job.started"}, {"subject": "f" * 32}, {"statement_sha256": b"x" * 32}, {"statement_sha256": b""}],
    ids=["kind", "job", "verdict", "no verdict"],
)  # fmt: skip
def test_an_event_about_something_else_is_found(mesh, changes):
    end = verdict(mesh, three(mesh))
    case = Papers(
        mesh, end, [consent(mesh, n, A, (A, B, C)) for n in (A, B, C)],
        [mesh.attest(A, end), mesh.attest(B, end, **changes), mesh.attest(C, end)],
    )  # fmt: skip
    assert refusal(case.bundle(), mesh.key("cn")).metadata["step"] == "9"


OUT_OF_PLACE = {
    "consents not sorted": (lambda c: dataclasses.replace(c, consents=c.consents[::-1]), 8),
    "consent twice": (double("consents", 0), 8),
    "event twice": (double("attestations", 0), 9),
    "no event of the coordinator": (drop("attestations", 0), 9),
}


@pytest.mark.parametrize("edit", OUT_OF_PLACE)
def test_a_failed_job_may_lack_papers_but_not_order(mesh, edit):
    change, step = OUT_OF_PLACE[edit]
    end = verdict(mesh, three(mesh, (F, F, F)), F)
    bundle = ended(mesh, end, consents=[A, C], attested=[A, B]).bundle()
    assert verify(bundle, mesh.key("cn")).outcome is F
    assert refusal(changed(bundle, change), mesh.key("cn")).metadata["step"] == str(step)


def test_a_consent_of_somebody_outside_a_failed_job_is_found(mesh):
    end = verdict(mesh, three(mesh, (F, F, F)), F)
    bundle = ended(mesh, end, consents=[A, "shandong.cn"]).bundle()
    assert "out of place" in refusal(bundle, mesh.key("cn")).message


def test_an_event_relabelled_before_it_was_logged_is_found(mesh):
    """The log itself is sound: it holds the event under the name of another signer."""
    end = verdict(mesh, three(mesh))
    case = ended(mesh, end)
    event = dataclasses.replace(case.attestations[0].event, signer="aaa.shandong.cn")
    chain = [mesh.nodes[A].add(event)]
    for node in ("shandong.cn", "cn"):
        chain.append(mesh.nodes[node].add(chain[-1].head))
    case.attestations[0] = dataclasses.replace(case.attestations[0], event=event, chain=tuple(chain))
    error = refusal(case.bundle(), mesh.key("cn"))
    assert (error.metadata["step"], "signed by another node" in error.message) == ("9", True)


def test_a_head_in_the_name_of_another_log_is_found(mesh):
    """The hub signs a head for the log of one of its children."""
    end = verdict(mesh, three(mesh))
    case = ended(mesh, end)
    first, second, _ = case.attestations[0].chain
    head = dataclasses.replace(wire.decode_tree_head(second.head.statement), node=B)
    named = dataclasses.replace(second, head=mesh.sign("shandong.cn", TREE_HEAD, wire.encode_tree_head(head)))
    third = mesh.nodes["cn"].add(named.head)
    case.attestations[0] = dataclasses.replace(case.attestations[0], chain=(first, named, third))
    assert "the log of shandong.cn is expected" in refusal(case.bundle(), mesh.key("cn")).message


def test_a_bundle_with_the_verdict_of_another_run_is_found(mesh):
    """Statements, consents and events are true, but of two runs of the same job."""
    first, second = verdict(mesh, three(mesh)), verdict(mesh, three(mesh, epoch=2))
    case = ended(mesh, first)
    case.verdict = second
    assert refusal(case.bundle(), mesh.key("cn")).metadata["step"] == "9"


def test_an_event_younger_than_its_log_is_found(mesh):
    end = verdict(mesh, three(mesh))
    case = ended(mesh, end, attested=[A, B])
    case.attestations.append(mesh.attest(C, end, at_ms=NOW + 10**6))
    error = refusal(case.bundle(), mesh.key("cn"))
    assert (error.requirement, error.metadata["step"]) == ("TDN-F-EVD-05", "10")


def test_a_head_that_the_hub_never_took_is_found(mesh):
    """The place that the hub proves is that of another leaf."""
    end = verdict(mesh, three(mesh))
    case = ended(mesh, end)
    first, _, third = case.attestations[0].chain
    foreign = mesh.nodes["shandong.cn"].add(case.attestations[1].event)
    case.attestations[0] = dataclasses.replace(case.attestations[0], chain=(first, foreign, third))
    error = refusal(case.bundle(), mesh.key("cn"))
    assert "not in the log of shandong.cn" in error.message


def test_a_split_view_inside_a_bundle_is_found(mesh):
    """The hub shows two logs of the same size, each of them sound in itself and anchored above."""
    end = verdict(mesh, three(mesh))
    hub = mesh.nodes["shandong.cn"]
    first = mesh.attest(A, end)
    hub.tree.truncate(0)
    case = Papers(
        mesh,
        end,
        [consent(mesh, n, A, (A, B, C)) for n in (A, B, C)],
        [first, mesh.attest(B, end), mesh.attest(C, end)],
    )
    error = refusal(case.bundle(), mesh.key("cn"))
    assert (error.reason, error.metadata["step"]) == (Reason.EQUIVOCATION, "11")


def test_a_head_signed_by_another_node_is_found(mesh):
    end = verdict(mesh, three(mesh))
    case = ended(mesh, end)
    chain = case.attestations[0].chain
    head = dataclasses.replace(mesh.sign(B, TREE_HEAD, chain[0].head.statement), signer=A)
    case.attestations[0] = dataclasses.replace(
        case.attestations[0], chain=(dataclasses.replace(chain[0], head=head), *chain[1:])
    )
    error = refusal(case.bundle(), mesh.key("cn"))
    assert (error.reason, error.metadata["step"]) == (Reason.SIGNATURE_INVALID, "10")


def test_a_statement_signed_for_another_purpose_is_found(mesh):
    """The signature of an event does not pass for that of a verdict."""
    end = verdict(mesh, three(mesh))
    case = ended(mesh, end)
    case.verdict = mesh.sign(A, EVENT, end.statement)
    error = refusal(case.bundle(), mesh.key("cn"))
    assert (error.reason, error.metadata["step"]) == (Reason.SIGNATURE_INVALID, "5")


# -- what is not in it


def test_nobody_can_try_out_the_items_against_a_bundle(mesh):
    """A dictionary of phone-like items against every 32-byte window of the bundle's content."""
    items = [b"138%08d" % n for n in range(10_000)]
    result = hashlib.sha256(b"\n".join(items[4711:4714])).digest()
    end = verdict(mesh, three(mesh, result_commitment=commitment(b"only the owner knows", result)))
    bundle = ended(mesh, end).bundle()
    plain = wire.unpack_bundle(bundle)
    windows = {plain[n : n + 32] for n in range(len(plain))}
    guesses = {hashlib.sha256(item).digest() for item in items} | {result, hashlib.sha256(result).digest()}
    assert not windows & guesses
    assert not any(item in plain for item in items)
    assert commitment(b"only the owner knows", result) in windows, "the search would have found it"


# -- messages


def test_messages_survive_the_wire(case):
    attestation = case.attestations[0]
    assert wire.decode_attestation(wire.encode_attestation(attestation)) == attestation
    for link in attestation.chain:
        assert wire.inclusion_from_pb(wire.inclusion_to_pb(link)) == link
        head = wire.decode_tree_head(link.head.statement)
        assert wire.encode_tree_head(head) == link.head.statement
    message = wire.anchored_to_pb(attestation.chain, attestation.records)
    assert wire.anchored_from_pb(message) == (attestation.chain, attestation.records)
    content = Content(
        case.verdict, tuple(case.consents), (Attestation(attestation.event, attestation.chain),), ()
    )
    assert wire.decode_content(wire.encode_content(content)) == content


@pytest.mark.parametrize("broken", [
    lambda: wire.decode_tree_head(wire.encode_tree_head(TreeHead(A, 1, b"short", 1))),
    lambda: wire.decode_tree_head(wire.encode_tree_head(TreeHead("No Node", 1, b"r" * 32, 1))),
    lambda: wire.decode_tree_head(wire.encode_tree_head(TreeHead(A, 1 << 63, b"r" * 32, 1))),
    lambda: wire.decode_tree_head(b"\xff\xff"),
    lambda: wire.decode_event(bytes(70_000)),
    lambda: wire.inclusion_from_pb(evidence_pb2.Inclusion(path=[b"r" * 32] * 65, head=head_pb())),
    lambda: wire.inclusion_from_pb(evidence_pb2.Inclusion(path=[b"r" * 31], head=head_pb())),
    lambda: wire.anchored_from_pb(evidence_pb2.AnchorResponse()),
    lambda: wire.decode_attestation(b""),
    lambda: wire.decode_statement(b""),
    lambda: wire.decode_verdict(b""),
    lambda: wire.decode_verdict(job_pb2.Verdict(job_id=JOB, outcome=2).SerializeToString()),
    lambda: wire.decode_verdict(crowded().SerializeToString()),
    lambda: wire.decode_consent(b"\x0a\x20" + b"0" * 32),
], ids=range(14))  # fmt: skip
def test_malformed_messages_are_refused(broken):
    with pytest.raises(TdnError) as error:
        broken()
    assert error.value.reason is Reason.INVALID_REQUEST


def head_pb():
    return signed_to_pb(Signed(b"statement", A, b"s" * 64))


def crowded():
    """A verdict with more parties than a job can have."""
    statements = [signed_to_pb(Signed(b"statement", A, b"s" * 64))] * (wire.MAX_PARTIES + 1)
    return job_pb2.Verdict(job_id=JOB, outcome=2, statements=statements)


def forged(mesh, stated, missing):
    """C, who coordinates nothing, claims that the job has failed."""
    end = verdict(mesh, stated, F, missing=missing, by=C)
    return Papers(mesh, end, [], [mesh.attest(C, end)]).bundle()


def test_a_verdict_of_another_party_cannot_use_the_statements_of_the_others(mesh):
    stated = [*three(mesh)[:2], statement(mesh, C, F, coordinator=C)]
    assert refusal(forged(mesh, stated, ()), mesh.key("cn")).metadata["step"] == "6"


def test_a_verdict_without_papers_of_others_is_shown_as_the_claim_of_one(mesh):
    alone = forged(mesh, [statement(mesh, C, F, coordinator=C)], (A, B))
    assert verify(alone, mesh.key("cn")).confirmed_by == ()
    assert describe(verify(alone, mesh.key("cn")))["confirmed_by"] == []
    honest = papers((A, B, C), mesh).bundle()
    assert verify(honest, mesh.key("cn")).confirmed_by == (B, C)


def test_a_party_cannot_be_left_out(mesh):
    end = verdict(mesh, [three(mesh)[0], three(mesh)[2]])
    without_b = Papers(
        mesh, end, [consent(mesh, n, A, (A, B, C)) for n in (A, C)], [mesh.attest(n, end) for n in (A, C)]
    )
    assert refusal(without_b.bundle(), mesh.key("cn")).metadata["step"] == "8"


def test_the_top_cannot_be_given_another_name(good, case):
    content = wire.decode_content(wire.unpack_bundle(good))
    renamed = tuple(dataclasses.replace(r, signer="evil.example") for r in content.records)
    bundle = wire.encode_bundle(dataclasses.replace(content, records=renamed))
    assert refusal(bundle, case.top_key).reason is Reason.EVIDENCE_BROKEN
