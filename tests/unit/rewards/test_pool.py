import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

from ral_system.config.reward import RewardConfig
from ral_system.errors import ActorError, SetupError
from ral_system.rewards.judge import judge
from ral_system.rewards.pool import RewardPool, _greeting, check_loads
from ral_system.rewards.worker import Worker
from ral_system.types import Completion, FinishReason, Prompt, RewardStatus, Verdict
from tests.unit.rewards.settings import reward_config

IMPORTABLE = Path(__file__).parent / "importable"
GOOD = "<think>a1</think><answer>red</answer>"
RIGHT = {"correctness": 1.0, "format": 1.0}


def config(workers: int = 1, timeout_s: float = 2.0) -> RewardConfig:
    return reward_config(workers=workers, timeout_s=timeout_s)


def submit(pool: RewardPool, texts: list[str]) -> list[str]:
    prompt = Prompt("p", "attribute", "?", "red", (), (1,))
    completions = [Completion("p", i, (1,), (0.0,), text, FinishReason.STOP, 0) for i, text in enumerate(texts)]
    pool.submit(completions, prompt)
    return [completion.id for completion in completions]


def judge_all(pool: RewardPool, texts: list[str]) -> list[Verdict]:
    ids = submit(pool, texts)
    results = pool.collect()
    assert set(results) == set(ids)
    return [results[i] for i in ids]


def pid_of(verdict: Verdict) -> int:
    return round(verdict.parts["pid"] * 2**30)


def test_what_cannot_be_loaded_is_found_without_a_response() -> None:
    foreign = reward_config(verifier="function", function="nope:f")
    assert foreign.foreign and not reward_config().foreign
    with pytest.raises(SetupError, match="No module named 'nope'"):
        check_loads(foreign, "answer_only")
    check_loads(reward_config(verifier="function", function="math:fmod"), "answer_only")


def test_every_question_kind_has_its_own_verifier() -> None:
    kinds = {"letter": "multiple_choice", "number": "numeric"}
    answers = [("letter", "(B)", "B"), ("number", "2.0", "2"), ("other", "(B)", "B"), ("other", "b", "B")]
    with RewardPool(reward_config(kinds=kinds), "answer_only") as pool:
        for i, (kind, given, reference) in enumerate(answers):
            completion = Completion("p", i, (1,), (0.0,), f"<answer>{given}</answer>", FinishReason.STOP, 0)
            pool.submit([completion], Prompt("p", kind, "?", reference, (), (1,)))
        verdicts = pool.collect()
    assert [verdicts[f"p#{i}"].parts["correctness"] for i in range(4)] == [1, 1, 0, 1]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


@pytest.fixture
def naughty(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(IMPORTABLE))
    yield importlib.import_module("naughty_verifiers")
    sys.modules.pop("naughty_verifiers")


def test_collect_returns_everything_since_the_last_call() -> None:
    with RewardPool(config(workers=2), "think_answer") as pool:
        assert pool.collect() == {}
        first = judge_all(pool, [GOOD, "<answer>red</answer>", "blue"] * 50)
        assert [r.parts for r in first] == [RIGHT, RIGHT | {"format": 0.0}, dict.fromkeys(RIGHT, 0.0)] * 50
        assert all(r.status is RewardStatus.OK and not r.detail for r in first)
        assert dict(first[0].parts) == {"correctness": 1.0, "format": 1.0}
        assert len(judge_all(pool, [GOOD])) == 1
        assert pool.collect() == {}


def test_the_response_format_reaches_the_processes() -> None:
    with RewardPool(config(), "answer_only") as pool:
        assert [r.parts["format"] for r in judge_all(pool, [GOOD, "<answer>red</answer>"])] == [0.0, 1.0]


@pytest.mark.parametrize("text", ["é 視\u2028\n\x00", "\ud800", "x" * 300_000])
def test_any_text_crosses_the_pipe(text: str) -> None:
    with RewardPool(config(timeout_s=5), "answer_only") as pool:
        results = judge_all(pool, [text, f"<answer>{text}</answer>", "<answer>red</answer>"])
    assert [r.status for r in results] == [RewardStatus.OK] * 3
    assert results[2].parts == RIGHT


@pytest.mark.parametrize(
    ("text", "status", "detail"),
    [
        ("hang", RewardStatus.TIMEOUT, "no verdict within 2 s"),
        ("spin", RewardStatus.TIMEOUT, "no verdict within 2 s"),
        ("exit:7", RewardStatus.ERROR, "the verifier process exited with code 7"),
        ("exit:0", RewardStatus.ERROR, "the verifier process exited with code 0"),
        ("kill", RewardStatus.ERROR, "the verifier process was killed by SIGKILL"),
        ("sys.exit", RewardStatus.ERROR, "SystemExit: 3"),
        ("raise:oh no", RewardStatus.ERROR, "RuntimeError: oh no"),
        ("nan", RewardStatus.ERROR, "{'correctness': nan}; every value must be in [0, 1]"),
        ("huge", RewardStatus.ERROR, "every value must be in [0, 1]"),
        ("allocate:10", RewardStatus.ERROR, "MemoryError"),
        ("descriptors:oops\n", RewardStatus.ERROR, "wrote into the pipe"),
        ('descriptors:{"parts": 3}\n', RewardStatus.ERROR, "wrote into the pipe"),
        ("descriptors:" + "x" * 3 * 2**20, RewardStatus.ERROR, "wrote into the pipe"),
        ("fork", RewardStatus.OK, ""),
        ("print", RewardStatus.OK, ""),
    ],
)
def test_a_bad_verifier_costs_only_its_sample(
    naughty: ModuleType, text: str, status: RewardStatus, detail: str
) -> None:
    with RewardPool(config(), "think_answer", naughty.obedient) as pool:
        results = judge_all(pool, [GOOD] * 5 + [text] + [GOOD] * 40)
        assert results[5].status is status
        assert detail in results[5].detail
        assert status is RewardStatus.OK or not results[5].parts
        others = results[:5] + results[6:]
        assert all(r.status is RewardStatus.OK and r.parts == RIGHT for r in others)
        assert judge_all(pool, [GOOD])[0].parts == RIGHT


def test_many_bad_completions_in_one_batch(naughty: ModuleType) -> None:
    with RewardPool(config(workers=2, timeout_s=1), "think_answer", naughty.obedient) as pool:
        results = judge_all(pool, [GOOD, "hang", "exit:1", "kill", "raise:x"] * 3)
    statuses = [r.status for r in results]
    assert statuses == [RewardStatus.OK, RewardStatus.TIMEOUT, *[RewardStatus.ERROR] * 3] * 3


def test_a_process_killed_while_idle_costs_nothing(naughty: ModuleType) -> None:
    with RewardPool(config(), "think_answer", naughty.obedient) as pool:
        pid = pid_of(judge_all(pool, ["pid"])[0])
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        results = judge_all(pool, [GOOD] * 3)
    # The pool may hand a job to a process whose death it has not seen yet: at most that one is lost.
    assert sum(r.status is not RewardStatus.OK for r in results) <= 1


def test_close_leaves_no_process_even_in_the_middle_of_work(naughty: ModuleType) -> None:
    pool = RewardPool(config(workers=2, timeout_s=60), "think_answer", naughty.obedient)
    pids = {pid_of(r) for r in judge_all(pool, ["pid"] * 64)}
    submit(pool, ["hang", "hang"])
    pool.close()
    pool.close()
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ActorError, match="closed"):
        submit(pool, [GOOD])


@pytest.mark.parametrize("command", ["child", "session"])
def test_what_a_verifier_started_dies_with_it(naughty: ModuleType, tmp_path: Path, command: str) -> None:
    with RewardPool(config(), "think_answer", naughty.obedient) as pool:
        assert judge_all(pool, [f"{command}:{tmp_path / 'pid'}"])[0].status is RewardStatus.TIMEOUT
    wait_until_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("as_ray_does", [False, True])
def test_processes_die_with_a_parent_that_is_killed(tmp_path: Path, as_ray_does: bool) -> None:
    """With what they have started. Ray kills the children of a worker process before that ends."""
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(IMPORTABLE)!r}, {str(Path(__file__).parent)!r}]\n"
        "import naughty_verifiers, test_pool\n"
        "pool = test_pool.RewardPool(test_pool.config(timeout_s=3600), 'think_answer', naughty_verifiers.obedient)\n"
        "print(test_pool.pid_of(test_pool.judge_all(pool, ['pid'])[0]), flush=True)\n"
        f"test_pool.submit(pool, ['leave:{tmp_path / 'pid'}', 'spin'])\n"
        "import time; time.sleep(3600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    started = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    assert alive(child) and alive(started)
    if as_ray_does:
        children = [file.read_text().split() for file in Path(f"/proc/{parent.pid}/task").glob("*/children")]
        os.kill(int(*chain.from_iterable(children)), signal.SIGKILL)
    parent.kill()
    parent.wait(timeout=10)
    wait_until_gone(child)
    wait_until_gone(started)


def test_what_a_verifier_leaves_ends_with_its_process(naughty: ModuleType, tmp_path: Path) -> None:
    with RewardPool(config(), "think_answer", naughty.obedient) as pool:
        assert judge_all(pool, [f"leave:{tmp_path / 'pid'}"])[0].status is RewardStatus.OK
        assert judge_all(pool, ["exit:7"])[0].detail == "the verifier process exited with code 7"
        wait_until_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("sent", ["", '{"path', "{greeting}", '{greeting}["half a jo'])
@pytest.mark.parametrize("answers_are_read", [True, False])
def test_a_process_whose_parent_is_gone_ends_quietly(sent: str, answers_are_read: bool) -> None:
    """The end of its pipes may be seen before the kernel's signal: a half-sent message is not reported as an error."""
    greeting = _greeting(config(), "think_answer", judge).decode()
    process = subprocess.Popen(
        [sys.executable, "-m", "ral_system.rewards.child", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not answers_are_read:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
    _, err = process.communicate(sent.replace("{greeting}", greeting), timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_verifier_that_cannot_be_imported_is_refused() -> None:
    with pytest.raises(ValueError, match="top level of a module"):
        RewardPool(config(), "think_answer", lambda *_: None)  # type: ignore[arg-type, return-value]


def test_a_verifier_that_the_processes_cannot_import_fails_the_collect(naughty: ModuleType) -> None:
    pool = RewardPool(config(), "think_answer", naughty.obedient)
    pool.close()
    sys.path.remove(str(IMPORTABLE))
    with RewardPool(config(), "think_answer", naughty.obedient) as pool:
        submit(pool, [GOOD])
        with pytest.raises(SetupError, match="No module named 'naughty_verifiers'"):
            pool.collect()


def test_a_user_s_function_is_found_in_the_folder_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(IMPORTABLE)
    own = reward_config(verifier="function", function="own_verifier:first_word")
    with RewardPool(own, "think_answer") as pool:
        assert [r.parts["correctness"] for r in judge_all(pool, [GOOD, GOOD.replace("red", "blue")])] == [1.0, 0.0]
    with RewardPool(reward_config(verifier="function", function="nope:f"), "think_answer") as pool:
        submit(pool, [GOOD])
        with pytest.raises(
            SetupError, match=f"reward.function=nope:f: No module named 'nope'; put the .* {IMPORTABLE}"
        ) as raised:
            pool.collect()
    assert raised.value.exit_code == 2


def test_what_a_user_s_function_does_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(IMPORTABLE)
    for name, done in (
        ("five", "returned 5.0; it must return a number in [0, 1]"),
        ("broken", "raised KeyError: 'red'"),
    ):
        own = reward_config(verifier="function", function=f"own_verifier:{name}")
        with RewardPool(own, "think_answer") as pool:
            verdict = judge_all(pool, [GOOD])[0]
        assert (verdict.status, verdict.detail) == (RewardStatus.ERROR, f"reward.function=own_verifier:{name} {done}")


def test_the_same_completion_twice_is_a_mistake() -> None:
    with RewardPool(config(), "think_answer") as pool:
        submit(pool, [GOOD])
        with pytest.raises(ValueError, match="p#0 was submitted twice"):
            submit(pool, [GOOD])


def test_the_processes_do_not_import_torch() -> None:
    code = "import sys, ral_system.rewards.child; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_process_that_outlives_its_kill_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(b"")
    pid, wait = worker._process.pid, worker._process.wait

    def late(timeout: float) -> int:
        raise subprocess.TimeoutExpired("child", timeout)

    monkeypatch.setattr(worker._process, "wait", late)  # as in a driver's uninterruptible call
    worker.kill()
    assert capsys.readouterr().err == f"warning: verifier process {pid} is alive 10 s after it was killed\n"
    wait(timeout=20)
