"""The pages in a real browser: what a person would see is drawn, complete, inert and offline."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ral_system.config.logging import LoggingConfig
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.observability.metrics import MetricsLog, RolloutLog
from ral_system.report.write import write_report, write_run_report
from ral_system.tasks.visual_search import Record, VisualSearch
from ral_system.types import Completion, FinishReason, Prompt, RewardResult, RewardStatus, Rollout, VideoSampling
from tests.system.previews import preview, preview_of_a_small_picture
from tests.unit.media.clips import clip, noise

pytestmark = pytest.mark.system

RL_STEPS, EVALUATIONS, SUPERVISED_ROWS = 20, (0, 5, 10, 15, 20), 40
SIGNS = ("", "_positive", "_negative")
HOSTILE = "<script>document.title = 'owned'</script><img src=http://example.com/x.png onerror=alert(1)>"
LOGGING = LoggingConfig(wandb="disabled", wandb_project="none", groups_per_step=2, report_every=5)
PERCEPTION = {
    **{"perception-kl": ("kl", "kl_kept"), "perception-clamped": ("clamped",)},
    **{"perception-similarity": ("similarity",), "advantage-factor": ("advantage_factor_max", "token_factor")},
}
BLIND = {"eval/accuracy_black": 0.4, "eval/blind_gap": 0.3}
ACCURACY = {"before_rl": 0.715, "after_rl": 0.968}
PHASES = ("rollout", "reward", "score", "update", "publish", "evaluate")
EXPECTED = {
    "accuracy": {"eval/accuracy": len(EVALUATIONS)},
    "blind": {"eval/accuracy_black": len(EVALUATIONS), "eval/blind_gap": len(EVALUATIONS)},
    **{chart: {f"perception/{name}": RL_STEPS for name in names} for chart, names in PERCEPTION.items()},
    "accuracy-by-kind": {f"eval/accuracy/{k}": len(EVALUATIONS) for k in ("attribute", "content", "position", "count")},
    "reward": {f"reward/{part}": RL_STEPS for part in ("total", "correctness", "format")},
    "part-share": {f"health/part_share/{part}": RL_STEPS for part in ("correctness", "format")},
    "aux-only": {"health/aux_only": RL_STEPS},
    "length-corr": {f"health/length_corr/{part}": RL_STEPS for part in ("correctness", "format")},
    "attention-divergence": {"attention/divergence_positive": RL_STEPS, "attention/divergence_negative": RL_STEPS},
    "visual-mass": {f"attention/visual_mass{s}": RL_STEPS for s in SIGNS},
    "attention-mass": {f"attention/{m}_mass": RL_STEPS for m in ("visual", "system", "text", "generated", "sink")},
    "attention-entropy": {f"attention/entropy{s}": RL_STEPS for s in SIGNS},
    "visual-entropy": {f"attention/visual_entropy{s}": RL_STEPS for s in SIGNS},
    **{name: {f"attention/{name}": RL_STEPS} for name in ("vas", "decay")},
    "media-mass": {f"attention/image_{i}_mass": RL_STEPS for i in (0, 1)},
    "gradient-share": {f"attention/gradient_share{s}": 2 for s in ("", "_max")},
    "contrast": {"attention/contrast": RL_STEPS},
    "kl": {"policy/kl": RL_STEPS},
    "entropy": {"policy/entropy": RL_STEPS},
    "clip-fraction": {"policy/clip_fraction": RL_STEPS},
    "grad-norm": {"learner/grad_norm": RL_STEPS},
    "response-length": {"rollout/length_mean": RL_STEPS},
    "log-prob-diff": {"gate/log_prob_diff_max": RL_STEPS, "gate/log_prob_diff_mean": RL_STEPS},
    "phase-time": {f"time/{phase}_s": RL_STEPS for phase in PHASES},
    "tokens-per-s": {"rollout/tokens_per_s": RL_STEPS},
    "trained-per-s": {"learner/tokens_per_s": RL_STEPS},
    "device-tokens-per-s": {"step/tokens_per_s_per_device": RL_STEPS},
    "first-token": {"rollout/first_token_s": RL_STEPS},
    "compute": {f"learner/{kind}mfu": RL_STEPS for kind in ("", "unshared_")},
    "shared-tokens": {f"learner/{name}_tokens": RL_STEPS for name in ("shared", "duplicate")},
    "encoder": {"learner/encoder_passes": RL_STEPS, "learner/media_encoded": RL_STEPS},
    "memory": {f"memory/{role}": RL_STEPS for role in ("controller", "learner", "rollout")},
    "supervised-loss": {"perceive:supervised/loss": SUPERVISED_ROWS, "sft:supervised/loss": SUPERVISED_ROWS},
    "supervised-token-accuracy": {f"{s}:supervised/token_accuracy": SUPERVISED_ROWS for s in ("perceive", "sft")},
    "supervised-accuracy": {"sft:eval/accuracy": 4},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not on PATH; install it: apt-get update && apt-get install -y chromium"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=[*quiet, "--disable-sync", "--no-first-run"], timeout=120_000
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ral_seed0"
    folder.mkdir()
    write_metrics(folder)
    write_rollouts(folder)
    summary = {
        "held_out_accuracy_after_sft": ACCURACY["before_rl"],
        "held_out_accuracy_after_rl": ACCURACY["after_rl"],
        "format_rate_after_rl": 0.999,
        "rl_steps": RL_STEPS,
        "wall_s": {"perceive": {"total": 120.1}, "sft": {"total": 78.1}, "rl": {"total": 200.0}},
        "max_abs_logprob_diff": 9.4e-7,
        "prompt_id_mismatches": 0,
        "weight_checksum_failures": 0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(
        "name: ral_seed0\nseed: 0\nmodel: {path: null}\nrollout: {engine: vllm, log_prob_gate: {token: 1.0e-4}}\n"
        "learner: {engine: deepspeed}\nalgorithm: {name: ral, steps: 20, attention: {weight: 1.0}}\n"
        "alarms: {attention_entropy: 0.5}\n"
    )
    return write_report(folder)


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(report.as_uri())
    yield opened
    opened.close()


def write_metrics(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with MetricsLog(folder, LOGGING, "ral_seed0", {}) as log:
        for stage, scale in (("perceive", 10), ("sft", 11)):
            for i in range(1, SUPERVISED_ROWS + 1):
                share = 1 / (1 + math.exp(-(i - 20) / 4))
                row = {"supervised/loss": 2.2 * (1 - share) + 0.02 * rng.random(), "supervised/token_accuracy": share}
                if stage == "sft" and i % 10 == 0:
                    row["eval/accuracy"] = 0.72 * share
                log.write(stage, i * scale, row)  # type: ignore[arg-type]
        log.write("rl", 0, {"eval/accuracy": ACCURACY["before_rl"], **BLIND, **by_kind(0.0)})
        for step in range(1, RL_STEPS + 1):
            share, noise = step / RL_STEPS, lambda size: size * float(rng.standard_normal())
            row = {
                "reward/correctness": 0.66 + 0.28 * share + noise(0.03),
                "reward/format": 0.98 + 0.018 * share,
                "reward/total": 0.69 + 0.25 * share + noise(0.03),
                "policy/kl": 0.0004 + 0.03 * share**1.5 + noise(0.0004),
                "policy/entropy": 0.42 - 0.22 * share + noise(0.01),
                "policy/clip_fraction": abs(0.03 + noise(0.01)),
                "attention/divergence_positive": 2.1e-4 * abs(1 + noise(0.2)),
                "attention/divergence_negative": 2.6e-4 * abs(1 + noise(0.2)),
                **{f"attention/visual_mass{s}": 0.31 + 0.06 * share + noise(0.006) for s in SIGNS},
                **{f"attention/entropy{s}": 2.4 - 1.5 * share + noise(0.02) for s in SIGNS},
                **{f"attention/visual_entropy{s}": 1.9 - 0.4 * share + noise(0.02) for s in SIGNS},
                "attention/system_mass": 0.2,
                "attention/text_mass": 0.3 - 0.03 * share,
                "attention/generated_mass": 0.19 - 0.03 * share,
                "attention/sink_mass": 0.17,
                **{f"attention/{name}": 1.5 - 0.3 * share for name in ("vas", "decay")},
                "attention/image_0_mass": 0.21 + 0.06 * share,
                "attention/image_1_mass": 0.1,
                "attention/contrast": 1.6 + noise(0.3),
                **{f"perception/{name}": 0.3 + noise(0.02) for names in PERCEPTION.values() for name in names},
                "alarm/attention_entropy": float(step > 16),
                "health/part_share/correctness": 1.1 - 0.3 * share,
                "health/part_share/format": -0.1 + 0.3 * share,
                "health/aux_only": 0.1 + 0.3 * share,
                "health/length_corr/correctness": -0.4 + noise(0.02),
                "health/length_corr/format": 0.1 + noise(0.02),
                "health/attention_entropy": 1 - 0.6 * share,
                "gate/log_prob_diff_max": 5e-7 * abs(1 + noise(0.3)) + 1e-7,
                "gate/log_prob_diff_mean": 4e-8 * abs(1 + noise(0.2)) + 1e-8,
                "rollout/tokens_per_s": 2600 + noise(90),
                "learner/tokens_per_s": 9000 + noise(300),
                "step/tokens_per_s_per_device": 2100 + noise(60),
                "rollout/first_token_s": 0.3 + noise(0.02),
                **{f"learner/{kind}mfu": (0.4 if kind else 0.3) + noise(0.01) for kind in ("", "unshared_")},
                "learner/tflops": 300 + noise(10),
                "learner/shared_tokens": 0.7 + noise(0.01),
                "learner/duplicate_tokens": 0.05,
                "learner/encoder_passes": 4.0,
                "learner/media_encoded": 16.0 + step % 2,
                **{f"memory/learner/{call}_gib": 41.0 + noise(0.5) for call in ("score", "update")},
                "memory/rollout/generate_gib": 70.2,
                "memory/controller/rollout_gib": 1.1,
                "rollout/length_mean": 14.2 + 2 * share + noise(0.3),
                "learner/grad_norm": 0.9 + noise(0.12),
            }
            if step % 10 == 0:
                row |= {"attention/gradient_share": 0.1, "attention/gradient_share_max": 0.14}
            seconds = zip(PHASES, (1.3, 0.1, 0.5, 1.6, 0.15, 2.4 if step % 5 == 0 else 0.0), strict=True)
            row |= {f"time/{phase}_s": s * (1 + 0.05 * rng.random()) for phase, s in seconds}
            if step in EVALUATIONS:
                row |= {"eval/accuracy": ACCURACY["before_rl"] + 0.253 * share**0.7, **by_kind(share)}
                row |= BLIND
            log.write("rl", step, row)


def by_kind(share: float) -> dict[str, float]:
    starts = {"attribute": 0.93, "content": 0.84, "position": 0.71, "count": 0.52}
    return {f"eval/accuracy/{kind}": start + (0.985 - start) * share for kind, start in starts.items()}


def write_rollouts(folder: Path) -> None:
    data, rng = VisualSearch(seed=0, grid=3, objects=4, digits=False), np.random.default_rng(1)
    with RolloutLog(folder) as log:
        for i in range(6):
            record = data.record("held_out", i)
            prompt = stored_prompt(folder, record)
            for phase, right in (("before_rl", i % 3 == 0), ("after_rl", True)):
                answer = record.answer if right else "nothing"
                text = f"<think> {record.thought} </think><answer> {answer} </answer>"
                mass = rng.dirichlet(np.full(9, 0.9 if phase == "before_rl" else 0.25)).reshape(1, 3, 3)
                log.write("rl", 0 if phase == "before_rl" else RL_STEPS, phase, made(prompt, text, right), [mass])  # type: ignore[arg-type]
        for step in (19, 20):
            record = data.record("train", step)
            text = HOSTILE if step == 20 else f"<answer> {record.answer} </answer>"
            rollout = made(stored_prompt(folder, record), text, step == 19, advantage=0.87 if step == 19 else -1.12)
            log.write("rl", step, "train", rollout, [rng.dirichlet(np.ones(9)).reshape(1, 3, 3)])


def stored_prompt(folder: Path, record: Record) -> Prompt:
    media = MediaStore(folder / "media").put(record.image)
    return Prompt(
        f"{record.split}/{record.index}",
        record.kind,
        record.question,
        record.answer,
        (media,),
        (1,),
    )


def made(prompt: Prompt, text: str, right: bool, advantage: float = 0.0) -> Rollout:
    completion = Completion(prompt.id, 0, (1,), (0.0,), text, FinishReason.STOP, 0)
    parts = {"correctness": float(right), "format": float(text.endswith("</answer>"))}
    total = 0.9 * parts["correctness"] + 0.1 * parts["format"]
    return Rollout(prompt, completion, RewardResult(completion.id, parts, total, RewardStatus.OK), advantage)


def test_it_is_silent_and_offline(browser: Browser, report: Path) -> None:
    page, said, asked = browser.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    page.close()


def test_every_chart_draws_every_row_inside_its_frame(page: Page) -> None:
    drawn = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('[data-chart]')].map(figure => {
            const svg = figure.querySelector('svg'), view = svg.viewBox.baseVal;
            return [figure.dataset.chart, [...svg.querySelectorAll('path[data-series]')].map(path => {
                const box = path.getBBox();
                const right = box.x + box.width, bottom = box.y + box.height, style = getComputedStyle(path);
                return {series: path.dataset.series, d: path.getAttribute('d'), length: path.getTotalLength(),
                    inside: box.x >= 0 && box.y >= 0 && right <= view.width && bottom <= view.height,
                    bar: path.classList.contains('bar'), paint: style.stroke + style.fill};
            })];
        }))"""
    )
    found = {
        chart: {p["series"]: p["d"].count("M") if p["bar"] else p["d"].count("M") + p["d"].count("L") for p in paths}
        for chart, paths in drawn.items()
    }
    assert found == EXPECTED
    for chart, paths in drawn.items():
        for path in paths:
            assert path["inside"], f"{chart}: {path['series']} leaves its frame"
            assert path["length"] > 0
            assert "rgb" in path["paint"]


def test_the_headline_is_the_summarys(page: Page) -> None:
    assert page.inner_text("[data-headline=accuracy_before]") == "71.5%"
    assert page.inner_text("[data-headline=accuracy_after]") == "96.8%"
    assert page.inner_text("[data-headline=gates_failed]") == "0"
    assert page.inner_text("[data-headline=alarms]") == "4"
    alarm = page.locator("#alarms [data-alarm]")
    assert alarm.count() == 1
    assert "0.4, limit 0.5" in alarm.inner_text() and "lower algorithm.attention.weight" in alarm.inner_text()
    assert page.inner_text("[data-headline=log_prob_diff_max]") == "9.4e-7"


def test_rollouts_show_both_answers_and_where_they_look(page: Page) -> None:
    assert page.locator("#before-after [data-rollout]").count() == 6
    row = page.locator("#before-after [data-rollout='held_out/1']")
    assert row.locator("[data-phase=before_rl] .response").inner_text().endswith("<answer> nothing </answer>")
    assert row.locator("img.overlay").count() == 2
    widths = page.evaluate("() => [...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 6 * 3 + 2 * 2
    assert min(widths) > 0


def test_a_hostile_response_is_text(page: Page) -> None:
    assert page.locator("#training-rollouts .response").first.inner_text() == HOSTILE
    assert page.title() == "ral_seed0 · RAL report"


def after_scrolling(page: Page) -> None:
    """Scrolling hides the tooltip, and its event comes before the next frame is drawn: not yet when a call returns."""
    page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def test_hover_and_arrow_keys_tell_the_values(page: Page) -> None:
    tip = page.locator("#tip")
    page.locator("[data-chart=reward] svg").scroll_into_view_if_needed()
    after_scrolling(page)
    page.locator("[data-chart=reward] svg").hover()
    tip.wait_for(state="visible")
    assert all(name in tip.inner_text() for name in ("RL step", "total", "correctness", "format"))
    page.locator("[data-chart=accuracy] svg").focus()
    after_scrolling(page)
    page.keyboard.press("Home")
    tip.wait_for(state="visible")
    assert tip.inner_text().split() == ["RL", "step", "0", "accuracy", "71.5%"]


@pytest.mark.parametrize("width", [360, 420, 480, 800, 1280])
def test_nothing_overflows_the_page(browser: Browser, report: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelector('.hero b').textContent = '9%'")  # room beside it for half a column
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_dark_mode_is_dark(browser: Browser, report: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(v) for v in background.removeprefix("rgb(").removesuffix(")").split(",")) < 40
    page.close()


def test_an_empty_run_says_so(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(write_report(tmp_path).as_uri())
    assert "Nothing has been recorded" in page.inner_text("[data-empty]")
    page.close()


@pytest.fixture(scope="module")
def report_of_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(2)
    store, sampling = MediaStore(folder / "media"), VideoSampling(1.0, 128, 4)
    with RolloutLog(folder) as log:
        for i, frames in enumerate((6, 40)):
            video = store.put_video(clip(noise(i, frames, 112, 168)), sampling, VideoLimits())
            prompt = Prompt(f"held_out/{i}", "free-form", "what moves ?", "red", (video,), (1,))
            mass = rng.dirichlet(np.full(frames // 2 * 24, 0.3)).reshape(frames // 2, 4, 6)
            for phase in ("before_rl", "after_rl", "train"):
                log.write("rl", 1, phase, made(prompt, "<answer> red </answer>", True), [mass])  # type: ignore[arg-type]
    return write_run_report(folder)


@pytest.mark.parametrize("width", [360, 420, 1280])
def test_a_preview_is_offline_and_fits_any_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    page, said, asked = browser.new_page(viewport={"width": width, "height": 800}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    path = preview(tmp_path, HOSTILE)
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    assert (page.title(), said) == ("run · data", [])
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert HOSTILE in page.locator("[data-row='main/1'] .prompt").first.inner_text()
    widths = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.width, image.height])")
    assert len(widths) == 4 * 17 and min(map(min, widths)) > 0
    shape = page.evaluate("(image => image.width / image.height)(document.images[0])")
    assert shape == pytest.approx(2, rel=0.02)
    page.close()


def test_a_preview_shows_pictures_in_their_size(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(preview_of_a_small_picture(tmp_path).as_uri())
    assert page.evaluate("(image => [image.width, image.height])(document.images[0])") == [84, 56]
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_videos_stand_in_the_report_frame_by_frame(browser: Browser, report_of_videos: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(report_of_videos.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cell = page.locator("#before-after [data-rollout='held_out/1'] [data-phase=after_rl]")
    assert cell.locator(".frame img.overlay").count() == 8
    assert "8 of 20 time steps" in cell.inner_text()
    inside = cell.evaluate(
        "cell => [...cell.querySelectorAll('.frame')].every(frame =>"
        " frame.getBoundingClientRect().right <= cell.getBoundingClientRect().right)"
    )
    assert inside
    page.close()
