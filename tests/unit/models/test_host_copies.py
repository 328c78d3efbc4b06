import torch

from ral_system.models.host_copies import HostCopies


def test_tensors_come_back_as_they_left_and_are_the_same_objects() -> None:
    weight, moment = torch.nn.Parameter(torch.arange(6.0)), torch.ones(3)
    host = HostCopies(torch.device("cpu"))
    for cycle in range(3):
        host.leave({"moment": moment})
        host.leave({"moment": moment, "weight": weight})  # what has left stays away
        assert set(host._away) == {"moment", "weight"}
        host.come_back()
        assert not host._away
        assert torch.equal(weight, torch.arange(6.0) + cycle) and moment.tolist() == [1, 1, 1]
        with torch.no_grad():
            weight.add_(1)  # trained in between
    assert len(host._copies) == 2


def test_what_is_not_on_the_device_stays_where_it_is() -> None:
    host = HostCopies(torch.device("meta"))
    host.leave({"elsewhere": torch.ones(2)})
    assert not host._away
