"""Flow: what a job is to do, by whom, with which inputs, for whom. Written as TOML, agreed on as JSON.

The TOML text is for people; what travels and is hashed is the canonical JSON (RFC 8785) with every
default written out, so that two nodes hash the same bytes. Samples: `docs/samples/`.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, field, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tdn_interop import ids
from tdn_interop.app.data.keys import Normalisation
from tdn_interop.config import Timeouts as Longest
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, Refused, TdnError, guard

MAX_FLOW_BYTES = 64 * 1024
MAX_PARTIES = 16
MAX_TASKS = 64

TWO_PARTY_PSI = "psi.ecdh/1"
EXTERNAL_PSI = "psi.ecdh-external/1"

_graph = guard("TDN-F-DAG-01")
_receivers = guard("TDN-F-CTR-02")


def _node(text: str) -> str:
    try:
        return ids.node_id(text)
    except TdnError as error:
        raise ValueError(error.message) from error


_Node = Annotated[str, AfterValidator(_node)]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_Column = Annotated[str, Field(min_length=1, max_length=256)]
_Seconds = Annotated[int, Field(ge=1, le=30 * 86_400)]
_Problem = tuple[Reason, str]
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, config=_STRICT)
class Input:
    """What one party brings: one of its resources, and the columns that make the key."""

    party: _Node
    resource: str  # `node/name` or `node/name@version`; in TOML also `name`, a resource of the party
    keys: Annotated[tuple[_Column, ...], Field(min_length=1, max_length=8)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Output:
    """Where each receiver writes its result; empty: a file named after the job."""

    path: Annotated[str, Field(max_length=512)] = ""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Task:
    """One step. `suites`: what the author prefers, best first; empty leaves it to the parties."""

    name: _Name
    algorithm: str
    inputs: Annotated[tuple[Input, ...], Field(max_length=MAX_PARTIES)]
    receivers: Annotated[tuple[_Node, ...], Field(min_length=1, max_length=MAX_PARTIES)]
    suites: Annotated[tuple[_Name, ...], Field(max_length=16)] = ()
    normalisation: Normalisation = field(default_factory=Normalisation)
    output: Output = field(default_factory=Output)
    after: Annotated[tuple[_Name, ...], Field(max_length=MAX_TASKS)] = ()


@dataclass(frozen=True, slots=True, config=_STRICT)
class Timeouts:
    """How long each stage of a job may take, in seconds."""

    approval_s: _Seconds = 3_600  # until the last party has decided; humans need time
    step_s: _Seconds = 300  # to admit, prepare or deliver
    run_s: _Seconds = 3_600  # to compute
    stop_s: _Seconds = 60  # to state the outcome when the job is being stopped
    lease_s: _Seconds = 120  # until a party that is not heard of is given up

    @property
    def total_s(self) -> int:
        """An upper limit for a whole job: store, decide, admit, prepare, run, recover, deliver, stop."""
        return 2 * self.approval_s + 3 * self.step_s + self.run_s + self.lease_s + self.stop_s

    @property
    def verdict_s(self) -> int:
        """How long a party that has ended waits for the verdict: others deliver, the coordinator collects."""
        return self.step_s + self.stop_s


@dataclass(frozen=True, slots=True, config=_STRICT)
class FlowSpec:
    """A job to be. From `flow_from_toml` and `flow_from_json` it comes checked."""

    name: _Name
    parties: Annotated[tuple[_Node, ...], Field(min_length=2, max_length=MAX_PARTIES)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, max_length=MAX_TASKS)]
    timeouts: Timeouts = field(default_factory=Timeouts)
    version: Literal[1] = 1


_ADAPTER = TypeAdapter(FlowSpec)


def flow_from_toml(text: str) -> FlowSpec:
    """The flow that a person wrote.

    Errors: FLOW_INVALID with the path of the key, UNSUPPORTED_ALGO, RESULT_NOT_PERMITTED, TOO_LARGE.
    """
    _check_size(len(text), ConfigError)
    try:
        # default=str: a TOML date becomes a string, and fits nowhere.
        document = json.dumps(tomllib.loads(text), default=str)
    except (ValueError, RecursionError) as error:
        _graph.refuse(Reason.FLOW_INVALID, f"the flow is not TOML: {error}", ConfigError)
    flow = _with_full_ids(_parse(document, ConfigError))
    _check(flow, ConfigError)
    return flow


def flow_from_json(data: bytes) -> FlowSpec:
    """The flow that a peer proposes, in the canonical form only. Errors: as `flow_from_toml`."""
    _check_size(len(data), PeerProtocolError)
    flow = _parse(data, PeerProtocolError)
    _check(flow, PeerProtocolError)
    message = "the flow is not in its canonical form"
    _graph.check(canonical(flow) == data, Reason.FLOW_INVALID, message, PeerProtocolError)
    return flow


def canonical(flow: FlowSpec) -> bytes:
    """The one JSON text of a flow: sorted keys, no blanks, UTF-8, integers only (RFC 8785)."""
    return json.dumps(asdict(flow), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def flow_sha256(flow: FlowSpec) -> bytes:
    """The digest that stands for a flow in offers and agreements, 32 bytes."""
    return hashlib.sha256(canonical(flow)).digest()


def check_limits(flow: FlowSpec, longest: Longest) -> None:
    """Nobody is bound for longer than its configuration allows. Errors: POLICY_DENIED, naming the limit."""
    for name, wanted in asdict(flow.timeouts).items():
        limit = getattr(longest, name)
        told = f"timeouts.{name}: {wanted} s, the longest allowed here is {limit:g} s"
        _receivers.check(wanted <= limit, Reason.POLICY_DENIED, told, Refused)


def only_task(flow: FlowSpec) -> Task:
    """The one task of the flow. Errors: UNSUPPORTED when there are several: this engine runs one for each job."""
    count = len(flow.tasks)
    _graph.check(count == 1, Reason.UNSUPPORTED, f"the flow has {count} tasks, a job runs one", ConfigError)
    return flow.tasks[0]


def algorithm_id(task: Task) -> str:
    """The id, with version, of the algorithm that the shape of the task asks for."""
    return TWO_PARTY_PSI if set(task.receivers) <= _holders(task) else EXTERNAL_PSI


def roles(task: Task) -> dict[str, str]:
    """Who plays which role of `algorithm_id(task)`: holders in the order of the inputs, then the receiver."""
    first, second = (entry.party for entry in task.inputs)
    if algorithm_id(task) == TWO_PARTY_PSI:
        return {first: "a", second: "b"}
    return {first: "holder_a", second: "holder_b", task.receivers[0]: "receiver"}


def _parse(document: str | bytes, kind: type[TdnError]) -> FlowSpec:
    try:
        return _ADAPTER.validate_json(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        large = any(entry["type"] in {"too_long", "string_too_long"} for entry in found)
        told = [f"{_path(entry['loc'])}: {_sentence(entry['type'], entry['msg'])}" for entry in found[:5]]
        _graph.refuse(Reason.TOO_LARGE if large else Reason.FLOW_INVALID, "; ".join(told), kind)


def _path(location: Sequence[str | int]) -> str:
    """`tasks[0].inputs[1].keys` of ("tasks", 0, "inputs", 1, "keys")."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in location)
    return "".join(steps).lstrip(".") or "flow"


def _sentence(kind: str, message: str) -> str:
    return {"unexpected_keyword_argument": "unknown key", "missing": "missing"}.get(kind, message)


def _with_full_ids(flow: FlowSpec) -> FlowSpec:
    """`loans` of party `bank-a.cn` means `bank-a.cn/loans`."""

    def full(entry: Input) -> Input:
        own = "/" not in entry.resource
        return replace(entry, resource=f"{entry.party}/{entry.resource}") if own else entry

    tasks = tuple(replace(task, inputs=tuple(map(full, task.inputs))) for task in flow.tasks)
    return replace(flow, tasks=tasks)


def _check_size(size: int, kind: type[TdnError]) -> None:
    message = f"a flow of {size} bytes, the limit is {MAX_FLOW_BYTES}"
    _graph.check(size <= MAX_FLOW_BYTES, Reason.TOO_LARGE, message, kind)


def _check(flow: FlowSpec, kind: type[TdnError]) -> None:
    for reason, message in _problems(flow):
        gate = _receivers if reason is Reason.RESULT_NOT_PERMITTED else _graph
        gate.check(False, reason, message, kind)


def _problems(flow: FlowSpec) -> Iterator[_Problem]:
    """What does not fit together in a flow whose shape is right."""
    if twice := _repeated(flow.parties):
        yield Reason.FLOW_INVALID, f"parties: {twice} is named twice"
    if twice := _repeated(task.name for task in flow.tasks):
        yield Reason.FLOW_INVALID, f"tasks: two have the name {twice}"
    yield from _order_problems(flow.tasks)
    for index, task in enumerate(flow.tasks):
        for reason, message in _task_problems(flow, task):
            yield reason, f"tasks[{index}]: {message}"
    busy = {party for task in flow.tasks for party in (*_holders(task), *task.receivers)}
    for party in flow.parties:
        if party not in busy:
            yield Reason.FLOW_INVALID, f"parties: {party} has neither an input nor the result"


def _order_problems(tasks: Sequence[Task]) -> Iterator[_Problem]:
    names = {task.name for task in tasks}
    for index, task in enumerate(tasks):
        for name in task.after:
            if name not in names:
                yield Reason.FLOW_INVALID, f"tasks[{index}].after: there is no task {name}"
    try:
        graphlib.TopologicalSorter({task.name: task.after for task in tasks}).prepare()
    except graphlib.CycleError as error:
        yield Reason.FLOW_INVALID, f"tasks wait for each other: {' <- '.join(error.args[1])}"


def _task_problems(flow: FlowSpec, task: Task) -> Iterator[_Problem]:
    for receiver in task.receivers:
        if receiver not in flow.parties:
            yield Reason.RESULT_NOT_PERMITTED, f"receiver {receiver} is not among the parties"
    if twice := _repeated(task.receivers):
        yield Reason.FLOW_INVALID, f"receiver {twice} is named twice"
    for entry in task.inputs:
        yield from _input_problems(flow, entry)
    if task.algorithm in _ALGORITHMS:
        yield from _ALGORITHMS[task.algorithm](task)
    else:
        known = ", ".join(_ALGORITHMS)
        yield Reason.UNSUPPORTED_ALGO, f"no algorithm {task.algorithm[:64]!r}; there is: {known}"


def _input_problems(flow: FlowSpec, entry: Input) -> Iterator[_Problem]:
    if entry.party not in flow.parties:
        yield Reason.FLOW_INVALID, f"input of {entry.party}, which is not among the parties"
    if twice := _repeated(entry.keys):
        yield Reason.FLOW_INVALID, f"key column {twice!r} is named twice"
    try:
        owner, _, _ = ids.resource_id(entry.resource)
    except TdnError as error:
        yield Reason.FLOW_INVALID, error.message
    else:
        if owner != entry.party:
            yield Reason.FLOW_INVALID, f"{entry.resource} does not belong to {entry.party}"


def _psi_problems(task: Task) -> Iterator[_Problem]:
    holders = _holders(task)
    if len(task.inputs) != 2 or len(holders) != 2:
        count = f"{len(task.inputs)} of {len(holders)}"
        yield Reason.FLOW_INVALID, f"psi needs two inputs of two parties, not {count}"
    if len({len(entry.keys) for entry in task.inputs}) > 1:
        yield Reason.FLOW_INVALID, "psi needs keys with equally many columns"
    if not set(task.receivers) <= holders and len(task.receivers) > 1:
        yield Reason.FLOW_INVALID, "psi has as receivers one holder, both holders, or one party without input"


_ALGORITHMS: dict[str, Callable[[Task], Iterator[_Problem]]] = {"psi": _psi_problems}


def _holders(task: Task) -> set[str]:
    return {entry.party for entry in task.inputs}


def _repeated(names: Iterable[str]) -> str:
    """The first name that occurs twice, or nothing."""
    return next((name for name, count in Counter(names).items() if count > 1), "")
