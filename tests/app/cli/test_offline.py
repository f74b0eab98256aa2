"""Commands that need no running node."""

import json
import pathlib

import pytest

from tdn_interop import identity
from tdn_interop.app.cli import adapters
from tdn_interop.transport.trust import Membership
from tests.app.cli.fake import points


def test_node_init(folder, modules, tdn):
    words = [
        "node",
        "init",
        "hub.cn",
        "--role",
        "hub",
        "--dir",
        "made",
        "--listen",
        "127.0.0.1:7001",
        "--enrolment",
        "127.0.0.1:7002",
    ]
    code, out, _ = tdn(*words, "--json")
    assert code == 0
    assert modules.calls == [
        ("init", pathlib.Path("made"), "hub.cn", "hub", "127.0.0.1:7001", "127.0.0.1:7002")
    ]
    assert json.loads(out) == {"node_id": "hub.cn", "role": "hub", "path": "made/node.toml"}
    assert "made/node.toml" in tdn(*words)[1]


def test_node_run(folder, modules, tdn):
    assert tdn("node", "run", "-v") == (0, "", "")
    assert modules.calls == [("log", None, True), ("run", "bank-a.cn")]


def test_enrol_join(folder, modules, tdn):
    code, out, err = tdn("enrol", "join", "dG9rZW4")
    assert (code, out, modules.calls) == (0, "", [("join", "bank-a.cn", "dG9rZW4")])
    assert "tdn node run" in err
    assert tdn("enrol", "join", "dG9rZW4", "--json") == (0, '{"node_id": "bank-a.cn"}\n', "")


def test_node_check(folder, modules, tdn):
    code, out, _ = tdn("node", "check", "--json")
    assert code == 0
    assert json.loads(out)["findings"][0] == {
        "name": "certificate",
        "ok": True,
        "detail": "24 h left",
        "advice": "",
    }
    modules.findings.append(modules.Finding("clock", False, "90 s ahead", "set it"))
    code, out, _ = tdn("node", "check", "--lang", "zh")
    assert code == 3
    assert [word for word in ["clock", "90 s ahead", "set it", "否", "建议"] if word not in out] == []


def test_adapter_ls(monkeypatch, tdn):
    monkeypatch.setattr(adapters, "entry_points", points("json:loads"))
    code, out, _ = tdn("adapter", "ls", "--json")
    assert code == 0
    assert json.loads(out) == {"adapters": [{"name": "a0", "value": "json:loads", "ok": True, "detail": ""}]}


def test_a_broken_adapter_is_a_red_line_and_exit_code_3(monkeypatch, tdn):
    monkeypatch.setattr(adapters, "entry_points", points("json:loads", "nowhere_to_be_found:Adapter"))
    code, out, _ = tdn("adapter", "ls", "--json")
    assert code == 3
    assert [adapter["ok"] for adapter in json.loads(out)["adapters"]] == [True, False]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = tdn("adapter", "ls")
    red = [line for line in out.splitlines() if "\x1b[31m" in line]
    assert code == 3
    assert len(red) == 1
    assert "nowhere_to_be_found" in red[0]


def test_adapters_of_this_installation_load(tdn):
    assert tdn("adapter", "ls")[0] == 0


def test_evidence_verify(bundle, tdn):
    for key in (bundle.top_key.hex(), "top.key"):
        code, out, err = tdn("evidence", "verify", "job.bundle", "--top-key", key, "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert (document["outcome"], document["top"]) == ("SUCCEEDED", "cn")
        assert document["steps"]
        assert [party["node"] for party in document["parties"]] == [
            "bank-a.shandong.cn",
            "bank-b.shandong.cn",
        ]


def test_evidence_verify_for_people(bundle, tdn):
    code, out, err = tdn("evidence", "verify", "job.bundle", "--top-key", "top.key", "--lang", "zh")
    assert (code, err) == (0, "存证验证通过。\n")
    rows = [line.split() for line in out.splitlines()]
    assert ["结果", "SUCCEEDED"] in rows
    assert [row[-3:] for row in rows if row[0] == "bank-b.shandong.cn"] == [
        ["bank-b.shandong.cn,", "shandong.cn,", "cn"]
    ]


def test_evidence_that_does_not_hold_ends_with_1(bundle, folder, tdn):
    content = bytearray(bundle.bundle())
    content[-1] ^= 1
    (folder / "job.bundle").write_bytes(content)
    code, out, err = tdn("evidence", "verify", "job.bundle", "--top-key", "top.key", "--json")
    assert (code, out, json.loads(err)["error"]["reason"]) == (1, "", "EVIDENCE_BROKEN")


@pytest.mark.parametrize("words", ["--top-key missing", "--top-key flow.toml", "--top-key 0a0b"])
def test_evidence_verify_names_a_bad_key(words, bundle, tdn):
    code, _, err = tdn("evidence", "verify", "job.bundle", *words.split(), "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (3, "INPUT_INVALID")


def test_evidence_verify_uses_the_key_this_node_trusts(bundle, folder, tdn):
    code, _, err = tdn("evidence", "verify", "job.bundle", "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (3, "NOT_ENROLLED")
    record = identity.Signed(b"record", "cn", bytes(64))
    Membership("cn", bundle.top_key, "cn", "127.0.0.1:1", record, record).save(folder / "membership.json")
    assert tdn("evidence", "verify", "job.bundle")[0] == 0
