"""Tasks that need looking, every family at once: trained on, shown, asked blind, and refused where they must be."""

import json
from pathlib import Path

import pytest

from ral_system.tasks.looking import FAMILIES

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

SMOKE = ("experiment=smoke", "data=looking")
LOCAL = (*SMOKE, "cluster=local", "cluster.threads_per_process=1")
LOOKS = (
    *("visual_mass", "sink_mass", "visual_entropy", "visual_entropy_share", "decay"),
    *("evidence_mass", "evidence_area", "pointing", "saliency_agreement"),
)


def test_every_family_is_trained_on_and_asked_without_its_pictures(commands, left, tmp_path: Path) -> None:
    short = ("perceive.max_steps=2", "sft.max_steps=2", "algorithm.steps=2", "evaluation.questions=14")
    done = commands("ral-train", *LOCAL, *short, "data.difficulty=[1,2]", "data.small_boards=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    assert run.summary()["max_abs_logprob_diff"] <= 1e-4
    asked = {f"eval/accuracy/{family}_{difficulty}" for family in FAMILIES for difficulty in (1, 2)}
    assert asked <= run.lines()[-1].keys()

    given = (*LOCAL, "data.difficulty=1", f"start_model={run.folder / 'model'}", "evaluation.questions=14")
    added = ("evaluation.blind=true", "evaluation.attended=0.2", "evaluation.saliency=true", "name=blind")
    done = commands("ral-evaluate", *given, *added, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs" / "blind" / "evaluation.json").read_text())
    for column in ("black", "exchanged", "only attended", "without attended", "only random", "without random"):
        assert found[column]["eval/questions"] == 14 and column.split()[0] in done.stdout
    assert {f"looks/{name}" for name in LOOKS} <= found.keys()
    assert 0 < found["looks/evidence_area"] < 1 and 0 < found["looks/visual_mass"] < 1
    assert (
        found["looks/visual_entropy_share"] <= 1
        and abs(found["looks/saliency_agreement"]) < 1
        and "visual_entropy_share" in done.stdout
    )
    layers = found["looks_by_layer"]["evidence_mass"]
    assert len(layers) == 2 and layers[-1] == pytest.approx(found["looks/evidence_mass"])
    low, high = found["intervals"]["looks/evidence_mass"]
    assert low < found["looks/evidence_mass"] < high and "where it looks, layer by layer" in done.stdout


def test_the_preview_shows_every_family_with_its_thought(commands, tmp_path: Path) -> None:
    done = commands("ral-data", *SMOKE, "logging.preview_rows=7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs" / "smoke" / "preview.html").read_text()
    assert all(f"{family}_1" in page for family in FAMILIES)
    assert "follow the arrows from" in page and "&lt;unk&gt;" not in page and "<unk>" not in page


def test_demonstrations_are_not_synthesised_for_them(commands, tmp_path: Path) -> None:
    done = commands("ral-synthesize", *SMOKE, cwd=tmp_path)
    assert done.returncode == 2
    assert "data.name=looking: demonstrations are made for data=visual_search; choose it" in done.stderr
