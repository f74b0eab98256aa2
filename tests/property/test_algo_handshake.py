"""Negotiation: one choice, whoever computes it and in whatever order the proposals came."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdn_interop.algo.handshake import AlgorithmProposal, Proposal, Wanted, check_choice, negotiate
from tdn_interop.errors import NegotiationFailed, TdnError


def ranked(values: str, least: int = 1):
    return st.lists(st.sampled_from(values.split()), min_size=least, unique=True).map(tuple)


entries = st.builds(AlgorithmProposal, st.just(""), ranked("s1 s2 s3 s4"), ranked("f1 f2"))


@st.composite
def proposals(draw):
    def one(party):
        offered = draw(ranked("x/1 x/2 y/1"))
        return Proposal(party, tuple(dataclasses.replace(draw(entries), algorithm=a) for a in offered))

    return {party: one(party) for party in draw(ranked("a b c d", least=2))}


wanteds = st.builds(Wanted, ranked("x/1 x/2 y/1 z/1", least=0), ranked("s1 s2 s9", least=0))


def outcome(given_proposals, wanted):
    try:
        return negotiate(given_proposals, wanted)
    except NegotiationFailed as failure:
        return failure.reason


@given(proposals(), wanteds, st.randoms(use_true_random=False))
def test_the_choice_depends_on_no_order_of_parties(given_proposals, wanted, dice):
    turned = list(given_proposals.items())
    dice.shuffle(turned)
    assert outcome(dict(turned), wanted) == outcome(given_proposals, wanted)


@given(proposals(), wanteds)
def test_names_of_parties_do_not_matter(given_proposals, wanted):
    swapped = {f"n{p}": dataclasses.replace(q, party=f"n{p}") for p, q in reversed(given_proposals.items())}
    assert outcome(swapped, wanted) == outcome(given_proposals, wanted)


@given(proposals(), wanteds)
def test_a_choice_is_proposed_by_all_allowed_by_the_flow_and_accepted(given_proposals, wanted):
    try:
        choice = negotiate(given_proposals, wanted)
    except NegotiationFailed:
        assume(False)
    check_choice(choice, given_proposals, wanted)
    assert not wanted.algorithms or choice.algorithm in wanted.algorithms
    assert not wanted.suites or choice.suite in wanted.suites
    for proposal in given_proposals.values():
        (entry,) = [e for e in proposal.algorithms if e.algorithm == choice.algorithm]
        assert choice.suite in entry.suites
        assert choice.format in entry.formats


@given(proposals(), wanteds, st.sampled_from(["algorithm", "suite", "format"]))
def test_any_other_choice_is_refused(given_proposals, wanted, field):
    try:
        choice = negotiate(given_proposals, wanted)
    except NegotiationFailed:
        assume(False)
    for other in ["x/1", "x/2", "y/1", "s1", "s2", "s3", "s4", "f1", "f2", "new"]:
        changed = dataclasses.replace(choice, **{field: other})
        if changed != choice:
            with pytest.raises(TdnError):
                check_choice(changed, given_proposals, wanted)


@given(proposals(), wanteds)
def test_what_nobody_else_knows_changes_nothing(given_proposals, wanted):
    party, proposal = next(iter(given_proposals.items()))
    more = (*proposal.algorithms, AlgorithmProposal("unheard-of/9", ("s1",), ("f1",)))
    richer = {**given_proposals, party: dataclasses.replace(proposal, algorithms=more)}
    assert outcome(richer, wanted) == outcome(given_proposals, wanted)
