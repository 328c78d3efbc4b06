import pytest

pytest.importorskip("ray")

from ral_system.actors.cluster import LOOPBACK
from ral_system.actors.learner import rendezvous

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in INTERFACES:
        monkeypatch.delenv(name, raising=False)


def test_ranks_meet_at_their_master() -> None:
    found = rendezvous(2, 4, ("192.168.7.1", 2950), "192.168.7.1")
    assert found == {
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "192.168.7.1",
        "MASTER_PORT": "2950",
    }


@pytest.mark.parametrize("host", ["192.168.7.1", "10.0.0.1"])
def test_learners_of_one_node_send_weights_to_engines_on_others(host: str) -> None:
    """The interfaces of the ranks' own rendezvous are also those of the weights."""
    assert not set(INTERFACES) & set(rendezvous(0, 4, (LOOPBACK, 2950), host))


def test_a_run_on_one_node_stays_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendezvous(0, 4, (LOOPBACK, 2950), LOOPBACK)
    assert [found[name] for name in INTERFACES] == ["lo", "lo"]
    monkeypatch.setenv(INTERFACES[0], "eth1")
    found = rendezvous(0, 4, (LOOPBACK, 2950), LOOPBACK)
    assert [found[name] for name in INTERFACES] == ["eth1", "lo"]
