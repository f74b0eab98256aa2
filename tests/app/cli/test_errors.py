"""What the command line says when something is wrong: exit codes, words, languages, hostile text."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.app.cli import nodes, options, output, words
from tdn_interop.errors import LocalProtocolError, Refused, TdnError
from tdn_interop.reasons import Blame, Reason
from tests.app.cli import fake


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory):
    """One fake node for the tests that only change its error; (its configuration file, the fake)."""
    file = tmp_path_factory.mktemp("node") / "node.toml"
    file.write_text('id = "bank-a.cn"\nrole = "child"\n')
    with fake.running(file) as node:
        yield file, node


ERROR = Refused(Reason.POLICY_DENIED, "not for purpose x", "TDN-F-CTR-02", party="bank-b.cn", limit=3)


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.name)
def test_every_reason_of_the_node_reaches_the_user(reason, shared_node, tdn):
    file, node = shared_node
    node.error = TdnError(reason, "particular words", "TDN-T-ENC-02")
    for lang in (0, 1):
        code, out, err = tdn("ping", "bank-b.cn", "--config", file, "--lang", words.LANGUAGES[lang])
        assert (code, out) == (reason.value.exit_code, "")
        said = [
            reason.name,
            reason.value.summary[lang],
            reason.value.advice[lang],
            "particular words",
            "TDN-T-ENC-02",
        ]
        assert [part for part in said if part not in err] == []


def test_an_error_tells_what_why_whose_fault_and_what_next(shared_node, tdn):
    file, node = shared_node
    node.error = ERROR
    lines = tdn("ping", "bank-b.cn", "--config", file)[2].splitlines()
    assert [line.rstrip() for line in lines] == [
        "error POLICY_DENIED: A party does not allow this.",
        "  why      not for purpose x",
        "  fault    the side that was asked",
        "  next     Ask that party what it would allow.",
        "  rule     TDN-F-CTR-02",
        "  details  limit=3  party=bank-b.cn",
    ]
    chinese = tdn("ping", "bank-b.cn", "--config", file, "--lang", "zh")[2]
    for part in ("错误 POLICY_DENIED", "原因", "责任", "响应方", "下一步", "规则", "详情"):
        assert part in chinese


def test_an_error_as_json(shared_node, tdn):
    file, node = shared_node
    node.error = ERROR
    code, out, err = tdn("ping", "bank-b.cn", "--json", "--lang", "zh", "--config", file)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert json.loads(err) == {
        "error": {
            "reason": "POLICY_DENIED", "summary": "有参与方不允许此操作。", "message": "not for purpose x",
            "blame": "responder", "retry": "no", "advice": "请与该参与方协商。", "requirement": "TDN-F-CTR-02",
            "exit_code": 5, "metadata": {"party": "bank-b.cn", "limit": "3"},
        }
    }  # fmt: skip


def test_a_node_that_does_not_run_is_named(folder, tdn):
    code, out, err = tdn("job", "ls", "--config", "node.toml", "--json")
    error = json.loads(err)["error"]
    assert (code, out, error["reason"], error["requirement"]) == (4, "", "NODE_DOWN", "TDN-X-CLI-02")
    assert "bank-a.cn" in error["message"]
    assert "node.toml" in error["message"]
    assert str(folder) in json.loads(tdn("job", "ls", "--json")[2])["error"]["message"]


def test_a_node_that_says_unreachable_is_not_a_node_that_is_down(shared_node, tdn):
    file, node = shared_node
    node.error = TdnError(Reason.UNREACHABLE, "bank-b.cn does not answer")
    assert (
        json.loads(tdn("ping", "bank-b.cn", "--json", "--config", file)[2])["error"]["reason"]
        == "UNREACHABLE"
    )


def test_a_missing_configuration_is_named(folder, tdn):
    code, _, err = tdn("job", "ls", "--config", "missing.toml")
    assert code == 3
    assert "missing.toml" in err


@pytest.mark.parametrize(
    ("line", "name"), [("job run missing.toml", "missing.toml"), ("job run latin.toml", "latin.toml")]
)
def test_an_input_that_cannot_be_read_is_named(line, name, folder, tdn):
    (folder / "latin.toml").write_bytes(b'name = "caf\xe9"')
    code, _, err = tdn(*line.split(), "--json")
    error = json.loads(err)["error"]
    assert (code, error["reason"], error["requirement"]) == (3, "INPUT_INVALID", "TDN-X-CLI-01")
    assert name in error["message"]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense", "job nonsense", "job run", "job ls --nonsense", "ping NOT_A_NODE", "route lookup a.cn/UPPER@x",
        "resource show no-slash", "resource register f.csv --name UPPER --key a", "resource register f.csv --name a",
        "channel send a.cn BAD_TOPIC f", "enrol invite a.cn --valid soon", "enrol invite a.cn --role king",
        "job ls --lang fr", "job ls --config", "ping a.cn --timeout 0",
    ],
)  # fmt: skip
def test_mistakes_of_usage_exit_with_2(line, tdn):
    code, out, err = tdn(*line.split())
    assert (code, out) == (2, "")
    assert "Usage:" in err


@pytest.mark.parametrize("verbose", [False, True])
def test_a_defect_of_ours_is_one_clear_message(verbose, folder, tdn, monkeypatch):
    def defect(config):
        raise ZeroDivisionError

    monkeypatch.setattr(nodes, "invocation", defect)
    code, out, err = tdn("node", "status", *(["-v"] if verbose else []))
    assert (code, out) == (70, "")
    assert "INTERNAL" in err
    assert "ZeroDivisionError; run the command again with -v" in err
    assert ("Traceback" in err) == verbose


def test_verbose_shows_where_an_error_comes_from(folder, tdn):
    assert "Traceback" not in tdn("job", "ls")[2]
    assert "Traceback" in tdn("-v", "job", "ls")[2]


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\nline two \u202ereversed\x9b31m [red]markup[/red]"


def test_words_of_others_cannot_steer_the_terminal(shared_node, tdn, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "300", "CI": "1"}.items():
        monkeypatch.setenv(name, value)  # styles, no wrapping, no bar: what is left came from the other side
    file, node = shared_node
    node.error = None
    node.watched = [fake.failed(message=HOSTILE)]
    node.jobs = [fake.failed(message=HOSTILE)]
    for line in ("job watch 3f2a", "job ls", "job show 3f2a", "job watch 3f2a --json"):
        printed = "".join(tdn(*line.split(), "--config", file)[1:])
        styles_removed = re.sub(r"\x1b\[[0-9;]*m", "", printed)
        assert [char for char in styles_removed if char in "\x1b\x07\x9b\r\u202e"] == []
    assert "[red]markup[/red]" in "".join(tdn("job", "watch", "3f2a", "--config", file)[1:])


@given(st.text())
def test_json_lines_are_lines_and_lossless(text):
    line = output.as_line({"text": text})
    assert line.splitlines() == [line]
    assert json.loads(line) == {"text": text}
    assert output.visible(text).splitlines() in ([output.visible(text)], [])


# -- the global options


VALUES = st.text(alphabet="abc.=-", min_size=1)
GLOBAL = st.one_of(
    st.sampled_from([["--json"], ["-v"], ["--verbose"]]),
    st.tuples(st.sampled_from(["--config", "--lang"]), VALUES).map(list),
    st.tuples(st.sampled_from(["--config", "--lang"]), VALUES).map(lambda pair: ["=".join(pair)]),
)
OTHER = st.sampled_from([["job"], ["ls"], ["--out=x"], ["--comment", "y"], ["-x"], [""], ["--jsonx"], ["--"]])


@given(st.lists(st.one_of(GLOBAL.map(lambda words: (True, words)), OTHER.map(lambda words: (False, words)))))
def test_options_move_in_front_and_nothing_is_lost(parts):
    given_words = [word for _, part in parts for word in part]
    stop = next((i for i, (_, part) in enumerate(parts) if part == ["--"]), len(parts))
    front = [word for moves, part in parts[:stop] if moves for word in part]
    rest = [word for moves, part in parts[:stop] if not moves for word in part]
    tail = [word for _, part in parts[stop:] for word in part]
    assert options.in_front(given_words) == front + rest + tail


def test_a_missing_value_is_left_to_the_parser():
    assert options.in_front(["job", "ls", "--config"]) == ["--config", "job", "ls"]


# -- words


def test_the_catalogue_is_complete_in_both_languages():
    english, chinese = words.Words("en"), words.Words("zh")
    for blame in Blame:
        assert english.blame(blame) != chinese.blame(blame)
    for table in (words._LABELS, words._SENTENCES):
        for key, pair in table.items():
            assert len(pair) == 2, key
            assert all(pair), key
            assert re.findall(r"{\w+}", pair[0]) == re.findall(r"{\w+}", pair[1]), key


def test_every_field_the_node_shows_has_a_label():
    shown = {
        field.name
        for message in fake.pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if message.name in {"GetStatusResponse", "PingResponse", "LookupRouteResponse", "Resource", "JobView"}
    }
    assert shown - set(words._LABELS) == {"flow_json"}


def test_errors_without_a_requirement_have_no_empty_line(folder, tdn, monkeypatch):
    def refuse(context):
        raise LocalProtocolError(Reason.INTERNAL, "words")

    monkeypatch.setattr(nodes, "invocation", refuse)
    assert "rule" not in tdn("node", "status")[2]
