"""Differences between arms: which runs are paired, what the table and the chart say."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ral_system.errors import ConfigError
from ral_system.launch.study.differences import differences
from ral_system.launch.study.figure_differences import figure_differences
from ral_system.launch.study.files import Compared, Run, Study, read_study
from ral_system.launch.study.results import read_lines, write_results


def line(arm: str, seed: int, **scores: list[float]) -> dict[str, object]:
    """A line of study.jsonl, as far as differences read it."""
    return {"arm": arm, "seed": seed, "scores": scores}


def test_runs_are_paired_by_seed_and_questions_by_place_and_category() -> None:
    """In `far`, seed 1 of a is paired with none. `near` is +½ and 0, `far` +1 everywhere."""
    by_arm = {
        "base": [line("base", 0, near=[0, 0], far=[0, 0]), line("base", 2, near=[1, 0], far=[0, 0])],
        "a": [
            line("a", 0, near=[1, 0], far=[1, 1]),
            line("a", 1, near=[0, 0], far=[0, 0]),
            line("a", 2, near=[1, 0], far=[1, 1]),
        ],
        "failed": [{"arm": "failed", "seed": 0}],
    }
    found = differences(Compared(baseline="base", claims=["a", "failed"]), by_arm)
    rows = [row for row in found.table.splitlines() if row.startswith("| a − base")]
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[1] == "2"
    assert cells[2].startswith("+62.5 (") and cells[3].startswith("+25.0 (")
    assert cells[4] == "+100.0 (+100.0 to +100.0)"
    assert "| failed − base | 0 | - | - | - | - | - | - |" in found.table and "failed" not in found.chart
    alone = differences(Compared(baseline="base", claims=["a"]), by_arm)
    p = [float(table.splitlines()[2].split("|")[-3]) for table in (alone.table, found.table)]
    assert p[1] == pytest.approx(2 * p[0], abs=2e-3), "a claim that failed counts as one"
    assert "a − base: +25.00" in found.chart


def test_other_figures_and_curves_are_paired_by_seed() -> None:
    """Differences of 1 and 3: mean 2, t of 0.975 with one degree of freedom 12.71, standard error 1. Of curves, the
    steps that both have count, but for the first and the last.
    """

    def line(arm: str, seed: int, figure: float | None, *curve: float) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "mass": figure, "curves": {"eval/c": [*enumerate(curve)]}}

    by_arm = {
        "base": [line("base", 0, 1.0, 9, 2, 4, 9), line("base", 1, 2.0, 0, 5, 5, 0), line("base", 2, 7.0)],
        "a": [line("a", 0, 2.0, 0, 3, 4, 0, 99), line("a", 1, 5.0, 0, 5, 6, 0, 99, 99), line("a", 3, 7.0)],
        "b": [line("b", 0, 1.5), line("b", 1, None)],
        "c": [],
    }
    found = figure_differences(Compared(baseline="base"), by_arm, ["mass"], ["eval/c", "attention/c"])
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in found.splitlines()[:5]]
    assert rows[0] == ["", "mass", "eval/c, mean in training"]
    assert rows[2] == ["a − base", "+2 (-10.7 to +14.7)", "+0.5 (+0.5 to +0.5)"]
    assert rows[3:] == [["b − base", "+0.5 [1]", "-"], ["c − base", "-", "-"]]
    assert figure_differences(Compared(baseline="base"), by_arm, [], ["attention/c"]) == ""


def test_claims_are_corrected_for_their_number_and_controls_are_rows_of_their_own() -> None:
    by_arm = {
        arm: [line(arm, seed, q=[0.1 * place * seed + value, 0.2, 0.3 + value]) for seed in range(3)]
        for place, (arm, value) in enumerate((("base", 0.0), ("a", 0.3), ("b", 0.1), ("null", 0.0)))
    }
    found = differences(Compared(baseline="base", claims=["a", "b"], controls={"a": ["null"]}), by_arm)
    rows = {
        row.split("|")[1].strip(): [c.strip() for c in row.split("|")[1:-1]] for row in found.table.splitlines()[2:6]
    }
    assert list(rows) == ["a − base", "b − base", "null − base", "a − null"]
    p = {name: float(cells[4].removeprefix("< ")) for name, cells in rows.items()}
    assert rows["null − base"][5] == rows["a − null"][5] == ""
    smaller, larger = sorted(("a − base", "b − base"), key=p.__getitem__)
    assert float(rows[smaller][5]) == pytest.approx(2 * p[smaller], abs=2e-3)
    assert float(rows[larger][5]) == pytest.approx(max(p[larger], 2 * p[smaller]), abs=2e-3)


FIGURES = ("black.eval/accuracy", "looks_by_layer.evidence_mass.1", "looks_by_layer.evidence_mass.2")


def write_evaluated(folder: Path, name: str, scores: list[int]) -> None:
    """Write what a run and its evaluation leave, as far as a study reads it."""
    folder.joinpath(name).mkdir()
    made = folder / f"{name}_evaluation"
    made.mkdir()
    found = {"eval/accuracy": sum(scores) / len(scores), "black": {"eval/accuracy": 0.25}}
    found["looks_by_layer"] = {"evidence_mass": [0.125, 0.5 + sum(scores) / 8]}
    made.joinpath("evaluation.json").write_text(json.dumps(found))
    lines = [{"id": i, "category": "q", "references": "", "scores": [score]} for i, score in enumerate(scores)]
    made.joinpath("scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    evaluation(folder, name).note_complete()


def evaluation(folder: Path, name: str) -> Run:
    """The run that evaluates."""
    made = folder / f"{name}_evaluation"
    return Run(made.name, (), evaluates=folder, folder=made, leaves="evaluation.json")


def test_a_study_goes_on_with_other_seeds_from_elsewhere(tmp_path: Path) -> None:
    """The two halves give the table of the whole."""
    compare = Compared(baseline="a")
    for folder, seeds in ((tmp_path / "x", (0, 1)), (tmp_path / "y", (2,)), (tmp_path / "all", (0, 1, 2))):
        folder.mkdir()
        for seed in seeds:
            write_evaluated(folder, f"a_seed{seed}", [0, seed == 1, 1])
            write_evaluated(folder, f"b_seed{seed}", [1, seed == 2, 1])

    def study(folder: Path, *seeds: int) -> Study:
        runs = [Run(f"{arm}_seed{seed}", (), arm, seed) for seed in seeds for arm in "ab"]
        runs += [evaluation(folder, run.name) for run in runs]
        return Study("Halves", tuple(runs), ("a", "b"), figures=FIGURES, compare=compare)

    x, y, together = tmp_path / "x", tmp_path / "y", tmp_path / "all"
    whole = write_results(study(together, 0, 1, 2), together)
    write_results(study(x, 0, 1), x)
    elsewhere, second = x / "study.jsonl", study(y, 2)
    assert write_results(second, y, read_lines([elsewhere], second)) == whole
    assert "| b − a | 3 |" in whole and "| black.eval/accuracy |" in whole and "| 0.25 |" in whole
    assert "| b − a | +0 (+0 to +0) | +0.125 (-0.186 to +0.436) | - |" in whole  # 1/8 of +1, 0 and +2
    assert (together / "differences.svg").read_text() == (y / "differences.svg").read_text()
    with pytest.raises(ConfigError, match="a with seed 0 is run here as well; keep one of the two"):
        read_lines([elsewhere], study(x, 0))
    with pytest.raises(ConfigError, match="a with seed 0 is also in"):
        read_lines([elsewhere, y / "study.jsonl"], study(x, 5))
    other = Study("Another", (), ("c",))
    with pytest.raises(ConfigError, match=re.escape(f"--with {elsewhere}: arm 'a' is not one of c")):
        read_lines([elsewhere], other)
    with pytest.raises(ConfigError, match="it has no metrics policy/kl; it is of another study"):
        read_lines([elsewhere], Study("Halves", (), ("a", "b"), metrics=("policy/kl",)))
    (tmp_path / "empty").write_text("no line\n")
    with pytest.raises(ConfigError, match="holds no line of a study"):
        read_lines([tmp_path / "empty"], other)
    with pytest.raises(ConfigError, match="no such file"):
        read_lines([tmp_path / "nowhere"], other)


def test_runs_that_were_asked_different_questions_are_not_paired(tmp_path: Path) -> None:
    write_evaluated(tmp_path, "a_seed0", [0, 1])
    write_evaluated(tmp_path, "b_seed0", [0, 1, 1])
    runs = [Run(f"{arm}_seed0", (), arm, 0) for arm in "ab"]
    runs += [evaluation(tmp_path, run.name) for run in runs]
    with pytest.raises(ConfigError, match="a_seed0 and b_seed0 were asked different questions"):
        write_results(Study("Two", tuple(runs), ("a", "b")), tmp_path)


def test_an_evaluation_of_an_earlier_model_says_nothing_about_a_run_that_failed(tmp_path: Path) -> None:
    write_evaluated(tmp_path, "a_seed0", [0, 1])
    again = replace(evaluation(tmp_path, "a_seed0"), command=("ral-evaluate", "trained=again"))
    table = write_results(Study("One", (Run("a_seed0", (), "a", 0), again), ("a",)), tmp_path)
    assert "| a | ended before its first step |" in table


@pytest.mark.parametrize(
    ("compare", "says"),
    [
        ("{baseline: c}", "compare names c, which is not one of the arms a, b"),
        ("{baseline: a, claims: [d]}", "compare names d"),
        ("{baseline: a, controls: {b: [e]}}", "compare names e"),
        ("{baseline: a, claims: [a]}", "compare.claims names the baseline a; remove it"),
        ("{baseline: a, claims: [b, b]}", "names an arm twice; remove one"),
        ("{baseline: a}", "compare needs the scores of each question; add evaluate: []"),
    ],
)
def test_comparisons_of_what_is_not_there_are_refused(tmp_path: Path, compare: str, says: str) -> None:
    evaluate = "" if "evaluate" in says else "evaluate: []\n"
    path = tmp_path / "bad.yaml"
    arms = "prepare: []\nseeds: [0]\narms: {a: [ral-rl], b: [ral-rl]}\n"
    path.write_text(f"title: Bad\n{arms}{evaluate}compare: {compare}\n")
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_study(path, tmp_path)
