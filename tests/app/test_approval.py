"""Approval: closed unless a rule opens it, and a receiver that no rule names is told as such."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.app.jobs.approval import Approve, WaitForHuman, decide
from tdn_interop.app.jobs.flow import FlowSpec, Input, Task
from tdn_interop.config import Approval, ApprovalRule
from tdn_interop.errors import Reason, Refused

A, B, C = "a.x.cn", "b.y.cn", "c.x.cn"
FITS = {
    "initiators": [A, C],
    "algorithms": ["psi"],
    "receivers": [A, B],
    "resources": ["aircraft"],
    "keys": ["tailnum", "year"],
}
BREAKS = {
    "initiators": [B, C],
    "algorithms": ["psi.ecdh-external/1"],
    "receivers": [B],
    "resources": ["aircraft@2"],
    "keys": ["year"],
}


def flow(receivers=(A,), parties=(A, B), resource=f"{B}/aircraft@1") -> FlowSpec:
    inputs = (Input(A, f"{A}/operations", ("tail",)), Input(B, resource, ("tailnum",)))
    return FlowSpec("f", parties, (Task("match", "psi", inputs, receivers),))


def rules(*given) -> Approval:
    return Approval(mode="rules", rules=[ApprovalRule(**each) for each in given])


def refusal(policy, spec=None, node=B, initiator=A) -> Refused:
    with pytest.raises(Refused) as caught:
        decide(policy, spec or flow(), node, initiator)
    assert caught.value.requirement == "TDN-F-CTR-02"
    return caught.value


def test_the_default_waits_for_a_human():
    assert decide(Approval(), flow(), B, A) == WaitForHuman()
    assert decide(Approval(mode="manual", rules=[ApprovalRule(**FITS)]), flow(), B, A) == WaitForHuman()


@pytest.mark.parametrize("policy", [Approval(), rules()])
def test_the_author_of_a_flow_has_approved_it(policy):
    assert decide(policy, flow(), A, A) == Approve(None)


def test_the_first_rule_whose_conditions_all_hold_approves():
    assert decide(rules(FITS), flow(), B, A) == Approve(1)
    assert decide(rules({**FITS, "keys": []}, BREAKS, FITS, FITS), flow(), B, A) == Approve(3)


@pytest.mark.parametrize("name", FITS)
def test_each_condition_alone_may_approve_and_each_may_refuse(name):
    assert decide(rules({name: FITS[name]}), flow(), B, A) == Approve(1)
    for values in (BREAKS[name], []):
        error = refusal(rules({**FITS, name: values}))
        expected = Reason.RESULT_NOT_PERMITTED if name == "receivers" else Reason.POLICY_DENIED
        assert error.reason is expected
        assert error.message == f"no rule of {B} allows this: {name}"


def test_no_rules_and_rules_without_conditions_approve_nothing():
    assert refusal(rules()).reason is Reason.POLICY_DENIED
    assert refusal(rules({})).reason is Reason.POLICY_DENIED


def test_conditions_of_several_rules_do_not_add_up():
    error = refusal(rules({"initiators": [A], "keys": ["year"]}, {"initiators": [C], "keys": ["tailnum"]}))
    assert error.reason is Reason.POLICY_DENIED


def test_every_receiver_must_be_allowed():
    assert refusal(rules({"receivers": [A]}), flow(receivers=(A, B))).reason is Reason.RESULT_NOT_PERMITTED
    assert decide(rules({"receivers": [A, B]}), flow(receivers=(A, B)), B, A) == Approve(1)


@pytest.mark.parametrize(
    ("allowed", "asked", "fits"),
    [
        (f"{B}/aircraft", f"{B}/aircraft@1", True),
        (f"{B}/aircraft@1", f"{B}/aircraft@1", True),
        ("aircraft", f"{B}/aircraft", True),
        ("aircraft@1", f"{B}/aircraft@1", True),
        ("aircraft@1", f"{B}/aircraft@2", False),
        ("aircraft@1", f"{B}/aircraft", False),  # whatever version is the newest
        (f"{A}/aircraft", f"{B}/aircraft", False),
        ("air", f"{B}/aircraft", False),
    ],
)
def test_a_rule_may_name_a_resource_with_or_without_node_and_version(allowed, asked, fits):
    policy = rules({"resources": [allowed]})
    if fits:
        assert decide(policy, flow(resource=asked), B, A) == Approve(1)
    else:
        assert refusal(policy, flow(resource=asked)).message.endswith(": resources")


def test_only_the_own_inputs_count():
    """The columns and resources of others are their business."""
    policy = rules({"resources": ["operations"], "keys": ["tail"]})
    assert decide(policy, flow(), A, B) == Approve(1)


@pytest.mark.parametrize("policy", [Approval(), rules(FITS)])
@pytest.mark.parametrize(("node", "initiator"), [(C, A), (B, C), (C, C)])
def test_who_is_not_in_the_flow_neither_decides_nor_proposes(policy, node, initiator):
    assert refusal(policy, node=node, initiator=initiator).reason is Reason.POLICY_DENIED


@given(st.lists(st.sets(st.sampled_from(sorted(FITS))), max_size=4))
def test_a_job_is_approved_only_if_some_rule_has_conditions_and_breaks_none(broken):
    policy = rules(*({**FITS, **{name: BREAKS[name] for name in names}} for names in broken))
    if set() in broken:
        assert decide(policy, flow(), B, A) == Approve(broken.index(set()) + 1)
    else:
        refusal(policy)
