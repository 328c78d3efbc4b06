from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("ray")

from ray.exceptions import RayError, RaySystemError, RayTaskError, WorkerCrashedError

from ral_system.actors import nodes
from ral_system.errors import SetupError
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


@pytest.mark.parametrize("apart", ["with a model", "without a model"])
def test_every_node_but_the_drivers_reads_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: str
) -> None:
    """Also one that holds no model, for example that of the verifiers alone: it writes logs into the run folder."""
    run, elsewhere, model, looked = tmp_path / "run", tmp_path / "elsewhere", tmp_path / "model", []
    model.mkdir()
    (model / "config.json").write_text("{}")

    def task_on(node: str, look: object) -> SimpleNamespace:
        def remote(folder: Path, *given: Any) -> tuple[str, nodes.Sight]:
            looked.append(node)
            return node, nodes.look(elsewhere if node == apart else folder, *given)

        return SimpleNamespace(remote=remote)

    monkeypatch.setattr(nodes, "_TOKEN_WAIT_S", 0.0)
    monkeypatch.setattr(nodes, "task_on", task_on)
    monkeypatch.setattr(nodes, "address", lambda node: node)
    monkeypatch.setattr(nodes, "_answers", lambda looks, *_: iter(looks))
    monkeypatch.setattr(nodes.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "driver's"))
    bundles = ["driver's", "with a model", "without a model", "with a model"], [[model], [model], [], []]
    with pytest.raises(SetupError, match=f"^node {apart} does not see the run folder {elsewhere} of the driver's node"):
        nodes.stage_models(*bundles, (), run, 1.0, print)
    looked.clear()
    apart = "nowhere"
    found = nodes.stage_models(*bundles, (), run, 1.0, print)
    assert found == [{model: model}, {model: model}, {}, {model: model}]
    assert looked == ["with a model", "without a model"]
    monkeypatch.setattr(ModelCopy, "of", lambda folder: pytest.fail("no other node compares it"))
    assert nodes.stage_models(["driver's"], [[model]], (), run, 1.0, print) == [{model: model}]
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


IMPORT = ModuleNotFoundError("No module named 'ral_system'")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RayTaskError("look", f"RuntimeError: … failed to import on the worker. …\n{IMPORT!r}", RuntimeError("…")),
            f"cannot run this version of ral-system ({IMPORT!r}); install the driver's version",
        ),
        (
            RayTaskError("look", "traceback: …\nlast", RaySystemError(IMPORT, "…")),
            "cannot run this version of ral-system (last); install the driver's version",
        ),
        (
            RaySystemError(AttributeError("Can't get attribute 'Sight'")),
            "cannot run this version of ral-system (RaySystemError: System error: Can't get attribute 'Sight'); "
            "install",
        ),
        (
            RayTaskError("look", "…\nPermissionError: [Errno 13] /runs", PermissionError(13, "/runs")),
            "failed the start-up check (PermissionError: [Errno 13] /runs)",
        ),
        (
            WorkerCrashedError(),
            "did not finish the start-up check (WorkerCrashedError: The worker died unexpectedly while executing this "
            "task. Check python-core-worker-*.log files for more information.); `ray status` shows which nodes",
        ),
    ],
)
def test_a_version_is_blamed_only_for_what_cannot_be_imported(error: RayError, says: str) -> None:
    message = str(nodes._failure("10.0.0.7", error))
    assert message.startswith(f"node 10.0.0.7 {says}") and "\n" not in message
    assert message.count("install") == says.count("install")


def test_nodes_that_are_waited_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, first in the line that is repeated, then in the error."""
    now, said = iter((0.0, 0.0, 9.0)), []
    monkeypatch.setattr(nodes, "address", lambda node: f"10.0.0.{node}")
    monkeypatch.setattr(nodes, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(nodes.ray, "wait", lambda refs, **limits: ([], refs))
    with pytest.raises(SetupError, match=r"^nodes 10\.0\.0\.1, 10\.0\.0\.2 did not find the run folder and the models"):
        list(nodes._answers({"a": "1", "b": "2"}, 5.0, said.append))
    assert said == ["waiting up to 5 s for the models on nodes 10.0.0.1, 10.0.0.2"]
    assert nodes._named(["1"]) == "node 10.0.0.1"


def test_ranks_that_hold_micro_batches_together_on_several_nodes_are_named() -> None:
    assert nodes.scattered(["a", "a", "b", "b"], 2) is None is nodes.scattered(["a", "b", "c"], 1)
    line = nodes.scattered(["a", "a", "a", "b", "b", "b"], 2)
    assert line is not None
    assert line.startswith("warning: learner.sequence_parallel=2: learner ranks 2 to 3 are on several nodes")


def test_the_meeting_is_on_loopback_only_if_all_processes_are_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"a": "192.168.7.1", "b": "192.168.7.2"}
    monkeypatch.setattr(
        nodes.ray, "nodes", lambda: [{"NodeID": n, "NodeManagerAddress": a} for n, a in addresses.items()]
    )
    assert nodes.meeting_host(["b", "b"]) == "127.0.0.1"
    assert nodes.meeting_host(["b", "b", "a"]) == "192.168.7.2"  # two learner ranks on b, an engine on a
