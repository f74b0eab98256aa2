"""`tdn mailbox ls`."""

import json


def test_the_operator_sees_how_much_waits_for_whom(tdn, node):
    code, out, _ = tdn("mailbox", "ls")
    assert code == 0
    for word in ("bank-b.cn", "3", "4.6 KiB"):
        assert word in out


def test_programs_get_it_as_json(tdn, node):
    _, out, _ = tdn("mailbox", "ls", "--json")
    box = {"node_id": "bank-b.cn", "letters": 3, "bytes": 4711, "oldest_at_ms": 1_700_000_000_000}
    assert json.loads(out) == {"mailboxes": [box]}
