"""Who decides on a proposed job: its author, a rule, or a human. Pure, and closed unless a rule opens it."""

from __future__ import annotations

from dataclasses import dataclass

from tdn_interop.app.jobs.flow import FlowSpec, algorithm_id
from tdn_interop.config import Approval, ApprovalRule
from tdn_interop.errors import Reason, Refused, guard

_terms = guard("TDN-F-CTR-02")


@dataclass(frozen=True, slots=True)
class Approve:
    """The job is approved by rule number `rule`, from 1; None: the owner of this node wrote the flow."""

    rule: int | None


@dataclass(frozen=True, slots=True)
class WaitForHuman:
    """Nobody but the owner of this node may decide."""


def decide(policy: Approval, flow: FlowSpec, node: str, initiator: str) -> Approve | WaitForHuman:
    """Decide for `node` on a flow that `initiator`, known from the channel, proposes.

    A rule approves when it has conditions and each holds for every task; the first one that approves
    counts. With mode `rules` a job that no rule approves is refused.
    Errors: RESULT_NOT_PERMITTED when only the receivers stand against it, POLICY_DENIED otherwise.
    """
    for name in (node, initiator):
        message = f"{name} is not a party of the flow"
        _terms.check(name in flow.parties, Reason.POLICY_DENIED, message, Refused)
    if initiator == node:
        return Approve(None)
    if policy.mode == "manual":
        return WaitForHuman()
    asked = _asked(flow, node, initiator)
    broken = [_broken(rule, asked) for rule in policy.rules]
    number = next((number for number, names in enumerate(broken, 1) if not names), None)
    nearest = min(broken, key=len, default=["no rules"])
    reason = Reason.RESULT_NOT_PERMITTED if nearest == ["receivers"] else Reason.POLICY_DENIED
    told = f"no rule of {node} allows this: {', '.join(nearest)}"
    _terms.check(number is not None, reason, told, Refused)
    return Approve(number)


def _asked(flow: FlowSpec, node: str, initiator: str) -> dict[str, list[set[str]]]:
    """What each condition is asked about: values, each in all its spellings."""
    own = [entry for task in flow.tasks for entry in task.inputs if entry.party == node]
    return {
        "initiators": [{initiator}],
        "algorithms": [{task.algorithm, algorithm_id(task)} for task in flow.tasks],
        "receivers": [{receiver} for task in flow.tasks for receiver in task.receivers],
        "resources": [_spellings(entry.resource) for entry in own],
        "keys": [{key} for entry in own for key in entry.keys],
    }


def _broken(rule: ApprovalRule, asked: dict[str, list[set[str]]]) -> list[str]:
    """The conditions of `rule` that do not hold; all there could be when it has none."""
    given: dict[str, list[str]] = rule.model_dump(exclude_none=True)
    if not given:
        return list(asked)
    return [
        name for name, allowed in given.items() if any(value.isdisjoint(allowed) for value in asked[name])
    ]


def _spellings(resource: str) -> set[str]:
    """With and without node, with and without version: a rule may name any."""
    full = {resource, resource.partition("@")[0]}
    return full | {name.partition("/")[2] for name in full}
