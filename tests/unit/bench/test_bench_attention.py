"""The benchmark runs where only torch and transformers are installed, and says what it found and what it did not."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import measure, terms
from bench.plan import VARIANTS, plan
from bench.plot import draw
from bench.targets import COMPUTED, Records, judge

ROOT = Path(__file__).parents[3]
ABSENT = ("ray", "vllm", "deepspeed", "hydra", "omegaconf", "pydantic", "wandb", "sklearn", "rich", "matplotlib")


def bench(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "bench.attention", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One quick run on the CPU, in it and its child processes the packages of ABSENT cannot be imported."""
    path, out = tmp_path_factory.mktemp("path"), tmp_path_factory.mktemp("out")
    (path / "sitecustomize.py").write_text(f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n")
    return bench("--quick", "--device", "cpu", "--threads", "1", "--out", str(out), path=path), out


@pytest.mark.long
def test_a_quick_run_needs_torch_and_transformers_only(quick) -> None:
    done, out = quick
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in out.iterdir()} == {"attention_cpu_quick.json", "attention_cpu_quick.svg"}


@pytest.mark.long
def test_the_json_holds_every_raw_figure_and_what_made_it(quick) -> None:
    _, out = quick
    found = json.loads((out / "attention_cpu_quick.json").read_text())
    assert (found["device"]["kind"], found["device"]["threads"], found["quick"]) == ("cpu", 1, True)
    assert found["versions"].keys() == {"python", "torch", "triton", "transformers"}
    assert found["config"]["dtype"] == "float32"
    layer = {(r["variant"], r["tokens"]): r for r in found["layer"]}
    assert layer.keys() == {(v, t) for v in VARIANTS for t in found["config"]["tokens"]}
    for (variant, _), record in layer.items():
        if variant == "triton":
            assert record["failure"].startswith("skipped: ")
            continue
        assert record["failure"] is None
        assert len(record["forward_s"]) == len(record["forward_backward_s"]) == 3
        assert min(record["forward_s"] + record["forward_backward_s"]) > 0
        assert record["forward_peak_bytes"] > 0 and record["forward_backward_peak_bytes"] > 0
        assert ("term_peak_bytes" in record) == (variant == "chunked")
    (stack,) = found["stack"]
    assert stack["failure"] is None and stack["backend"] == "chunked"
    for name in ("step_without_term_s", "step_with_term_s", "term_s", "log_prob_pass_s", "scoring_s"):
        assert len(stack[name]) == 3
    assert stack[COMPUTED]["term_share_of_step"] == pytest.approx(stack["measured"]["term_share_of_step"] / 14)
    assert {t["status"] for t in found["targets"]} == {"not measured"}


@pytest.mark.long
def test_no_path_or_host_name_is_written(quick) -> None:
    _, out = quick
    text = "".join(file.read_text() for file in out.iterdir())
    assert str(ROOT) not in text and str(out) not in text and os.uname().nodename not in text


@pytest.mark.long
def test_the_plot_is_an_svg_with_a_line_for_each_measured_variant(quick) -> None:
    _, out = quick
    svg = ET.parse(out / "attention_cpu_quick.svg").getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"dense rows", "chunked", "eager, all rows", "layer's sdpa"} <= set(texts)
    assert any(text.startswith("not measured: triton") for text in texts)


@pytest.mark.long
def test_targets_are_printed_last(quick) -> None:
    done, _ = quick
    lines = done.stdout.strip().splitlines()[-7:]
    assert all("not measured" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tokens", "0"], "'0' is not a positive number"),
        (["--layer-count", "3"], "unrecognized arguments"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--out", "/dev/null/folder"], "--out /dev/null/folder: "),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import attention

    monkeypatch.setattr(sys, "argv", ["attention", *arguments])
    with pytest.raises(SystemExit) as ended:
        attention.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert says in captured.err and "--help" in captured.err


def test_help_explains_variants_and_files() -> None:
    done = bench("--help")
    assert done.returncode == 0
    for word in (
        "eager_full",
        "dense",
        "chunked",
        "triton",
        "sdpa",
        "--quick",
        "attention_<device>.json",
        "Exit codes",
    ):
        assert word in done.stdout


def test_variants_compute_the_same_term() -> None:
    x = terms.make_inputs(plan("cpu", quick=True), 40)
    torch.testing.assert_close(x.target.sum(-1), torch.ones(16))
    dense = terms.forward("dense", x)
    for variant in ("eager_full", "chunked"):
        torch.testing.assert_close(terms.forward(variant, x), dense)
    (a,), (b,) = (torch.autograd.grad(terms.forward(v, x).sum(), x.query) for v in ("eager_full", "dense"))
    torch.testing.assert_close(a, b)


def test_a_call_out_of_memory_is_recorded_and_the_others_go_on() -> None:
    turns = []

    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n90 GiB")

    times, failures = measure.time_in_turns(
        {"a": lambda: turns.append("a"), "b": too_large, "c": lambda: turns.append("c")},
        "cpu",
        min_repeats=2,
        max_repeats=2,
        seconds=0.0,
    )
    assert failures == {"b": "out of memory: CUDA out of memory. Tried to allocate 90 GiB"}
    assert turns == ["a", "c"] * 3 and {key: len(found) for key, found in times.items()} == {"a": 2, "c": 2}


def test_a_killed_child_process_is_a_recorded_failure() -> None:
    assert measure.in_child(os._exit, 9) == (None, "its process died, exit code 9 (out of memory if -9)")
    assert measure.in_child(divmod, 7, 0) == (None, "ZeroDivisionError: integer division or modulo by zero")
    assert measure.in_child(divmod, 7, 2) == ((3, 1), None)


def layer(variant: str, tokens: int, seconds: float, mib: float, term_mib: float | None = None) -> dict[str, Any]:
    peaks = {} if term_mib is None else {"term_peak_bytes": int(term_mib * 2**20)}
    peak = int(mib * 2**20)
    return {"variant": variant, "tokens": tokens, "forward_backward_s": [seconds], "failure": None} | {
        "forward_backward_peak_bytes": peak,
        **peaks,
    }


def stack(tokens: int, backend: str, share: float, scoring: float, extra_mib: int = 0) -> dict[str, Any]:
    computed = {"term_share_of_step": share, "scoring_share_of_log_prob_pass": scoring}
    measured = {"extra_peak_bytes": extra_mib << 20}
    return {"tokens": tokens, "layers": 4, "backend": backend, COMPUTED: computed, "measured": measured}


def verdicts(records: Records, device: Any) -> list[tuple[float | None, str]]:
    return [(t["value"], t["status"]) for t in judge(records, device)]


def test_targets_of_a_gpu() -> None:
    doubling = [(16384, 40.0), (32768, 80.0), (131072, 400.0)]
    records = Records(
        [layer("sdpa", 16384, 1.0, 1)] + [layer("triton", t, 0.2, 999, mib) for t, mib in doubling],
        [stack(16384, "triton", 0.02, 0.01, 70)],
    )
    ratio, share, memory, extra, growth, *cpu, scoring = verdicts(records, "cuda")
    assert (ratio, share, memory, scoring) == ((0.2, "met"), (0.02, "missed"), (40.0, "met"), (0.01, "met"))
    assert extra == (70.0, "missed")
    assert growth == (pytest.approx(5**0.5), "missed")  # 80 to 400 MiB over two doublings
    assert cpu == [(None, "not measured")] * 2


def test_targets_of_a_cpu() -> None:
    records = Records(
        [layer("dense", t, 1.0, t) for t in (1024, 2048, 4096)]
        + [layer("chunked", t, s, m) for t, s, m in ((1024, 9.0, 10), (2048, 0.5, 20), (4096, 0.9, 42))],
        [stack(1024, "chunked", 1.0, 0.06), stack(2048, "chunked", 1.0, 0.04)],
    )
    *gpu, slower, growth, scoring = verdicts(records, "cpu")
    assert gpu == [(None, "not measured")] * 5
    assert (slower, growth, scoring) == ((0.9, "met"), (pytest.approx(2.1), "met"), (0.06, "missed"))


def test_a_target_with_a_gap_is_not_measured() -> None:
    gap = {"variant": "chunked", "tokens": 4096, "failure": "out of memory"}
    records = Records([layer("dense", 2048, 1.0, 1), layer("chunked", 2048, 0.5, 1), gap], [])
    assert {status for _, status in verdicts(records, "cpu")} == {"not measured"}
    assert "not measured: chunked at 4,096" in draw(records, "title")
