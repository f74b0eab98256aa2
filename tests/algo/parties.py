"""Run machines against each other through the wire, in a random but legal interleaving."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tdn_interop.algo.catalogue import PSI_ECDH, PSI_ECDH_EXTERNAL
from tdn_interop.algo.kernel import best_kernel
from tdn_interop.algo.machine import Effect, Event
from tdn_interop.algo.message import TaskMessage
from tdn_interop.algo.psi.external import HOLDER_A, HOLDER_B, RECEIVER
from tdn_interop.algo.suites import X25519_SHA256_ELL2
from tdn_interop.algo.task import Compute, Output, Received, Report, Send, Started, Task, TaskMachine, perform
from tdn_interop.algo.wire import decode_message, encode_message

AGREEMENT = hashlib.sha256(b"agreement of the tests").digest()
EPOCH = 3
KERNEL = best_kernel(X25519_SHA256_ELL2)[0]

Tamper = Callable[[str, str, TaskMessage], Iterable[TaskMessage]]


@dataclass
class Run:
    """What happened: messages in order of sending, events in order of feeding, results by role."""

    machines: Mapping[str, TaskMachine]
    sent: list[tuple[str, str, TaskMessage]] = field(default_factory=list)
    fed: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, tuple] = field(default_factory=dict)
    reports: dict[str, dict[str, int]] = field(default_factory=dict)

    def between(self, sender: str, to: str) -> list[TaskMessage]:
        return [message for s, t, message in self.sent if (s, t) == (sender, to)]


def entropy(seed: object) -> Callable[[int], bytes]:
    return random.Random(repr(seed)).randbytes


def task(seed: object = 0, **changes) -> Task:
    fields = {"agreement": AGREEMENT, "epoch": EPOCH, "kernel": KERNEL, "entropy": entropy(seed)}
    return Task(**{**fields, **changes})


def two_party(
    a: Sequence[bytes], b: Sequence[bytes], receivers: str = "ab", seed: object = 0, **changes
) -> dict[str, TaskMachine]:
    sets = {"a": a, "b": b}
    return {
        role: PSI_ECDH.machine(role, task((seed, role), **changes), items, frozenset(receivers))
        for role, items in sets.items()
    }


def external(a: Sequence[bytes], b: Sequence[bytes], seed: object = 0, **changes) -> dict[str, TaskMachine]:
    sets = {HOLDER_A: a, HOLDER_B: b, RECEIVER: ()}
    return {
        role: PSI_ECDH_EXTERNAL.machine(role, task((seed, role), **changes), items, frozenset({RECEIVER}))
        for role, items in sets.items()
    }


def simulate(
    machines: Mapping[str, TaskMachine],
    seed: int = 0,
    tamper: Tamper = lambda _sender, _to, message: (message,),
) -> Run:
    """Until nothing is left to do; channels keep order, everything else is shuffled by `seed`."""
    run, dice = Run(machines), random.Random(seed)
    channels: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)
    waiting: list[tuple[str, Compute]] = []

    def feed(role: str, event: Event) -> None:
        run.fed[role].append(event)
        for effect in machines[role].step(event):
            act(role, effect)

    def act(role: str, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                run.sent.append((role, to, message))
                channels[role, to] += [encode_message(m) for m in tamper(role, to, message)]
            case Compute():
                waiting.append((role, effect))
            case Report(facts):
                run.reports[role] = facts
            case Output(value):
                run.outputs[role] = value

    for role in machines:
        feed(role, Started())
    while choices := [key for key, queue in channels.items() if queue] + waiting:
        choice = dice.choice(choices)
        match choice:
            case (role, Compute() as compute):
                waiting[:] = [entry for entry in waiting if entry is not choice]
                feed(role, perform(compute))
            case (sender, to):
                feed(to, Received(sender, decode_message(channels[sender, to].popleft())))
    return run
