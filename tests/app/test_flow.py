"""Flows: every mistake is named by its path, and two nodes always hash the same bytes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tdn_interop.app.data.keys import Normalisation
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.jobs.flow import (
    MAX_FLOW_BYTES,
    FlowSpec,
    Input,
    Task,
    Timeouts,
    algorithm_id,
    canonical,
    flow_from_json,
    flow_from_toml,
    flow_sha256,
    only_task,
    roles,
)
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
A, B, C = "a.x.cn", "b.y.cn", "c.x.cn"


def task(name="match", receivers=(A,), holders=(A, B), keys=("id",), **more) -> Task:
    inputs = tuple(Input(party, f"{party}/t", keys) for party in holders)
    return Task(name, "psi", inputs, receivers, **more)


def flow(*tasks: Task, parties=(A, B)) -> FlowSpec:
    return FlowSpec("f", parties, tasks or (task(),))


def toml(*, swap: tuple[str, str] = ("", ""), add: str = "") -> str:
    text = f"""
name = "f"
parties = ["{A}", "{B}"]
[[tasks]]
name = "match"
algorithm = "psi"
receivers = ["{A}"]
inputs = [
  {{ party = "{A}", resource = "t", keys = ["id"] }},
  {{ party = "{B}", resource = "{B}/t@2", keys = ["id"] }},
]
"""
    assert swap[0] in text
    return text.replace(*swap, 1) + add


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        flow_from_toml(text)
    return caught.value


def peer_refusal(spec: FlowSpec) -> PeerProtocolError:
    with pytest.raises(PeerProtocolError) as caught:
        flow_from_json(canonical(spec))
    return caught.value


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("psi-*.toml")), ids=lambda path: path.stem)
def test_samples_are_flows_and_survive_the_wire(sample):
    spec = flow_from_toml(sample.read_text())
    assert flow_from_json(canonical(spec)) == spec
    assert only_task(spec).normalisation == Normalisation(case="upper")


@pytest.mark.parametrize(
    ("sample", "algorithm", "played"),
    [
        ("psi-two-party", "psi.ecdh/1", ["a", "b"]),
        ("psi-both", "psi.ecdh/1", ["a", "b"]),
        ("psi-third-party", "psi.ecdh-external/1", ["holder_a", "holder_b", "receiver"]),
    ],
)
def test_receivers_decide_the_algorithm_and_inputs_the_roles(sample, algorithm, played):
    spec = flow_from_toml((SAMPLES / f"{sample}.toml").read_text())
    assert algorithm_id(only_task(spec)) == algorithm
    assert roles(only_task(spec)) == dict(zip(spec.parties, played, strict=True))


def test_samples_cover_both_forms_of_receivers():
    assert len(list(SAMPLES.glob("psi-*.toml"))) == 3


def test_canonical_form_is_fixed():
    """A change of these bytes changes the digest that peers of another version compute."""
    one = '{"keys":["id"],"party":"a.x.cn","resource":"a.x.cn/t"}'
    two = '{"keys":["id"],"party":"b.y.cn","resource":"b.y.cn/t@2"}'
    text = (
        '{"name":"f","parties":["a.x.cn","b.y.cn"],"tasks":[{"after":[],"algorithm":"psi","inputs":['
        + one
        + ","
        + two
        + '],"name":"match","normalisation":{"case":"keep","trim":true,"unicode":"NFC"},"output":{"path":""},'
        '"receivers":["a.x.cn"],"suites":[]}],"timeouts":{"approval_s":3600,"lease_s":120,"run_s":3600,'
        '"step_s":300,"stop_s":60},"version":1}'
    )
    spec = flow_from_toml(toml())
    assert canonical(spec).decode() == text
    assert flow_sha256(spec) == hashlib.sha256(text.encode()).digest()


def test_text_of_any_script_is_canonical_utf8():
    spec = flow(task(keys=('列"\\\n\x01',)))
    assert flow_from_json(canonical(spec)) == spec
    assert "列".encode() in canonical(spec)


def test_another_json_text_of_the_same_flow_is_refused():
    data = canonical(flow())
    for text in (
        json.dumps(json.loads(data)).encode(),
        data + b" ",
        data.replace(b'"version":1', b'"version":1.0'),
    ):
        with pytest.raises(PeerProtocolError, match="FLOW_INVALID"):
            flow_from_json(text)
    repeated = data.replace(b'{"name"', b'{"name":"g","name"')
    assert repeated != data
    with pytest.raises(PeerProtocolError, match="canonical"):
        flow_from_json(repeated)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'{"name":"\\ud800"}', b"[" * 60_000])
def test_what_is_no_flow_at_all_is_refused(data):
    with pytest.raises(PeerProtocolError, match="FLOW_INVALID"):
        flow_from_json(data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (toml(swap=('name = "f"', 'nmae = "f"')), "nmae: unknown key"),
        (toml(swap=('name = "f"', "")), "name: missing"),
        (toml(swap=('keys = ["id"]', 'keys = ["id"], kyes = 1')), "tasks[0].inputs[0].kyes: unknown key"),
        (toml(add="output.pth = 'x'"), "tasks[0].output.pth: unknown key"),
        (toml(add="normalisation.case = 'Upper'"), "tasks[0].normalisation.case: "),
        (toml(add="normalisation.trim = 'yes'"), "tasks[0].normalisation.trim: "),
        (toml(add="normalisation.unicode = 'NFD'"), "tasks[0].normalisation.unicode: "),
        (toml(add="[timeouts]\nrun_s = 0"), "timeouts.run_s: "),
        (toml(add="[timeouts]\nrun_s = 1.5"), "timeouts.run_s: "),
        (toml(add="[timeouts]\nrun_s = nan"), "timeouts.run_s: "),
        (toml(add="[timeouts]\nrun_s = true"), "timeouts.run_s: "),
        (toml(add="[timeouts]\nrun_s = 2026-01-01"), "timeouts.run_s: "),
        (toml(swap=('name = "match"', 'name = "Match!"')), "tasks[0].name: "),
        (toml(swap=('keys = ["id"]', "keys = []")), "tasks[0].inputs[0].keys: "),
        (toml(swap=(f'["{A}"]', "[]")), "tasks[0].receivers: "),
        (toml(swap=(f'"{B}"', '"B.cn"')), "parties[1]: "),
        (toml(swap=('resource = "t"', 'resource = "T"')), "not a resource name: 'T'"),
        (toml(swap=('resource = "t"', f'resource = "{B}/t"')), f"{B}/t does not belong to {A}"),
        ("name = ", "not TOML"),
        ("a = " + "[" * 5_000, "not TOML"),
        (".".join("a" * 9_000) + " = 1", "not TOML"),
    ],
)
def test_a_mistake_is_named_by_its_path(text, says):
    error = refusal(text)
    assert (error.reason, error.requirement) == (Reason.FLOW_INVALID, "TDN-F-DAG-01")
    assert says in error.message


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (flow(parties=(A, B, A)), f"{A} is named twice"),
        (flow(task(), task()), "two have the name match"),
        (flow(task(after=("match",))), "wait for each other"),
        (flow(task("s", after=("t",)), task("t", after=("s",))), "wait for each other"),
        (flow(task(after=("gone",))), "tasks[0].after: there is no task gone"),
        (flow(task(holders=(A, A))), "needs two inputs of two parties"),
        (flow(task(holders=(A,))), "needs two inputs of two parties"),
        (flow(task(holders=(A, B, C)), parties=(A, B, C)), "needs two inputs of two parties"),
        (flow(task(holders=(A, C))), f"input of {C}, which is not among the parties"),
        (flow(task(receivers=(A, A))), f"receiver {A} is named twice"),
        (flow(task(receivers=(A, C)), parties=(A, B, C)), "psi has as receivers"),
        (flow(task(), parties=(A, B, C)), f"{C} has neither an input nor the result"),
        (flow(task(keys=("id", "id"))), "key column 'id' is named twice"),
        (
            flow(replace(task(), inputs=(Input(A, f"{A}/t", ("id",)), Input(B, f"{B}/t", ("id", "v"))))),
            "equally many columns",
        ),
    ],
)
def test_a_flow_that_does_not_fit_together_is_refused(spec, says):
    error = peer_refusal(spec)
    assert (error.reason, error.requirement) == (Reason.FLOW_INVALID, "TDN-F-DAG-01")
    assert says in error.message


def test_an_unknown_algorithm_is_refused():
    error = peer_refusal(flow(replace(task(), algorithm="psj")))
    assert error.reason is Reason.UNSUPPORTED_ALGO
    assert "'psj'" in error.message
    assert "psi" in error.message


def test_a_receiver_who_is_no_party_is_refused():
    error = peer_refusal(flow(task(receivers=(C,))))
    assert (error.reason, error.requirement) == (Reason.RESULT_NOT_PERMITTED, "TDN-F-CTR-02")


@pytest.mark.parametrize(
    "text",
    [
        "#" * (MAX_FLOW_BYTES + 1),
        toml(swap=('["id"]', str([f"c{i}" for i in range(9)]))),
        toml(swap=('["id"]', str(["c" * 257]))),
        toml(swap=(f'["{A}", "{B}"]', str([f"p{i}.cn" for i in range(17)]))),
    ],
)
def test_a_flow_over_a_limit_is_refused(text):
    assert refusal(text).reason is Reason.TOO_LARGE


def test_a_large_proposal_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(flows, "_ADAPTER", None)
    with pytest.raises(PeerProtocolError, match="TOO_LARGE"):
        flow_from_json(b" " * (MAX_FLOW_BYTES + 1))


@pytest.mark.parametrize(
    "after", [{"t": ("s",)}, {"t": ("s",), "u": ("s",), "v": ("t", "u")}, {"t": ("s",), "u": ("s",)}]
)
def test_chain_diamond_and_fan_out_are_flows_but_one_job_runs_one_task(after):
    spec = flow(task("s"), *(task(name, after=before) for name, before in after.items()))
    assert flow_from_json(canonical(spec)) == spec
    with pytest.raises(ConfigError) as caught:
        only_task(spec)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert f"{len(after) + 1} tasks" in caught.value.message


def test_roles_follow_the_order_of_the_inputs():
    assert roles(task(holders=(B, A))) == {B: "a", A: "b"}
    assert Timeouts().approval_s == 3600
