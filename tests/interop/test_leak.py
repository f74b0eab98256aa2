"""What hubs, taps, logs, databases, metrics and evidence hold after real jobs: nothing of the data.

One run of a whole network under taps (see `taps_lab.py`); each test asks it one question.
"""

import asyncio
from collections import defaultdict

import pytest

from tdn_interop.algo.kernel import best_kernel
from tdn_interop.algo.suites import X25519_SHA256_ELL2
from tdn_interop.algo.wire import decode_message
from tests.interop.scanner import Scanner, forms
from tests.interop.scanner_sets import View, points, stages, what_helps
from tests.interop.taps_lab import (
    CONTROL,
    HUBS,
    JOBS,
    PARTIES,
    TABLES,
    column,
    results,
    scenario,
    secrets,
)
from tests.mesh import AIRLINE, HUB_1, REGISTRY, RESEARCH, TOP

NODES = (*HUBS, *PARTIES)
KERNEL = best_kernel(X25519_SHA256_ELL2)[0]
FINISHED = ("external", "again", "both", "disjoint", "complete")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return asyncio.run(scenario(tmp_path_factory.mktemp("leak")))


@pytest.fixture(scope="module")
def hidden(world):
    return Scanner(secrets(world))


@pytest.fixture(scope="module")
def visible():
    return Scanner({"control": CONTROL.encode()} | {node: node.encode() for node in NODES[1:]})


def found(scanner, files, wanted=lambda _name: True):
    """What `scanner` sees in some of the files, by file."""
    hits = {name: scanner.names(data) for name, data in files.items() if wanted(name)}
    return {name: names for name, names in hits.items() if names}


def test_jobs_ended_as_they_should(world):
    failures = {job: view["failure"] for job, view in world.jobs.items() if view["failure"]}
    assert {job: view["state"] for job, view in world.jobs.items()} == {
        **dict.fromkeys(FINISHED, "SUCCEEDED"), "no-column": "REJECTED", "changed": "FAILED", "cancelled": "CANCELLED"
    }  # fmt: skip
    assert failures["no-column"]["noticed_by"] in {AIRLINE, REGISTRY}
    assert failures["changed"]["noticed_by"] == AIRLINE
    assert failures["cancelled"]["noticed_by"] == RESEARCH
    assert [error.reason.name for error in world.refusals] == ["INPUT_INVALID", "INVALID_ITEM"]


# -- positive controls: the same scanner, the same haystacks


def test_control_is_seen_on_every_link_in_every_form(world, visible):
    planted = {}
    for name, data in world.haystacks["taps"].items():
        hits = {form for secret, form in visible.find(data) if secret == "control"}
        if hits:
            planted[name.split("-")[0]] = hits
    hubs = [world.lab.config(hub) for hub in HUBS]
    addresses = {address for hub in hubs for address in (hub.listen, hub.enrolment)}
    assert planted == {address: set(forms(CONTROL.encode())) for address in addresses}


def test_control_is_seen_in_every_folder_in_every_form(world, visible):
    for node in NODES:
        for moment in ("live", "left"):
            hits = visible.find(world.haystacks[f"{moment} {node}"]["planted"])
            assert {form for name, form in hits if name == "control"} == set(forms(CONTROL.encode()))


def test_names_are_seen_where_hubs_need_them(world, visible):
    for hub in HUBS:
        captured = found(visible, world.haystacks[f"hub {hub}"])
        links = {name for file, names in captured.items() if file.startswith("link") for name in names}
        assert links >= {AIRLINE, RESEARCH, REGISTRY}
        assert {AIRLINE, RESEARCH, REGISTRY} <= captured["notes.jsonl"]
        assert any(REGISTRY in names for file, names in captured.items() if file.startswith("tunnel"))
    for node in NODES:
        live, left = (world.haystacks[f"{moment} {node}"] for moment in ("live", "left"))
        for written in (live["node.db"] + live["node.db-wal"], left["node.db"]):
            assert visible.names(written) >= {node} - {TOP}
        assert visible.names(left["node.log"]) & set(NODES)
    asked = [hub for hub in HUBS if "control" in visible.names(world.haystacks[f"left {hub}"]["node.log"])]
    assert HUB_1 in asked
    for job in FINISHED:
        assert visible.names(world.haystacks["bundles"][job]) >= {AIRLINE, REGISTRY, *JOBS[job][1]}
    metrics = world.haystacks["metrics"][HUB_1]
    assert Scanner({"name": b"tdn_refusal_total"}).names(metrics)
    assert visible.names(metrics) == set()  # not even who is there


def test_keys_are_seen_in_the_folder_of_their_owner(world, hidden):
    for node in NODES:
        own = {name for name in secrets(world) if name.startswith(f"private/{node}/")}
        assert own >= {f"private/{node}/identity.key", f"private/{node}/tls.key"}
        seen = found(hidden, world.haystacks[f"left {node}"], lambda name: name.endswith(".key"))
        assert set().union(*seen.values()) == own


def test_results_are_where_they_belong_and_nowhere_else(world):
    for job, (tables, receivers, _) in JOBS.items():
        common = set.intersection(*(set(table.ids) for table in TABLES[tables]))
        expected = dict.fromkeys(receivers if job in FINISHED else (), common)
        assert {node: set(column(data, "id")) for node, data in results(world, job).items()} == expected


def test_hubs_carried_all_that_the_parties_said(world):
    """A tap that missed the job would find nothing, too."""
    carried = sum(len(d) for name, d in world.haystacks[f"hub {TOP}"].items() if name.startswith("tunnel"))
    sizes = {
        node: [(line["to"], line["size"]) for line in world.notes(node).about("sent")] for node in PARTIES
    }
    across = [size for node in PARTIES for to, size in sizes[node] if (node == REGISTRY) != (to == REGISTRY)]
    assert len(across) > 50
    assert carried > sum(across)
    for hub in HUBS:
        streams = [d for name, d in world.haystacks[f"hub {hub}"].items() if name.startswith("tunnel")]
        assert {data[:2] for data in streams} == {b"\x16\x03"}  # a TLS handshake record, RFC 8446 section 5.1
    links = sum(len(d) for name, d in world.haystacks["taps"].items())
    assert links > 3 * carried  # three links on the way


# -- nothing leaks


@pytest.mark.parametrize("place", ["taps", *(f"hub {hub}" for hub in HUBS), "bundles", "metrics", "answers"])
def test_nothing_of_the_data_passes(world, hidden, place):
    assert world.haystacks[place]
    assert found(hidden, world.haystacks[place]) == {}


@pytest.mark.parametrize("node", NODES)
def test_logs_hold_nothing(world, hidden, node):
    for moment in ("live", "left"):
        log = world.haystacks[f"{moment} {node}"]["node.log"]
        assert len(log) > 1_000
        assert hidden.names(log) == set()


@pytest.mark.parametrize("hub", HUBS)
def test_hubs_keep_only_their_own_keys(world, hidden, hub):
    for moment in ("live", "left"):
        kept = found(hidden, world.haystacks[f"{moment} {hub}"])
        assert {file: names for file, names in kept.items() if names != {f"private/{hub}/{file}"}} == {}


@pytest.mark.parametrize("node", PARTIES)
def test_parties_keep_only_what_they_may(world, hidden, node):
    """Own keys, digests of own tables and results, and in result files what the job gave: nothing else, in any file."""
    files = {f"{name}.key": {f"private/{node}/{name}.key"} for name in ("identity", "tls", "sealing")}
    own = [name for name in secrets(world) if name.endswith("digest") and name.split("/")[1] == node]
    files |= {database: set(own) for database in ("node.db", "node.db-wal")}
    for job in FINISHED:
        files[f"results/{world.jobs[job]['job_id']}.csv"] = set(given(job, node))
    for moment in ("live", "left"):
        for file, names in found(hidden, world.haystacks[f"{moment} {node}"]).items():
            assert names <= files.get(file, set()), file


def given(job, node):
    """What the result of a job lets a receiver know: common keys, and of its own table the common rows."""
    for table in TABLES[JOBS[job][0]]:
        for key in set.intersection(*(set(t.ids) for t in TABLES[JOBS[job][0]])):
            for what in ("id", "item", *(("tail", "note", "row") if table.owner == node else ())):
                yield f"{table.name}/{table.owner}/{key}/{what}"


def test_refusals_tell_no_value(world, hidden):
    failures = [view["failure"] for view in world.jobs.values() if view["failure"]]
    said = [*map(str, failures), *(f"{error.message} {error.metadata}" for error in world.refusals)]
    assert [hidden.names(text.encode()) for text in said] == [set()] * 5


# -- what the machines of the parties held


@pytest.mark.parametrize("job", ["external", "again", "disjoint", "complete"])
def test_no_holder_had_both_double_masked_sets(world, job):
    a, b = (view(world, job, table) for table in TABLES[JOBS[job][0]])
    assert stages(a.received) == {"sealed": len(b.items)}
    assert stages(b.received) == {"masked": len(a.items), "receiver-key": 1}
    assert what_helps(KERNEL, a, b) == []


def test_two_jobs_on_the_same_tables_share_no_point(world):
    shown = [
        points(
            decode_message(bytes.fromhex(line["data"]))
            for node in PARTIES
            for line in received(world, node, job)
        )
        for job in ("external", "again")
    ]
    # Two sets of points and two of tags, all but the masked points with values; 60 tags come from both sides.
    assert [len(each) for each in shown] == [7 * 240 - 60] * 2
    assert not shown[0] & shown[1]


@pytest.mark.parametrize("node", PARTIES)
def test_overlap_does_not_show_in_what_is_sent(world, node):
    """Jobs of equal sizes, one without overlap and one where all is common: equal messages, of every kind.

    Attestations are left out: they prove places in logs, and logs grow.
    """
    disjoint, complete = (sent(world, job, node) for job in ("disjoint", "complete"))
    assert (
        {"Propose", "psi"} <= set(disjoint)
        if node == RESEARCH
        else {"Approval", "psi", "Stated"} <= set(disjoint)
    )
    assert disjoint == complete


@pytest.mark.parametrize("holder", [AIRLINE, REGISTRY])
def test_set_sizes_do_show(world, holder):
    assert sent(world, "external", holder)["psi"] != sent(world, "complete", holder)["psi"]


def view(world, job, table):
    """What the owner of a table held in a job; the first secret of a holder is its scalar."""
    drawn = world.notes(table.owner).about("secret", agreement=world.agreement(job))
    messages = [decode_message(bytes.fromhex(line["data"])) for line in received(world, table.owner, job)]
    return View(table.items, bytes.fromhex(drawn[0]["value"]), messages)


def received(world, node, job):
    return world.notes(node).about("received", agreement=world.agreement(job))


def sent(world, job, node):
    """Receivers and sizes of the messages of a job, by what they say; those to one node in order."""
    told = defaultdict(list)
    for line in world.notes(node).about("sent", job=world.jobs[job]["job_id"]):
        told[line["what"]].append((line["to"], line["size"]))
    return {
        what: sorted(sizes, key=lambda size: size[0]) for what, sizes in told.items() if what != "Attested"
    }
