"""What travels: nothing that every engine holds, and whatever one may not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from ral_system.errors import ActorError, WeightSyncError, WeightTransferError
from ral_system.types import UNREAD, TensorDigest, WeightManifest
from ral_system.weights.publish import Publisher


def manifest(version: int, **checksums: str) -> WeightManifest:
    return WeightManifest(version, {name: TensorDigest((1,), "float32", c) for name, c in checksums.items()})


class Sides:
    """A learner with the weights `own`, and engines with `engines`; the offers that went from one to the others.

    The first publication reads all weights; later those that are not frozen are read when they travel.
    """

    keeps_offers = False

    def __init__(self, own: dict[str, str], *engines: dict[str, str]) -> None:
        self.own, self.engines = own, list(engines)
        self.all_read = False
        self.offers: list[tuple[int, list[str]]] = []
        self.sent = 0
        self.failures = 0

    def publish(self, version: int) -> WeightManifest:
        unread = [name for name in self.own if self.all_read and name != "frozen"]
        self.all_read = True
        return manifest(version, **self.own | dict.fromkeys(unread, UNREAD))

    def offer(self, published: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Any]:
        self.offers.append((published.version, list(names)))
        offer = published, names, dict(self.own)
        return self.read(offer) if self.keeps_offers else {}, offer

    def send(self, offer: Any) -> Callable[[], Mapping[str, TensorDigest]]:
        def wait() -> Mapping[str, TensorDigest]:
            self.sent += 1
            return {} if self.keeps_offers else self.read(offer)

        return wait

    def read(self, offer: Any) -> Mapping[str, TensorDigest]:
        published, names, values = offer
        return manifest(published.version, **{name: values[name] for name in names}).tensors

    def held(self, published: WeightManifest) -> Sequence[WeightManifest]:
        return [manifest(published.version, **engine) for engine in self.engines]

    def load_weights(self, offer: Any) -> Sequence[WeightManifest]:
        published, names, values = offer
        for engine in self.engines:
            engine |= {name: values[name] for name in names[: 1 if self.failures else None]}
        if self.failures:
            self.failures -= 1
            raise WeightTransferError("the cable is out")
        return [manifest(published.version, **{n: engine[n] for n in names}) for engine in self.engines]


def publisher(sides: Sides) -> Publisher:
    return Publisher(sides, sides)  # type: ignore[arg-type]


def test_weights_from_the_same_disk_do_not_travel_and_frozen_ones_travel_once() -> None:
    sides = Sides({"frozen": "f", "trained": "0"}, {"frozen": "f", "trained": "0"}, {"frozen": "f", "trained": "0"})
    publish = publisher(sides)
    assert publish.publish(0) == 4  # two tensors in two engines
    for version in (1, 2):
        sides.own["trained"] = str(version)
        assert publish.publish(version) == 4
    assert sides.offers == [(0, []), (1, ["trained"]), (2, ["trained"])] and sides.sent == 3
    assert sides.engines == [sides.own] * 2


def test_after_a_resume_what_one_engine_lacks_of_frozen_weights_travels_once() -> None:
    sides = Sides({"frozen": "f", "trained": "9"}, {"frozen": "f", "trained": "0"}, {"frozen": "other"})
    publish = publisher(sides)
    publish.publish(4)
    publish.publish(5)
    assert sides.offers == [(4, ["frozen", "trained"]), (5, ["trained"])]


def test_until_an_offer_is_loaded_its_tensors_are_not_known_to_be_held() -> None:
    sides = Sides({"frozen": "f", "trained": "1"}, {"frozen": "o", "trained": "1"})
    sides.keeps_offers = True
    publish = publisher(sides)
    first = publish.offer(1)
    sides.own["trained"] = "2"
    second = publish.offer(2)
    publish.load(first)
    third = publish.offer(3)
    for published in (second, third):
        assert publish.load(published) == 2
    assert [names for _, names in sides.offers] == [["frozen"], ["frozen", "trained"], ["frozen", "trained"]]
    assert sides.engines == [{"frozen": "f", "trained": "2"}]
    publish.publish(4)
    assert sides.offers[-1] == (4, ["trained"])


def test_a_transfer_that_fails_is_tried_once_more_with_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    sides = Sides({"a": "1", "b": "1"}, {"a": "0", "b": "0"})
    publish = publisher(sides)
    sides.failures = 1
    assert publish.publish(1) == 2
    assert sides.offers == [(1, ["a", "b"])] * 2 and sides.engines == [sides.own] and sides.sent == 2
    assert capsys.readouterr().err == "the cable is out; sending them again\n"
    sides.own["a"], sides.failures = "2", 2
    with pytest.raises(WeightTransferError, match="the cable is out"):
        publish.publish(2)


def test_an_engine_that_dies_ends_the_wait_for_the_sender() -> None:
    class Dying(Sides):
        def load_weights(self, offer: Any) -> Sequence[WeightManifest]:
            raise ActorError("rollout 1 died")

    sides = Dying({"a": "1"}, {"a": "0"})
    with pytest.raises(ActorError, match="rollout 1 died"):
        publisher(sides).publish(1)
    assert sides.sent == 0


@pytest.mark.parametrize("keeps_offers", [True, False])
def test_engines_are_compared_with_what_was_read_on_the_way(keeps_offers: bool) -> None:
    class Damaging(Sides):
        def load_weights(self, offer: Any) -> Sequence[WeightManifest]:
            published, names, values = offer
            return super().load_weights((published, names, values | {"a": "damaged"}))

    sides = Damaging({"a": "1", "b": "1"}, {"a": "1", "b": "1"})
    sides.keeps_offers = keeps_offers
    publish = publisher(sides)
    assert publish.publish(0) == 2
    with pytest.raises(WeightSyncError, match=r"weights 1: the engine holds other weights \(1 different: a "):
        publish.publish(1)


def test_an_engine_that_holds_something_else_afterwards_is_an_error() -> None:
    class Forgetful(Sides):
        def load_weights(self, offer: Any) -> Sequence[WeightManifest]:
            return [manifest(offer[0].version, a="0")]

    with pytest.raises(WeightSyncError, match=r"weights 1: the engine holds other weights \(1 different: a "):
        publisher(Forgetful({"a": "1"}, {"a": "0"})).publish(1)
