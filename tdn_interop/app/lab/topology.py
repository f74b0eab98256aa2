"""The networks that a lab can make: who is there, and who keeps a link to whom besides its parent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A node of a topology; `links` are its links besides that to its parent.

    A child that does not listen is reached through the links it keeps.
    """

    id: str
    role: str
    links: tuple[str, ...] = ()
    listens: bool = True


MINI = (
    Place("cn", "top"),
    Place("shandong.cn", "hub"),
    Place("guangdong.cn", "hub"),
    Place("airline.shandong.cn", "child"),
    Place("research.shandong.cn", "child"),
    Place("registry.guangdong.cn", "child", listens=False),
)

# No node but a parent of children with one link is the only way for anybody: any top and any hub may fail.
REGION = (
    Place("cn", "top", ("hk",)),
    Place("hk", "top"),
    Place("shandong.cn", "hub", ("guangdong.cn",)),
    Place("guangdong.cn", "hub", ("kowloon.hk",)),
    Place("kowloon.hk", "hub"),
    Place("central.hk", "hub", ("shandong.cn",)),
    Place("airline.shandong.cn", "child", ("guangdong.cn",)),
    Place("harbour.shandong.cn", "child", ("central.hk",)),
    Place("research.shandong.cn", "child"),
    Place("bank.guangdong.cn", "child", ("shandong.cn",)),
    Place("customs.guangdong.cn", "child"),
    Place("registry.guangdong.cn", "child", listens=False),
    Place("clinic.kowloon.hk", "child", ("guangdong.cn",), listens=False),
    Place("insurer.kowloon.hk", "child", ("central.hk",)),
    Place("port.kowloon.hk", "child"),
    Place("broker.central.hk", "child", ("kowloon.hk",)),
    Place("exchange.central.hk", "child"),
    Place("archive.central.hk", "child", listens=False),
)

TOPOLOGIES = {"mini": MINI, "region": REGION}
