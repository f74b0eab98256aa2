"""The algorithms this product speaks: roles, parameters, who learns what, and how to make a machine.

Leakage is data, so that flow review, console, evidence and conformance all show the same statement.
Texts hold English and Chinese.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tdn_interop.algo.handshake import AlgorithmProposal, Proposal
from tdn_interop.algo.psi.ecdh import EcdhPsi
from tdn_interop.algo.psi.external import HOLDER_A, HOLDER_B, RECEIVER, HolderA, HolderB, Receiver
from tdn_interop.algo.suites import SUITES
from tdn_interop.algo.task import Task, TaskMachine
from tdn_interop.errors import ConfigError, NegotiationFailed, Reason, guard

Text = tuple[str, str]
Factory = Callable[[str, Task, Sequence[bytes], frozenset[str]], TaskMachine]

KEY_BYTES = "key-bytes/1"  # items are the canonical bytes of a key; the application tier makes them


@dataclass(frozen=True, slots=True)
class SecurityModel:
    """Against whom an algorithm protects; `id` stands in every agreement."""

    id: str
    text: Text


SEMI_HONEST = SecurityModel(
    "semi-honest",
    (
        "Semi-honest: every party follows the protocol and does not pool what it sees with another.",
        "半诚实模型：各方遵守协议，且不与他方合谋汇总所见信息。",
    ),
)


@dataclass(frozen=True, slots=True)
class AlgoSpec:
    """One algorithm. `holders` bring items; `receivers` lists the sets of roles that may get the result."""

    id: str
    roles: tuple[str, ...]
    holders: tuple[str, ...]
    receivers: tuple[frozenset[str], ...]
    suites: tuple[str, ...]
    formats: tuple[str, ...]
    security_model: SecurityModel
    leakage: Mapping[str, Text]  # role -> what it learns beyond its own input
    limits: tuple[Text, ...]
    factory: Factory

    def machine(
        self, role: str, task: Task, items: Sequence[bytes], receivers: frozenset[str]
    ) -> TaskMachine:
        """The machine of one role. Errors: UNSUPPORTED_PARAMS, INVALID_ITEM, TOO_LARGE."""
        agreed = guard("TDN-A-NEG-03")
        agreed.check(
            role in self.roles, Reason.UNSUPPORTED_PARAMS, f"{self.id} has no role {role}", ConfigError
        )
        agreed.check(
            receivers in self.receivers,
            Reason.UNSUPPORTED_PARAMS,
            f"{self.id} cannot give its result to {', '.join(sorted(receivers)) or 'nobody'}",
            ConfigError,
        )
        agreed.check(
            role in self.holders or not items,
            Reason.UNSUPPORTED_PARAMS,
            f"{role} of {self.id} brings no items",
            ConfigError,
        )
        return self.factory(role, task, items, receivers)


def _external(role: str, task: Task, items: Sequence[bytes], _receivers: frozenset[str]) -> TaskMachine:
    match role:
        case "holder_a":
            return HolderA(task, items)
        case "holder_b":
            return HolderB(task, items)
        case _:
            return Receiver(task)


_HOLDER_LEARNS: Text = (
    "The size of the other set; if it receives the result, which of its own items are in the other set.",
    "对方集合的大小；若为结果接收方，还会得知自身哪些条目在对方集合中。",
)

PSI_ECDH = AlgoSpec(
    id="psi.ecdh/1",
    roles=("a", "b"),
    holders=("a", "b"),
    receivers=(frozenset("a"), frozenset("b"), frozenset("ab")),
    suites=tuple(SUITES),
    formats=(KEY_BYTES,),
    security_model=SEMI_HONEST,
    leakage=MappingProxyType({"a": _HOLDER_LEARNS, "b": _HOLDER_LEARNS}),
    limits=(
        (
            "A receiver can put guesses into its set; the agreement limits how often it may ask.",
            "接收方可在集合中放入猜测值；查询次数由合约限制。",
        ),
    ),
    factory=EcdhPsi,
)

PSI_ECDH_EXTERNAL = AlgoSpec(
    id="psi.ecdh-external/1",
    roles=(HOLDER_A, HOLDER_B, RECEIVER),
    holders=(HOLDER_A, HOLDER_B),
    receivers=(frozenset({RECEIVER}),),
    suites=tuple(SUITES),
    formats=(KEY_BYTES,),
    security_model=SEMI_HONEST,
    leakage=MappingProxyType(
        {
            HOLDER_A: (
                "The size of the other set and the size class of its longest item.",
                "对方集合的大小及其最长条目的长度等级。",
            ),
            HOLDER_B: ("The size of the other set.", "对方集合的大小。"),
            RECEIVER: (
                "The items in both sets, the sizes of both sets and the size class of holder_b's longest item.",
                "两个集合的交集条目、两个集合的大小以及 holder_b 最长条目的长度等级。",
            ),
        }
    ),
    limits=(
        (
            "If holder_a and the receiver pool what they see, they can open every item of holder_b.",
            "若 holder_a 与接收方合谋，则可打开 holder_b 的全部条目。",
        ),
        (
            "holder_b and the receiver together learn no more than the result and the sizes.",
            "holder_b 与接收方合谋，所得信息不超过结果和集合大小。",
        ),
    ),
    factory=_external,
)

CATALOGUE: Mapping[str, AlgoSpec] = MappingProxyType(
    {spec.id: spec for spec in (PSI_ECDH, PSI_ECDH_EXTERNAL)}
)


def algorithm(algorithm_id: str) -> AlgoSpec:
    """The algorithm with this id. Errors: UNSUPPORTED_ALGO when this product does not have it."""
    spec = CATALOGUE.get(algorithm_id)
    if spec is None:
        guard("TDN-A-NEG-06").refuse(
            Reason.UNSUPPORTED_ALGO, f"no algorithm {algorithm_id[:64]!r} here", NegotiationFailed
        )
    return spec


def offer(party: str) -> Proposal:
    """What this product proposes for `party`: everything it has, best first."""
    entries = (AlgorithmProposal(spec.id, spec.suites, spec.formats) for spec in CATALOGUE.values())
    return Proposal(party, tuple(entries))
