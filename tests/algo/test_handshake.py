import hashlib
import json
from pathlib import Path

import pytest

from tdn_interop.algo.catalogue import CATALOGUE, offer
from tdn_interop.algo.handshake import (
    AlgorithmProposal,
    Choice,
    Proposal,
    Wanted,
    agreement_digest,
    check_choice,
    negotiate,
)
from tdn_interop.errors import NegotiationFailed, PeerProtocolError, Reason, TdnError

OWN = json.loads((Path(__file__).parent.parent / "vectors" / "x25519-sha256-ell2.json").read_text())


def proposals(**parties: dict[str, tuple[str, str]]) -> dict[str, Proposal]:
    """`a={"psi/1": ("s1 s2", "f1")}`: algorithms with suites and formats, best first."""
    return {
        party: Proposal(
            party,
            tuple(AlgorithmProposal(a, tuple(s.split()), tuple(f.split())) for a, (s, f) in offered.items()),
        )
        for party, offered in parties.items()
    }


def reason_of(function, *args) -> Reason:
    with pytest.raises(TdnError) as caught:
        function(*args)
    return caught.value.reason


def test_the_least_sum_of_ranks_wins_at_every_layer():
    given = proposals(
        a={"x/1": ("s1 s2 s3", "f1 f2"), "y/1": ("s1", "f1"), "z/1": ("s1", "f1")},
        b={"z/1": ("s1", "f1"), "x/1": ("s3 s2 s1", "f2 f1"), "y/1": ("s1", "f1")},
        c={"y/1": ("s1", "f1"), "x/1": ("s2 s3 s1", "f1 f2"), "z/1": ("s1", "f1")},
    )
    # x: 0 + 1 + 1, y: 1 + 2 + 0, z: 2 + 0 + 2; s1: 0+2+2, s2: 1+1+0, s3: 2+0+1; f1: 0+1+0, f2: 1+0+1
    assert negotiate(given) == Choice("x/1", "s2", "f1")


def test_it_is_the_sum_that_counts_not_the_worst_rank():
    given = proposals(
        a={"p/1": ("s1 s2 s3", "f")}, b={"p/1": ("s1 s2 s3", "f")}, c={"p/1": ("s3 s2 s1", "f")}
    )
    assert negotiate(given).suite == "s1"  # 0 + 0 + 2 beats 1 + 1 + 1


def test_a_tie_goes_to_the_id_that_sorts_first():
    given = proposals(a={"p/1": ("s2 s1", "f")}, b={"p/1": ("s1 s2", "f")})
    assert negotiate(given).suite == "s1"


def test_the_flow_restricts_and_its_order_decides():
    given = proposals(
        a={"x/1": ("s1 s2 s3", "f"), "y/1": ("s1", "f")}, b={"x/1": ("s1 s2 s3", "f"), "y/1": ("s1", "f")}
    )
    assert negotiate(given, Wanted(algorithms=("y/1", "x/1"))).algorithm == "y/1"
    assert negotiate(given, Wanted(("x/1",), ("s3", "s2"))) == Choice("x/1", "s3", "f")
    assert reason_of(negotiate, given, Wanted(("q/1",))) is Reason.UNSUPPORTED_ALGO
    assert reason_of(negotiate, given, Wanted((), ("s9",))) is Reason.UNSUPPORTED_PARAMS


def test_an_algorithm_without_common_suite_gives_way_to_one_with():
    given = proposals(
        a={"best/1": ("s1", "f"), "second/1": ("s1", "f")}, b={"best/1": ("s2", "f"), "second/1": ("s1", "f")}
    )
    assert negotiate(given).algorithm == "second/1"


def test_values_that_one_party_alone_knows_are_ignored():
    plain = proposals(a={"x/1": ("s1", "f1")}, b={"x/1": ("s1", "f1")})
    rich = proposals(
        a={"new/7": ("q", "q"), "x/1": ("s9 s1", "f9 f1")}, b={"x/1": ("s1", "f1"), "other/2": ("s1", "f1")}
    )
    assert negotiate(rich) == negotiate(plain)


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        ({"y/1": ("s1", "f1")}, Reason.UNSUPPORTED_ALGO),
        ({"x/1": ("s2", "f1")}, Reason.UNSUPPORTED_PARAMS),
        ({"x/1": ("s1", "f2")}, Reason.UNSUPPORTED_PARAMS),
    ],
)
def test_nothing_in_common_is_nobodys_fault(b, reason):
    with pytest.raises(NegotiationFailed) as caught:
        negotiate(proposals(a={"x/1": ("s1", "f1")}, b=b))
    assert caught.value.reason is reason


def test_no_party_means_no_choice():
    assert reason_of(negotiate, {}) is Reason.UNSUPPORTED_ALGO


def test_a_malformed_proposal_and_a_borrowed_name_are_refused():
    good = proposals(a={"x/1": ("s1", "f1")})
    assert reason_of(negotiate, {**good, "b": Proposal("b", ())}) is Reason.INVALID_REQUEST
    assert reason_of(negotiate, {**good, "b": good["a"]}) is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    "choice",
    [
        Choice("y/1", "s1", "f1"),
        Choice("x/1", "s2", "f1"),
        Choice("x/1", "s1", "f2"),
        Choice("x/1", "s3", "f1"),
    ],
)
def test_a_choice_with_a_value_that_was_not_proposed_by_all_is_refused(choice):
    given = proposals(a={"x/1": ("s1 s3", "f1")}, b={"x/1": ("s1", "f1"), "y/1": ("s1", "f1")})
    check_choice(negotiate(given), given)
    with pytest.raises(PeerProtocolError) as caught:
        check_choice(choice, given)
    assert caught.value.reason is Reason.HANDSHAKE_REFUSED


def test_a_weaker_choice_among_the_proposed_is_refused():
    given = proposals(a={"x/1": ("strong weak", "f1")}, b={"x/1": ("strong weak", "f1")})
    with pytest.raises(PeerProtocolError) as caught:
        check_choice(Choice("x/1", "weak", "f1"), given)
    assert caught.value.reason is Reason.HANDSHAKE_REFUSED
    check_choice(Choice("x/1", "weak", "f1"), given, Wanted((), ("weak",)))


def test_two_nodes_of_this_product_agree():
    for algorithm in CATALOGUE:
        choice = negotiate({party: offer(party) for party in "abc"}, Wanted((algorithm,)))
        assert choice == Choice(algorithm, "x25519-sha256-ell2", "key-bytes/1")


def test_the_agreement_digest_is_bound_to_its_purpose():
    serialized = bytes.fromhex(OWN["external"]["serialized_agreement"])
    assert agreement_digest(serialized).hex() == OWN["external"]["agreement"]
    assert agreement_digest(serialized) != hashlib.sha256(serialized).digest()
