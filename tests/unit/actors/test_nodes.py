from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray")

from ral_system.actors import nodes
from ral_system.media.images import ImageLimits
from ral_system.media.store import MediaStore, originals
from ral_system.models.staging import ModelCopy


def test_a_node_that_sees_another_folder_is_told_by_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_TOKEN_WAIT_S", 0.1)
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    with nodes._token(run) as token:
        assert nodes.look(run, token, (), ()) == nodes.Sight((), None)
        problem = nodes.look(other, token, (), ()).problem
        assert problem is not None
        assert f"does not see the run folder {other}" in problem
        assert "set runs_dir to a path on a file system that every node mounts" in problem
        assert nodes.look(tmp_path / "absent", token, (), ()).problem is not None
    assert nodes.look(run, token, (), ()).problem is not None
    assert list(run.iterdir()) == []


def test_a_token_that_is_not_ours_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_TOKEN_WAIT_S", 0.1)
    with nodes._token(tmp_path) as token:
        next(tmp_path.iterdir()).write_text("0" * 32)
        assert nodes.look(tmp_path, token, (), ()).problem is not None


def test_a_model_that_is_not_there_is_the_problem_of_the_node(tmp_path: Path) -> None:
    with nodes._token(tmp_path) as token:
        sight = nodes.look(tmp_path, token, (ModelCopy(tmp_path / "absent", "00", None, None),), ())
    assert sight.problem == (f"cannot read model folder {tmp_path}/absent; put it on a volume that every node mounts")


def test_a_picture_that_a_node_cannot_read_is_named_with_how_many(tmp_path: Path) -> None:
    store, paths = MediaStore(tmp_path / "run" / "media"), [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.new("RGB", (28, 28), (i, 0, 0)).save(path)
        store.put_image(path, ImageLimits())
    store.put(Image.new("RGB", (28, 28)))  # generated: in the run folder itself
    found = originals(store.folder)
    assert sorted(found) == paths and len(originals(store.folder, at_most=2)) == 2
    with nodes._token(tmp_path / "run") as token:
        assert nodes.look(tmp_path / "run", token, (), found).problem is None
        found[1].unlink()
        found[2].unlink()
        assert nodes.look(tmp_path / "run", token, (), found).problem == (
            f"cannot read {found[1]}, a picture or video of data.sources (2 of 4 that were tried are missing); mount "
            "the folder under the same path on every node"
        )
    assert originals(tmp_path / "absent") == []


def test_ranks_that_hold_micro_batches_together_on_several_nodes_are_named() -> None:
    assert nodes.scattered(["a", "a", "b", "b"], 2) is None is nodes.scattered(["a", "b", "c"], 1)
    line = nodes.scattered(["a", "a", "a", "b", "b", "b"], 2)
    assert line is not None
    assert line.startswith("warning: learner.sequence_parallel=2: learner ranks 2 to 3 are on several nodes")
