"""`tdn registry` and `tdn node backup|restore`: what they ask of the node, and what they say."""

import datetime as dt
import json

import pytest

from tdn_interop._pb.tdn.app.v1 import backup_service_pb2
from tdn_interop.app.backup import archive
from tdn_interop.errors import Reason, Refused
from tests.app.cli.fake_registry import AT

# What a table shows of the moment at which the node was revoked.
MINUTE = f"{dt.datetime.fromtimestamp(AT / 1000).astimezone():%Y-%m-%d %H:%M}"


def test_members_and_lists_in_tables(node, tdn):
    code, out, _ = tdn("registry", "ls")
    assert code == 0
    assert "REVOKED" in out
    code, out, _ = tdn("registry", "status")
    assert code == 0
    assert "key lost" in out
    assert " ms" not in out
    assert out.count(MINUTE) == 2
    assert "cn" in out


def test_revoking_asks_first_and_says_for_ever(node, tdn, monkeypatch):
    asked = []

    def confirm(text, **how):
        asked.append((text, how["err"]))
        return True

    monkeypatch.setattr("typer.confirm", confirm)
    code, out, err = tdn("registry", "revoke", "bank-a.cn", "--reason", "key lost")
    assert code == 0
    assert out == ""
    assert "bank-a.cn is revoked" in err
    [(text, to_stderr)] = asked
    assert "for ever" in text
    assert to_stderr
    assert (node.requests[-1].node_id, node.requests[-1].reason) == ("bank-a.cn", "key lost")
    tdn("registry", "revoke", "bank-a.cn", "--lang", "zh")
    assert "永久" in asked[-1][0]


def test_a_top_that_is_away_is_said(node, tdn):
    code, _, err = tdn("registry", "revoke", "bank-a.cn", "--reason", "top is away", "--yes")
    assert code == 0
    assert "told as soon as" in err
    code, out, _ = tdn("registry", "revoke", "bank-a.cn", "--reason", "top is away", "--yes", "--json")
    assert json.loads(out) == {"node_id": "bank-a.cn", "listed": False}


def test_a_refusal_of_the_node_is_told(node, tdn):
    node.error = Refused(Reason.POLICY_DENIED, "cn cannot revoke bank.eu", "TDN-T-IDN-10")
    code, out, err = tdn("registry", "revoke", "bank.eu", "--yes", "--json")
    assert (code, out) == (Reason.POLICY_DENIED.value.exit_code, "")
    assert json.loads(err)["error"]["reason"] == "POLICY_DENIED"


def test_a_backup_takes_the_first_line_as_passphrase(node, tdn, folder):
    (folder / "secret").write_text("correct horse \nnot this\n")
    code, _, err = tdn("node", "backup", "file", "--passphrase-file", "secret")
    assert code == 0
    assert "encrypted" in err
    wanted = backup_service_pb2.BackUpRequest(path=str(folder / "file"), passphrase="correct horse")
    assert node.requests == [wanted]
    code, _, err = tdn("node", "backup", "file")
    assert code == 0
    assert "not encrypted" in err


@pytest.mark.parametrize("content", ["", "\n", "  \nx\n"])
def test_an_empty_passphrase_is_none(node, tdn, folder, content):
    (folder / "secret").write_text(content)
    code, _, err = tdn("node", "backup", "file", "--passphrase-file", "secret", "--json")
    assert code == Reason.INPUT_INVALID.value.exit_code
    assert json.loads(err)["error"]["reason"] == "INPUT_INVALID"
    assert node.requests == []


def test_what_is_no_backup_is_not_restored(tdn, folder, monkeypatch):
    monkeypatch.setattr(archive, "_COST", 1 << 10)
    (folder / "file").write_bytes(b"nothing of ours" * 100)
    code, _, err = tdn("node", "restore", "file", "--dir", "out", "--json")
    assert code == Reason.INPUT_INVALID.value.exit_code
    assert "file" in json.loads(err)["error"]["message"]
    assert not (folder / "out").exists()
