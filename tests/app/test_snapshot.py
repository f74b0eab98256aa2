"""What a node tells its owner of one moment, and what was refused lately."""

from tdn_interop.app.control.control_client import document
from tdn_interop.app.control.snapshot_wire import snapshot_of
from tdn_interop.app.telemetry import Recent
from tdn_interop.errors import Reason, Refused
from tests.interop.forge import until
from tests.mesh import AIRLINE, HUB_1, REGISTRY, RESEARCH, TOP, mini_mesh


async def seen(mesh, node):
    return document(await snapshot_of(mesh.nodes[node]))


async def test_a_snapshot_of_every_role(tmp_path):
    async with mini_mesh(tmp_path) as mesh:
        for node in mesh.nodes.values():
            node.mesh.admits = lambda _peer, _topic: True
        await mesh.nodes[AIRLINE].mesh.channels.send(REGISTRY, "secret-topic", b"secret content", 10)
        await until(lambda: mesh.nodes[HUB_1].mesh.tunnels.passing)
        mesh.nodes[HUB_1].mesh.refused(Refused(Reason.POLICY_DENIED, "not you"))

        hub, child = await seen(mesh, HUB_1), await seen(mesh, AIRLINE)
        links = {(one["neighbour"], one["direction"], one["linked"]) for one in hub["links"]}
        assert links == {(TOP, "up", True), (AIRLINE, "down", True), (RESEARCH, "down", True)}
        assert all(0 <= hub["at_ms"] - one["since_at_ms"] < 60_000 for one in hub["links"])
        (tunnel,) = hub["tunnels"]
        assert (tunnel["source"], tunnel["destination"]) == (AIRLINE, REGISTRY)
        assert tunnel["forward_bytes"] > 0
        assert (hub["role"], hub["sessions"], hub["draining"]) == ("hub", [], False)
        assert {"reason": "POLICY_DENIED", "count": 1} in hub["refusals"]

        (session,) = [one for one in child["sessions"] if one["peer"] == REGISTRY]
        assert (session["state"], session["credit_bytes"] > 0) == ("open", True)
        assert [one["source"] for one in child["tunnels"]] == [AIRLINE]
        assert hub["certificate_expires_at_ms"] > hub["at_ms"]
        assert "secret" not in f"{hub}{child}"


def test_a_minute_is_a_minute():
    now = [0.0]
    recent = Recent(lambda: now[0])
    for second in range(0, 120, 10):
        now[0] = second
        for _ in range(3):
            recent.add("REVOKED")
        recent.add("REPLAY")
    assert recent.counts() == [("REVOKED", 18), ("REPLAY", 6)]
    assert len(recent._seconds) == 6
    now[0] += 60
    assert recent.counts() == []
