"""Real logs in real databases, from the events of two parties to a bundle that verifies offline."""

import pytest

from tdn_interop import ids
from tdn_interop.app.evidence import bundle
from tdn_interop.app.evidence.anchor import take_head
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import VERDICT_KIND, Attestation, Outcome, digest
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.members import MemberRow, put
from tdn_interop.errors import Reason, TdnError
from tests.app.evidence_mesh import JOB, Mesh, consent, statement, verdict

PARTIES = ["bank.shandong.cn", "shop.beijing.cn"]


@pytest.fixture
async def logs(tmp_path):
    """The log of every node of a mesh with two hubs, in a file each, by node id; and the mesh."""
    mesh, found = Mesh.of(*PARTIES), {}
    for name, node in mesh.nodes.items():
        found[name] = await EvidenceLog.open(Store.open(f"sqlite:///{tmp_path}/{name}.db"), node.identity)
    for name in found.keys() - {"cn"}:
        member = MemberRow(name, "child", mesh.key(name), "ACTIVE", None, 1)
        await found[ids.parent(name)].store.run(lambda c, m=member: put(c, m))
    yield mesh, found
    for log in found.values():
        log.store.close()


async def anchor(logs, name, inclusion):
    """What a node does with a head: offer it to the node above, prove again from where that one stands."""
    chain = [inclusion]
    while parent := ids.parent(name):
        try:
            link = await take_head(logs[parent], name, await logs[name].offer(chain[-1].head))
        except TdnError as error:
            if error.reason is not Reason.STATE_CONFLICT:
                raise
            offer = await logs[name].offer(chain[-1].head, int(error.metadata["lastSize"]))
            link = await take_head(logs[parent], name, offer)
        chain.append(link)
        name = parent
    return tuple(chain)


async def test_from_events_to_a_bundle(logs):
    mesh, logs = logs
    for round_ in range(3):
        end = verdict(mesh, [statement(mesh, n, coordinator=PARTIES[0], epoch=round_ + 1) for n in PARTIES])
        attestations = []
        for name in PARTIES:
            await logs[name].append("job.started", JOB)
            index = await logs[name].append(VERDICT_KIND, JOB, statement_sha256=digest(end))
            chain = await anchor(logs, name, await logs[name].inclusion(index))
            attestations.append(Attestation(await logs[name].event(index), chain))
        made = bundle.build(
            end, [consent(mesh, n, end.signer, PARTIES) for n in PARTIES], attestations, mesh.records.values()
        )
        found = bundle.verify(made, mesh.key("cn"))
        assert found.outcome is Outcome.SUCCEEDED
        assert [p.logs[-1].size for p in found.parties] == [2 * round_ + 1, 2 * round_ + 2]
    assert {name: await log.audit() for name, log in logs.items()} == {
        "bank.shandong.cn": 6, "shop.beijing.cn": 6, "shandong.cn": 3, "beijing.cn": 3, "cn": 6,
    }  # fmt: skip
