"""RFC 9162 Merkle trees: published vectors, every proof verifies, no altered proof does."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.app.evidence.merkle import (
    EMPTY_ROOT,
    Tree,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((pathlib.Path(__file__).parent.parent / "vectors" / "rfc9162_merkle.json").read_text())
LEAVES = [bytes.fromhex(x) for x in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(x) for x in VECTORS["roots"]]


def tree_of(leaves):
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return tree


def numbered(count):
    return [n.to_bytes(4) for n in range(count)]


def test_published_hashes_and_roots():
    assert [leaf_hash(x).hex() for x in LEAVES] == VECTORS["leaf_hashes"]
    tree = tree_of(LEAVES)
    for size, root in enumerate(ROOTS):
        assert tree.root(size) == root == root_of(LEAVES[:size])


@pytest.mark.parametrize("v", VECTORS["inclusion"], ids=lambda v: f"{v['index']}of{v['size']}")
def test_published_inclusion_proofs(v):
    path = tuple(bytes.fromhex(p) for p in v["path"])
    assert tree_of(LEAVES).inclusion(v["index"], v["size"]) == path
    assert verify_inclusion(leaf_hash(LEAVES[v["index"]]), v["index"], v["size"], path, ROOTS[v["size"]])


@pytest.mark.parametrize("v", VECTORS["consistency"], ids=lambda v: f"{v['first']}to{v['second']}")
def test_published_consistency_proofs(v):
    first, second = v["first"], v["second"]
    path = tuple(bytes.fromhex(p) for p in v["path"])
    assert tree_of(LEAVES).consistency(first, second) == path
    assert verify_consistency(first, second, ROOTS[first], ROOTS[second], path)


def test_every_proof_of_every_size_verifies():
    leaves = numbered(33)
    tree = tree_of(leaves)
    for size in range(34):
        for index in range(size):
            path = tree.inclusion(index, size)
            assert verify_inclusion(leaf_hash(leaves[index]), index, size, path, root_of(leaves[:size]))
        for first in range(size + 1):
            path = tree.consistency(first, size)
            assert verify_consistency(first, size, root_of(leaves[:first]), root_of(leaves[:size]), path)


sizes = st.integers(1, 300)


@given(size=sizes, data=st.data())
def test_altered_inclusion_fails(size, data):
    leaves = numbered(size)
    tree, index = tree_of(leaves), data.draw(st.integers(0, size - 1))
    leaf, path, root = leaf_hash(leaves[index]), tree.inclusion(index, size), tree.root(size)
    assert verify_inclusion(leaf, index, size, path, root)
    for wrong in range(size + 2):
        if wrong != index:
            assert not verify_inclusion(leaf, wrong, size, path, root)
    assert not verify_inclusion(leaf, index, size, (*path, root), root)
    assert not verify_inclusion(leaf, index, size, path[:-1], root) or not path
    assert not verify_inclusion(leaf, -1, size, path, root)
    values = [leaf, *path, root]
    at, byte, bit = (data.draw(st.integers(0, n)) for n in (len(values) - 1, 31, 7))
    values[at] = flipped(values[at], byte, bit)
    assert not verify_inclusion(values[0], index, size, values[1:-1], values[-1])


@given(second=sizes, data=st.data())
def test_altered_consistency_fails(second, data):
    leaves = numbered(second)
    tree, first = tree_of(leaves), data.draw(st.integers(1, second))
    old, new, path = tree.root(first), tree.root(second), tree.consistency(first, second)
    assert verify_consistency(first, second, old, new, path)
    assert not verify_consistency(first, second, old, new, (*path, new))
    assert not verify_consistency(first, second, old, new, (new, *path))
    if first != second:
        assert not verify_consistency(first, second, old, new, path[:-1])
        assert not verify_consistency(second, first, new, old, path)
        assert not verify_consistency(first, second, new, old, path)
    values = [old, *path, new]
    at, byte, bit = (data.draw(st.integers(0, n)) for n in (len(values) - 1, 31, 7))
    values[at] = flipped(values[at], byte, bit)
    assert not verify_consistency(first, second, values[0], values[-1], values[1:-1])


def flipped(value, byte, bit):
    changed = bytearray(value)
    changed[byte] ^= 1 << bit
    return bytes(changed)


@given(kept=st.integers(0, 70), dropped=st.integers(0, 70), again=st.integers(0, 70))
def test_truncating_leaves_the_tree_of_the_kept_leaves(kept, dropped, again):
    leaves = numbered(kept)
    tree = tree_of(leaves + [b"gone"] * dropped)
    tree.truncate(kept)
    for n in range(again):
        tree.append(leaf_hash(b"new%d" % n))
    leaves += [b"new%d" % n for n in range(again)]
    assert tree.size == len(leaves)
    assert tree.root(tree.size) == root_of(leaves)
    assert tree.root(kept) == root_of(leaves[:kept])


@given(
    other=st.lists(st.binary(max_size=3), max_size=12), leaves=st.lists(st.binary(max_size=3), max_size=12)
)
def test_different_leaves_have_different_roots(leaves, other):
    assert (root_of(leaves) == root_of(other)) == (leaves == other)


def test_a_leaf_cannot_pass_for_an_interior_node():
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


def test_the_empty_tree_is_a_prefix_of_every_tree_and_of_nothing_else():
    root = root_of([b"a"])
    assert verify_consistency(0, 1, EMPTY_ROOT, root, ())
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, ())
    assert not verify_consistency(0, 1, root, root, ())
    assert not verify_consistency(0, 0, EMPTY_ROOT, root, ())
    assert not verify_consistency(0, 1, EMPTY_ROOT, root, (root,))
    assert not verify_consistency(1, 0, root, EMPTY_ROOT, ())


def test_hashes_of_another_length_prove_nothing():
    root = root_of([b"a", b"b"])
    assert not verify_inclusion(leaf_hash(b"a"), 0, 2, (leaf_hash(b"b") + b"x",), root)
    assert not verify_consistency(1, 2, leaf_hash(b"a"), root, (b"",))


@pytest.mark.parametrize("ask", [
    lambda t: t.root(4), lambda t: t.inclusion(3, 3), lambda t: t.inclusion(0, 4), lambda t: t.inclusion(-1, 3),
    lambda t: t.consistency(3, 2), lambda t: t.consistency(1, 4),
])  # fmt: skip
def test_nothing_is_proven_about_leaves_that_are_not_there(ask):
    with pytest.raises(IndexError):
        ask(tree_of(numbered(3)))
