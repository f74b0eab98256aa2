"""Negotiation: proposals of all parties to one choice, the same whoever computes it. Pure.

The rule, which every party can recompute from the same proposals:

1. An algorithm stays when every party proposes it and, for it, all parties share at least one suite
   and one format.
2. If the flow lists algorithms or suites, nothing else stays, and its order decides: all parties
   approved the flow.
3. Otherwise the least sum of ranks over all parties wins (rank 0 is a party's best); a tie goes to
   the id that sorts first.
4. The suite is chosen in the same way among those shared for the chosen algorithm, then the format.

A value that only some parties know drops out at step 1; that is how unknown values in a proposal
are ignored. A choice may hold nothing but what everybody proposed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tdn_interop.errors import NegotiationFailed, PeerProtocolError, Reason, TdnError, guard

MAX_ALTERNATIVES = 32  # of any list in a proposal
ID_GRAMMAR = re.compile(r"[a-z0-9][a-z0-9./_-]{0,63}\Z")
_DIGEST_DOMAIN = b"tdn/algo/v1/agreement\0"


@dataclass(frozen=True, slots=True)
class AlgorithmProposal:
    """One algorithm id and, best first, the suites and data formats that one party serves for it."""

    algorithm: str
    suites: tuple[str, ...]
    formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one party (a node id) can do, best first."""

    party: str
    algorithms: tuple[AlgorithmProposal, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What all parties will do."""

    algorithm: str
    suite: str
    format: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the flow allows, best first; an empty tuple allows everything."""

    algorithms: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()


ANYTHING = Wanted()


def negotiate(proposals: Mapping[str, Proposal], wanted: Wanted = ANYTHING) -> Choice:
    """Apply the rule above. Errors: UNSUPPORTED_ALGO, UNSUPPORTED_PARAMS, INVALID_REQUEST (a malformed proposal)."""
    for party, proposal in proposals.items():
        guard("TDN-A-NEG-01").check(
            proposal.party == party, Reason.INVALID_REQUEST, f"{party} sent the proposal of another party"
        )
        check_proposal(proposal)
    offers = [{entry.algorithm: entry for entry in proposal.algorithms} for proposal in proposals.values()]
    common = _shared([tuple(offer) for offer in offers], wanted.algorithms)
    guard("TDN-A-NEG-01").check(
        common,
        Reason.UNSUPPORTED_ALGO,
        "the parties share no algorithm that the flow allows",
        NegotiationFailed,
    )
    for algorithm in common:
        entries = [offer[algorithm] for offer in offers]
        suites = _shared([entry.suites for entry in entries], wanted.suites)
        formats = _shared([entry.formats for entry in entries], ())
        if suites and formats:
            return Choice(algorithm, suites[0], formats[0])
    return guard("TDN-A-NEG-01").refuse(
        Reason.UNSUPPORTED_PARAMS, f"no common suite or format for {', '.join(common)}", NegotiationFailed
    )


def check_choice(choice: Choice, proposals: Mapping[str, Proposal], wanted: Wanted = ANYTHING) -> None:
    """Accept a choice that somebody else computed only if the rule gives it. Errors: HANDSHAKE_REFUSED, as negotiate."""
    for proposal in proposals.values():
        proposed = any(
            choice.algorithm == entry.algorithm
            and choice.suite in entry.suites
            and choice.format in entry.formats
            for entry in proposal.algorithms
        )
        guard("TDN-A-NEG-01").check(
            proposed,
            Reason.HANDSHAKE_REFUSED,
            f"the choice holds a value that {proposal.party} never proposed",
        )
    guard("TDN-A-NEG-02").check(
        choice == negotiate(proposals, wanted),
        Reason.HANDSHAKE_REFUSED,
        "the choice is not what the rule gives for these proposals",
    )


def check_proposal(proposal: Proposal, kind: type[TdnError] = PeerProtocolError) -> None:
    """Accept a proposal with 1 to 32 distinct, well-formed values in every list. Errors: INVALID_REQUEST."""
    _check_list("algorithms", [entry.algorithm for entry in proposal.algorithms], kind)
    for entry in proposal.algorithms:
        _check_list("suites", entry.suites, kind)
        _check_list("formats", entry.formats, kind)


def agreement_digest(serialized: bytes) -> bytes:
    """SHA-256 of a serialized agreement with domain separation; every task message carries it."""
    return hashlib.sha256(_DIGEST_DOMAIN + serialized).digest()


def _check_list(layer: str, values: Sequence[str], kind: type[TdnError]) -> None:
    invalid = partial(guard("TDN-A-NEG-01").check, reason=Reason.INVALID_REQUEST, kind=kind)
    size = len(values)
    invalid(1 <= size <= MAX_ALTERNATIVES, message=f"{layer}: {size} values, 1 to {MAX_ALTERNATIVES} allowed")
    invalid(len(set(values)) == size, message=f"{layer}: a value is repeated")
    invalid(all(ID_GRAMMAR.match(value) for value in values), message=f"{layer}: a value is no id")


def _shared(lists: Sequence[tuple[str, ...]], preferred: tuple[str, ...]) -> list[str]:
    """Values in every list (and in `preferred`, unless empty), best first by the rule."""
    common = set.intersection(*map(set, lists)) if lists else set()
    if preferred:
        return [value for value in preferred if value in common]
    return sorted(common, key=lambda value: (sum(ranked.index(value) for ranked in lists), value))
