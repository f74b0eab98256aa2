"""Logs and metrics of a node."""

import json
import logging
import socket
import sys
import urllib.request

import pytest
import structlog

from tdn_interop.app import telemetry
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason


@pytest.fixture
def log(tmp_path):
    """A log file that the set-up writes; the process-wide state is put back afterwards."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    file = tmp_path / "node.log"
    yield file
    structlog.reset_defaults()
    for handler in set(root.handlers) - set(kept):
        handler.close()
    root.handlers[:] = kept
    root.setLevel(level)


def events(log):
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def test_events_are_json_lines_with_their_context(log):
    telemetry.set_up_logging(log)
    with telemetry.context(node="bank-a.cn", job="0f"), telemetry.context(task="psi", peer=None):
        structlog.get_logger("tdn.job").info("已开始", rows=3)
    structlog.get_logger("tdn.job").warning("outside")
    first, second = events(log)
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "已开始", "level": "info", "logger": "tdn.job", "node": "bank-a.cn", "job": "0f", "task": "psi", "rows": 3,
    }  # fmt: skip
    assert "node" not in second


def test_libraries_log_into_the_same_file(log):
    telemetry.set_up_logging(log)
    with telemetry.context(node="bank-a.cn"):
        logging.getLogger("some.library").warning("about %s", "a thing")
    (event,) = events(log)
    assert (event["event"], event["logger"], event["node"]) == ("about a thing", "some.library", "bank-a.cn")


def test_details_need_the_verbose_flag(log):
    telemetry.set_up_logging(log)
    structlog.get_logger("tdn").debug("quiet")
    telemetry.set_up_logging(log, verbose=True)
    structlog.get_logger("tdn").debug("loud")
    assert [event["event"] for event in events(log)] == ["loud"]


CANARY = b"canary-7310"


@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        bytearray(CANARY),
        memoryview(CANARY),
        [CANARY],
        (1, CANARY),
        {"k": [CANARY]},
        {CANARY: 1},
        {CANARY},
    ],
)
def test_bytes_never_reach_a_log(log, value):
    telemetry.set_up_logging(log)
    structlog.get_logger("tdn").error("event", value=value, other={"deep": value})
    logging.getLogger("library").error("event", extra={"value": value})
    text = log.read_text()
    assert "canary" not in text
    assert text.count("<11 bytes, not logged>") >= 2


def test_tracebacks_are_logged_without_local_variables(log):
    telemetry.set_up_logging(log)
    secret = "canary-" + str(7310)
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger("tdn").exception("defect")
    (event,) = events(log)
    assert "ValueError: 11" in event["exception"]
    assert "canary-7310" not in log.read_text()


def test_people_on_a_terminal_get_no_json(log, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    telemetry.set_up_logging()
    try:
        secret = "canary-" + str(7310)
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger("tdn").exception("defect", rows=3)
    printed = capsys.readouterr().err
    assert "defect" in printed
    assert not printed.startswith("{")
    assert "canary-7310" not in printed


def test_a_log_that_cannot_be_written_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError) as caught:
        telemetry.set_up_logging(tmp_path / "nowhere" / "node.log")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert "nowhere" in caught.value.message


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_metrics_are_served_where_the_configuration_says():
    metrics, address = telemetry.Metrics(), free_address()
    metrics.refused(PeerProtocolError(Reason.BAD_POINT, "words", "TDN-A-PSI-06"))
    metrics.frame_bytes.labels("sent").inc(10)
    metrics.job.labels("SUCCEEDED").inc()
    with metrics.served(address):
        page = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
        with pytest.raises(ConfigError), telemetry.Metrics().served(address):
            pytest.fail("the address is taken")
    assert 'tdn_refusal_total{reason="BAD_POINT",requirement="TDN-A-PSI-06"} 1.0' in page
    assert 'tdn_frame_bytes_total{direction="sent"} 10.0' in page
    assert 'tdn_job_total{state="SUCCEEDED"} 1.0' in page
    assert "tdn_session_open 0.0" in page
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{address}/metrics", timeout=1)


def test_without_an_address_nothing_listens(monkeypatch):
    monkeypatch.setattr(telemetry, "start_http_server", lambda *_: pytest.fail("nothing may listen"))
    with telemetry.Metrics().served(None):
        pass
