import pytest

from tdn_interop.algo.catalogue import CATALOGUE, algorithm, offer
from tdn_interop.algo.handshake import check_proposal
from tdn_interop.algo.suites import SUITES
from tdn_interop.errors import ConfigError, NegotiationFailed, Reason
from tests.algo.parties import task


@pytest.mark.parametrize("spec", CATALOGUE.values(), ids=lambda spec: spec.id)
def test_every_algorithm_is_stated_in_full(spec):
    assert algorithm(spec.id) is spec
    assert set(spec.leakage) == set(spec.roles)
    assert set(spec.holders) <= set(spec.roles)
    assert all(receivers <= set(spec.roles) for receivers in spec.receivers)
    assert set(spec.suites) <= set(SUITES)
    texts = [spec.security_model.text, *spec.leakage.values(), *spec.limits]
    assert all(len(text) == 2 and all(text) for text in texts)


def test_the_offer_is_a_valid_proposal_of_everything():
    proposal = offer("bank-a.cn")
    check_proposal(proposal)
    assert proposal.party == "bank-a.cn"
    assert [entry.algorithm for entry in proposal.algorithms] == list(CATALOGUE)


def test_every_role_and_receiver_set_makes_a_machine_of_that_role():
    for spec in CATALOGUE.values():
        for receivers in spec.receivers:
            for role in spec.roles:
                items = (b"x",) if role in spec.holders else ()
                machine = spec.machine(role, task(), items, receivers)
                assert machine.state is type(machine).initial


@pytest.mark.parametrize(
    ("algorithm_id", "role", "items", "receivers"),
    [
        ("psi.ecdh/1", "c", (), "a"),
        ("psi.ecdh/1", "a", (), ""),
        ("psi.ecdh/1", "a", (), "ac"),
        ("psi.ecdh-external/1", "a", (), "receiver"),
        ("psi.ecdh-external/1", "holder_a", (), "holder_a"),
        ("psi.ecdh-external/1", "receiver", (b"x",), "receiver"),
    ],
)
def test_what_the_parties_cannot_have_agreed_is_refused(algorithm_id, role, items, receivers):
    wanted = frozenset(receivers.split()) if len(receivers) > 2 else frozenset(receivers)
    with pytest.raises(ConfigError) as caught:
        algorithm(algorithm_id).machine(role, task(), items, wanted)
    assert caught.value.reason is Reason.UNSUPPORTED_PARAMS


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(NegotiationFailed) as caught:
        algorithm("psi.magic/1")
    assert caught.value.reason is Reason.UNSUPPORTED_ALGO
