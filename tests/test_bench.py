"""What the benches make of their rounds; they themselves run by `make bench`."""

from xml.etree import ElementTree as ET

from bench.chart import bars
from bench.mesh import Round
from bench.relay import facts, name
from bench.result import rows

GB = 10**9
ROUNDS = {
    "floor": [Round(GB, 1.0, {"a": 0.5}), Round(GB, 4.0, {"a": 0.4}), Round(GB, 2.0, {"a": 0.9})],
    "ours": [Round(GB, 4.0, {"a": 1.0, "<b>": 2.0})],
}


def test_the_median_rate_and_the_least_cpu():
    floor, ours = rows(ROUNDS, "floor")
    assert (floor.mb_per_s, floor.of_floor, floor.cpu_s_per_gb) == (500.0, 1.0, {"a": 0.4})
    assert (ours.mb_per_s, ours.of_floor, ours.cpu_s_per_gb) == (250.0, 0.5, {"a": 1.0, "<b>": 2.0})


def test_the_picture_is_xml_and_shows_every_process():
    root = ET.fromstring(bars("A & B", rows(ROUNDS, "floor")))
    titles = [one.text for one in root.iter() if one.tag.endswith("title")]
    assert titles == ["a: 0.40 s/GB", "a: 1.00 s/GB", "<b>: 2.00 s/GB"]


def test_what_a_relay_costs():
    hubs = {"shandong.cn": 2.0, "cn": 4.0, "guangdong.cn": 3.0}
    found = rows({name(n): [Round(GB, n + 1.0, hubs)] for n in range(4)}, name(0))
    assert facts(found) == {
        "relay_cpu_s_per_gb": 2.5,
        "relay_gb_per_s_per_core": 0.4,
        "second_hop_costs": 1 - 333.3 / 500.0,
    }
