"""Names of nodes, resources and topics: grammar, parsing, kinship. Pure."""

from __future__ import annotations

import re

from tdn_interop.errors import ConfigError, Reason, TdnError, guard

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NODE = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_TOPIC = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}\Z")
_JOB = re.compile(r"[0-9a-f]{32}\Z")
_RESOURCE = re.compile(r"(?P<node>[^/@]+)/(?P<name>[^/@]+)(?:@(?P<version>[1-9]\d{0,8}))?\Z")


def node_id(text: str, kind: type[TdnError] = ConfigError) -> str:
    """`text` if it is a node id: DNS labels, at most 200 characters, read right to left."""
    ok = len(text) <= 200 and _NODE.match(text)
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, f"not a node id: {text[:80]!r}", kind)
    return text


def topic(text: str, kind: type[TdnError] = ConfigError) -> str:
    """`text` if it is a topic name: 1 to 128 characters of a-z 0-9 . _ - /."""
    guard("TDN-T-DLV-06").check(
        _TOPIC.match(text), Reason.INVALID_REQUEST, f"not a topic: {text[:80]!r}", kind
    )
    return text


def job_id(text: str, kind: type[TdnError] = ConfigError) -> str:
    """`text` if it is a job id: 32 hexadecimal characters."""
    guard("TDN-F-TSK-05").check(
        _JOB.match(text), Reason.INVALID_REQUEST, f"not a job id: {text[:80]!r}", kind
    )
    return text


def transfer_id(text: str, kind: type[TdnError] = ConfigError) -> str:
    """`text` if it is the id of a transfer: 32 hexadecimal characters."""
    guard("TDN-T-DLV-06").check(
        _JOB.match(text), Reason.INVALID_REQUEST, f"not a transfer id: {text[:80]!r}", kind
    )
    return text


def resource_name(text: str, kind: type[TdnError] = ConfigError) -> str:
    """`text` if it is a resource name: 1 to 64 characters of a-z 0-9 . _ -."""
    ok = _NAME.match(text)
    guard("TDN-F-RES-01").check(ok, Reason.INVALID_REQUEST, f"not a resource name: {text[:80]!r}", kind)
    return text


def resource_id(text: str, kind: type[TdnError] = ConfigError) -> tuple[str, str, int | None]:
    """(node id, name, version or None) of a resource id such as `bank-a.cn/loans@1`."""
    match = _RESOURCE.match(text)
    if match is None:
        guard("TDN-F-RES-01").refuse(Reason.INVALID_REQUEST, f"not a resource id: {text[:80]!r}", kind)
    version = int(match["version"]) if match["version"] else None
    return node_id(match["node"], kind), resource_name(match["name"], kind), version


def parent(node: str) -> str:
    """The node above: `bank-a.shandong.cn` -> `shandong.cn`; empty above a top."""
    return node.partition(".")[2]


def is_below(node: str, ancestor: str) -> bool:
    """True when `node` lies strictly below `ancestor` in the hierarchy."""
    return node.endswith("." + ancestor)
