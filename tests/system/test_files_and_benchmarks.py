"""Files of the user's own, and a benchmark, in one process: trained on, gone on with, evaluated."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ral_system.tasks.visual_search import VisualSearch
from tests.examples import EXAMPLES
from tests.system.video_r1_files import BAD, overrides, write_video_r1

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

LOCAL = ("experiment=smoke", "cluster=local", "cluster.threads_per_process=1")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_r1(tmp_path_factory.mktemp("data") / "released")


def test_files_are_trained_on_and_every_row_is_accounted_for(
    commands, left, uninterrupted, rows: Path, tmp_path: Path
) -> None:
    start = uninterrupted.folder / "models" / "perceive"
    given = (*LOCAL, *overrides(rows), "stages=[sft,rl]", f"start_model={start}", "name=files")
    done = commands("ral-train", *given, "algorithm.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = left(tmp_path / "runs" / "files")
    counts = json.loads((run.folder / "data" / "prepared.json").read_text())
    assert counts["rows"] == 40 + BAD
    assert sum(counts["used"].values()) == 40
    assert counts["left_out"] == {"broken": 3, "duplicate": 1}
    quarantine = {line["given_id"]: line["reason"] for line in run.lines("data/quarantine.jsonl")}
    assert set(quarantine) == {"0", "1", "2", "again"}
    assert "leads out of" in quarantine["1"] and "cut short" in quarantine["0"]
    assert f"data: 44 rows: {counts['used']['train']} train, {counts['used']['held_out']} held-out" in done.stderr

    run.assert_no_prompt_lost_or_repeated()

    once = commands("ral-train", *given[:-1], "name=again", "algorithm.steps=2", cwd=tmp_path)
    assert once.returncode == 0, once.stderr
    assert "data: 44 rows" not in once.stderr  # prepared for all runs beside each other
    assert "data: already prepared; 3 broken rows are left out: " in once.stderr
    left(tmp_path / "runs" / "again").assert_equal(run, ("models/sft", "model"))

    shutil.rmtree(run.folder / "model")
    rows.write_text(rows.read_text() + "\n")
    changed = commands("ral-train", *given, "algorithm.steps=3", cwd=tmp_path)
    assert changed.returncode == 2
    assert "the files of data.sources, the processor or the settings of data have changed" in changed.stderr


def write_vstar(folder: Path) -> None:
    board = VisualSearch(seed=3, grid=3, objects=5)
    lines: list[dict[str, Any]] = []
    for i in range(12):
        record, name = board.record("train", i), f"{record_kind(i)}/sa_{i}.jpg"
        buffer = io.BytesIO()
        record.image.save(buffer, "PNG")
        (folder / record_kind(i)).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getvalue())
        text = f"{record.question}\n(A) red\n(B) blue\nanswer"
        lines.append({"image": name, "text": text, "category": record_kind(i), "label": "AB"[i % 2], "question_id": i})
    (folder / "relative_position" / "sa_3.jpg").write_bytes(b"<html>")
    Image.new("RGB", (56, 56)).save(folder / "unused.png")
    (folder / "test_questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def record_kind(i: int) -> str:
    return "direct_attributes" if i % 2 == 0 else "relative_position"


def test_a_benchmark_is_asked_scored_and_not_asked_again(commands, uninterrupted, tmp_path: Path) -> None:
    write_vstar(tmp_path / "vstar")
    given = (
        *LOCAL,
        "data=files",
        "data.system_prompt=answer",
        "stages=[rl]",
        f"start_model={uninterrupted.folder / 'model'}",
        "evaluation.benchmark.name=vstar",
        f"evaluation.benchmark.folder={tmp_path / 'vstar'}",
        "name=vstar",
    )
    done = commands("ral-evaluate", *given, "evaluation.samples=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "vstar"
    found = json.loads((folder / "evaluation.json").read_text())
    assert (found["benchmark"], found["questions"], found["left_out"], found["samples"]) == ("vstar", 11, 1, 3)
    parts = {name for name in found if name.startswith("vstar/")}
    assert parts == {"vstar/score", "vstar/direct_attributes", "vstar/relative_position"} == found["intervals"].keys()
    assert all(0 <= found["intervals"][n][0] <= found[n] <= found["intervals"][n][1] <= 100 for n in parts)
    assert "11 of 12 questions, mean of 3 at temperature 1" in " ".join(done.stdout.split())
    (line,) = [json.loads(text) for text in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert line["id"] == "relative_position/sa_3" and "not a picture" in line["reason"]
    scores = [json.loads(text) for text in (folder / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 11 and sum(sum(one["scores"]) for one in scores) * 100 / 33 == pytest.approx(
        found["vstar/score"]
    )
    shown = (folder / "answers.html").read_text()
    assert shown.count("data-question=") == 11 and shown.count('<p class="response">') == 33
    assert shown.count("<img") == 11 and "11 questions, " in shown
    (answers,) = (folder / "answers").glob("*.jsonl")
    assert len(answers.read_text().splitlines()) == 33
    before = answers.stat().st_mtime_ns
    again = commands("ral-evaluate", *given, "evaluation.samples=3", cwd=tmp_path)
    assert again.returncode == 0 and answers.stat().st_mtime_ns == before
    assert json.loads((folder / "evaluation.json").read_text()) == found
    unknown = commands("ral-evaluate", *given, "evaluation.benchmark.name=none", cwd=tmp_path)
    assert unknown.returncode == 2 and "name=none: no such benchmark; choose one of vstar, mme" in unknown.stderr

    done = commands("ral-evaluate", *given, "evaluation.samples=3", "evaluation.attended=0.4", cwd=tmp_path)
    assert done.returncode == 0 and answers.stat().st_mtime_ns == before, done.stderr
    found = json.loads((folder / "evaluation.json").read_text())
    columns = ("only attended", "without attended", "only random", "without random")
    assert all(found[column].keys() == parts for column in columns)
    assert len(list((folder / "answers").glob("*.jsonl"))) == 5

    swept = commands(
        "ral-evaluate",
        *given,
        "sweep=visual_tokens",
        "sweep.values=[9,4]",
        "name=swept",
        f"+sweep.models={{one: {uninterrupted.folder / 'models' / 'sft'}, two: {uninterrupted.folder / 'model'}}}",
        cwd=tmp_path,
    )
    assert swept.returncode == 0, swept.stderr
    record = json.loads((tmp_path / "runs" / "swept" / "sweep.json").read_text())
    assert [list(values) for values in record["models"].values()] == [["4", "9"]] * 2
    first, second = (values["9"] for values in record["models"].values())
    gain = second["gain"]
    assert "gain" not in first and gain["over"] == "one"
    assert gain["value"] == pytest.approx(second["vstar/score"] - first["vstar/score"])
    assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    assert (tmp_path / "runs" / "swept" / "sweep.svg").read_text().count("<circle") == 4
    files = (tmp_path / "runs" / "swept" / "answers").glob("*.jsonl")
    assert sorted(len(path.read_text().splitlines()) for path in files) == [11] * 4


def test_videos_are_looked_at_more_closely(commands, uninterrupted, tmp_path: Path) -> None:
    given = (*LOCAL, "data=video_search", "data.seconds=4", f"start_model={uninterrupted.folder / 'model'}")
    done = commands("ral-evaluate", *given, "sweep=frames", "sweep.values=[2,8]", "name=frames", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (values,) = json.loads((tmp_path / "runs" / "frames" / "sweep.json").read_text())["models"].values()
    assert {value: found["frames_seen"] for value, found in values.items()} == {"2": 2, "8": 8}
    assert "frames of a video, mean seen" in (tmp_path / "runs" / "frames" / "sweep.svg").read_text()


@pytest.mark.long
def test_the_readme_shows_how_to_train_on_files(commands, left, tmp_path: Path) -> None:
    """Its overlay and its three commands, on the rows of an example and with few steps."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (overlay,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    lines = [
        shlex.split(line, comments=True) for line in re.findall("^ +(ral-.* --config-dir .*)$", readme, re.MULTILINE)
    ]
    assert [name for name, *_ in lines] == ["ral-data", "ral-train", "ral-evaluate"]
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(overlay, encoding="utf-8")
    shutil.copy(EXAMPLES / "own_data" / "rows.jsonl", tmp_path)
    shutil.copytree(EXAMPLES / "own_data" / "pictures", tmp_path / "pictures")
    short = "rollout.max_new_tokens=8"
    tiny = {
        "ral-data": (),
        "ral-train": (
            *(short, "logging.wandb=disabled", "evaluation.every=2", "evaluation.stage_questions=3"),
            *("sft.max_steps=2", "sft.batch=4", "sft.evaluate_every=2", "sft.evaluate_from=2"),
            *("algorithm.steps=2", "algorithm.prompts_per_step=2", "algorithm.completions_per_prompt=2"),
            "algorithm.updates_per_step=2",
        ),
        "ral-evaluate": (short,),
    }
    for name, *given in lines:
        done = commands(name, *given, *tiny[name], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "preview" / "preview.html").is_file()
    assert len(left(tmp_path / "runs" / "mine").rl_steps()) == 2
    assert json.loads((tmp_path / "runs" / "evaluation" / "evaluation.json").read_text())["eval/questions"] == 5
