from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ral_system.report.charts import figure
from ral_system.report.load import RunData
from ral_system.report.plot import HEIGHT, WIDTH
from ral_system.report.sections import sections, wilson
from ral_system.report.series import MAX_STEPS, Chart, Series


def chart(*points: list[tuple[int, float | None]], **options: object) -> Chart:
    series = [Series(f"s{i}", f"series {i}", p, i) for i, p in enumerate(points)]
    return Chart("id", "Title", "Note.", series, **options)  # type: ignore[arg-type]


def paths(html: str) -> dict[str, list[tuple[float, float]]]:
    found = re.findall(r'<path class="line" data-series="(\w+)"[^>]* d="([^"]*)"', html)
    return {k: [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", d)] for k, d in found}


def hover(html: str) -> dict:
    return json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])


def test_nothing_to_draw_is_no_chart() -> None:
    assert figure(chart()) == ""
    assert figure(chart([], [(1, None)])) == ""


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [-1.0, 1.0], [1e-9, 2e-9], [1e7, 3e9], [0.0, 0.0], [-3.0, -2.0], [1e-300, 1e300]]
)
@pytest.mark.parametrize("log", [False, True])
def test_points_stay_inside_the_frame(values: list[float], log: bool) -> None:
    drawn = paths(figure(chart(list(enumerate(values)), log=log)))["s0"]
    assert len(drawn) == len(values)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_larger_is_higher_and_later_is_further_right() -> None:
    (x0, y0), (x1, y1), (x2, y2) = paths(figure(chart([(0, 1.0), (5, 2.0), (20, 4.0)])))["s0"]
    assert y0 > y1 > y2
    assert math.isclose((x1 - x0) / (x2 - x0), 0.25, abs_tol=0.01)


def test_a_missing_value_is_a_gap() -> None:
    html = figure(chart([(0, 1.0), (1, None), (2, 2.0), (3, 1.0)]))
    assert re.search(r' d="M[^ML]+M[^ML]+L[^ML]+"', html)
    assert hover(html)["series"][0]["text"][1] == "n/a"


def test_a_series_on_other_steps_is_not_a_gap() -> None:
    html = figure(chart([(0, 1.0), (10, 2.0)], [(s, 1.0) for s in range(11)]))
    assert {k: len(p) for k, p in paths(html).items()} == {"s0": 2, "s1": 11}
    assert re.search(r'data-series="s0"[^>]* d="M[^ML]+L[^ML]+"', html)


def test_layers_stack_without_gap_or_overlap() -> None:
    html = figure(chart([(0, 1.0), (1, 2.0)], [(0, 3.0), (1, 1.0)], kind="stack"))
    bars = {
        k: re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", d)
        for k, d in re.findall(r'<path class="bar" data-series="(\w+)"[^>]* d="([^"]*)"', html)
    }
    for (_, low_top), (high_base, _) in zip(bars["s0"], bars["s1"], strict=True):
        assert low_top == high_base
    heights = [float(bars["s0"][0][0]) - float(bars["s1"][i][1]) for i in (0, 1)]
    assert math.isclose(heights[0] / heights[1], 4 / 3, rel_tol=0.01)


def test_a_long_run_is_thinned_without_losing_its_spike() -> None:
    points: list[tuple[int, float | None]] = [(step, 1.0) for step in range(50_000)]
    points[31_234] = (31_234, 9.0)
    html = figure(chart(points, unit="seconds"))
    assert len(paths(html)["s0"]) <= MAX_STEPS + 2
    assert "9 s" in hover(html)["series"][0]["text"]


def test_names_are_escaped_everywhere() -> None:
    hostile = "</script><b>&"
    html = figure(Chart("id", hostile, hostile, [Series("k", hostile, [(0, 1.0)], 0), Series("j", "x", [(0, 1.0)], 1)]))
    assert hostile not in html
    assert hover(html)["series"][0]["label"] == hostile


def test_a_limit_is_drawn_where_it_can_be_compared() -> None:
    assert 'class="limit"' in figure(chart([(0, 1e-7)], log=True, limit=("limit", 1e-4)))
    assert 'class="limit"' not in figure(chart([(0, 1e-7)], limit=("limit", 1e-4)))


def run_data(metrics: list[dict], **algorithm: object) -> RunData:
    return RunData("name", metrics, [], {}, {"algorithm": algorithm}, "", [])


def drawn(run: RunData, name: str) -> Chart:
    return next(c for _, charts in sections(run) for c in charts if c.id == name)


def test_a_role_s_memory_is_the_most_of_its_calls() -> None:
    rows = [
        {"stage": "rl", "step": 0, "memory/learner/build_gib": 3.0},
        {"stage": "rl", "step": 1, "memory/learner/score_gib": 2.0, "memory/learner/update_gib": 5.0},
        {"stage": "rl", "step": 2, "memory/learner/score_gib": 4.0, "memory/rollout/generate_gib": 7.0},
    ]
    found = {s.key: (s.label, s.points) for s in drawn(RunData("name", rows, [], {}, {}, "", []), "memory").series}
    assert found == {
        "memory/learner": ("learner", [(0, 3.0), (1, 5.0), (2, 4.0)]),
        "memory/rollout": ("rollout", [(2, 7.0)]),
    }


def test_a_device_without_a_known_peak_shows_operations_per_second() -> None:
    row = {"stage": "rl", "step": 1, "learner/tflops": 0.1, "learner/unshared_tflops": 0.3}
    on_gpu = row | {"learner/mfu": 0.4, "learner/unshared_mfu": 1.2}
    found = [drawn(RunData("name", [r], [], {}, {}, "", []), "compute") for r in (row, on_gpu)]
    assert [(chart.title, chart.unit) for chart in found] == [
        ("Learner TFLOP/s", "number"),
        ("Learner MFU", "percent"),
    ]
    assert [[series.known for series in chart.series] for chart in found] == [[[0.1], [0.3]], [[0.4], [1.2]]]


def test_an_accuracy_shows_how_far_it_may_be_off_and_on_how_many_questions() -> None:
    asked = {0: (0.72, 500), 10: (0.97, 100), 30: (0.934, 500)}
    rows = [
        {"stage": stage, "step": step, "eval/accuracy": share, "eval/questions": float(count)}
        for stage in ("sft", "rl")
        for step, (share, count) in asked.items()
    ]
    for name, key in (("accuracy", "eval/accuracy"), ("supervised-accuracy", "sft:eval/accuracy")):
        found = drawn(run_data(rows), name)
        assert found.note.endswith("Bars: 95\u00a0% intervals over 100 or 500 questions.")
        html = figure(found)
        assert hover(html)["series"][0]["text"] == [
            "72.0% (67.9% to 75.8%, 500 questions)",
            "97.0% (91.5% to 99.0%, 100 questions)",
            "93.4% (90.9% to 95.3%, 500 questions)",
        ]
        bars = re.search(rf'data-interval="{key}"[^>]* d="([^"]*)"', html)
        assert bars
        ends = [(float(high), float(low)) for high, low in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", bars[1])]
        points = [y for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", html.split('class="line"')[1].split("/>")[0])]
        assert len(ends) == 3
        assert all(high < float(y) < low for (high, low), y in zip(ends, points, strict=True))  # down is larger
        assert ends[1][1] - ends[1][0] > ends[2][1] - ends[2][0]  # of fewer questions


def test_accuracies_of_unknown_counts_have_no_bars() -> None:
    found = drawn(run_data([{"stage": "rl", "step": 0, "eval/accuracy": 0.5}]), "accuracy")
    assert "Bars" not in found.note and "data-interval" not in figure(found)


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("right", [0.0, 0.3, 1.0])
def test_the_interval_is_wilsons(right: float, count: int) -> None:
    """Its ends are the accuracies from which the share found is 1.96 standard errors away."""
    share = round(right * count) / count
    low, high = wilson(share, count)
    assert low < high and -1e-9 < low <= share + 1e-9 and share - 1e-9 <= high < 1 + 1e-9
    for end in (low, high):
        assert count * (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end), abs=1e-4)


@pytest.mark.parametrize(
    ("divergence", "unit", "name"),
    [
        ("jsd", "nats", "Jensen-Shannon divergence"),
        ("forward_kl", "nats", "Forward KL"),
        ("reverse_kl", "nats", "Reverse KL"),
        ("tv", "number", "Total variation distance"),
        ("hellinger", "number", "Squared Hellinger distance"),
        (None, "number", "Divergence"),
        ("of_a_package_elsewhere", "number", "Divergence"),
    ],
)
def test_divergences_have_their_name_and_only_those_with_a_logarithm_are_in_nats(
    divergence: str | None, unit: str, name: str
) -> None:
    names = ("attention/divergence_positive", "distillation/attention_divergence", "distillation/token_divergence")
    row = {"stage": "rl", "step": 1} | dict.fromkeys(names, 0.25)
    teacher = {"attention": {"divergence": divergence}, "tokens": {"divergence": "forward_kl"}}
    run = run_data([row], attention={"divergence": divergence}, distillation=teacher)
    for chart_id in ("attention-divergence", "attention-distillation"):
        found = drawn(run, chart_id)
        assert (found.unit, found.note.split(" between ")[0]) == (unit, name)
        assert ("nats" in figure(found)) == (unit == "nats")
    tokens = drawn(run, "token-distillation")
    assert (tokens.unit, tokens.note) == (
        "nats",
        "Forward KL between the next-token distributions of student and teacher.",
    )


def test_a_report_with_divergences_is_written_without_torch(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("algorithm: {attention: {divergence: hellinger}}\n")
    rows = [{"stage": "rl", "step": step, "attention/divergence_positive": 0.5} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code = "import sys; from ral_system.launch.report import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{tmp_path}/report.html\n", "")
    assert (
        "Squared Hellinger distance between the rows of the policy and the rollout policy"
        in (tmp_path / "report.html").read_text()
    )
