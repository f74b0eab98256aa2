"""What a node tells others about itself when something is wrong with it."""

import pytest

from tdn_interop.errors import ConfigError, Reason, TdnError, guard
from tests.mesh import HUB_1, MINI, RESEARCH, TOP, mini_mesh

MEMBERS = tuple(member for member in MINI if member[0] in {TOP, HUB_1, RESEARCH})
PLACE = "a folder of the hub"


async def test_the_troubles_of_a_hub_stay_with_its_owner(tmp_path, monkeypatch):
    async with mini_mesh(tmp_path, MEMBERS) as mesh:
        hub, child = mesh.nodes[HUB_1].mesh, mesh.nodes[RESEARCH].mesh

        async def broken(_node):
            guard("TDN-F-RCV-01").refuse(
                Reason.STORE_UNAVAILABLE, f"{PLACE} is full", ConfigError, path=PLACE
            )

        monkeypatch.setattr(hub.adjacency.routing, "_find", broken)
        with pytest.raises(TdnError) as told:
            await child.resolve(f"nobody.{HUB_1}")
        assert told.value.reason is Reason.STORE_UNAVAILABLE
        assert PLACE not in str(told.value) + str(told.value.metadata)
        monkeypatch.undo()
        with pytest.raises(TdnError) as answer:
            await child.resolve(f"nobody.{HUB_1}")
        assert answer.value.reason is Reason.NO_ROUTE
