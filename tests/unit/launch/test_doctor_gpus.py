"""`ral-doctor --gpu` on nodes with simulated nvidia-smi, torch and adapters."""

import json
from pathlib import Path
from typing import Any

import pytest

from ral_system.launch.doctor import gpus
from ral_system.launch.doctor.check import Check, Probe, Status
from ral_system.launch.doctor.gpus import check_gpus

H100 = "NVIDIA H100 80GB HBM3, 580.65.06, 81559, {}"
TORCH = {"built": "13.0", "available": True, "nccl": "2.27.7", "capabilities": [[9, 0], [9, 0]], "peers": True}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def look(
        smi: str = f"echo '{H100.format(81000)}'", adapters: dict[str, str] | None = None, **torch: Any
    ) -> dict[str, Check]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{smi}\n")
        program.chmod(0o755)
        for name, state in (adapters or {}).items():
            port = tmp_path / "infiniband" / name / "ports" / "1"
            port.mkdir(parents=True)
            (port / "state").write_text(state)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        error = torch.pop("error", "")
        monkeypatch.setattr(gpus, "probe", lambda code: Probe(not error, TORCH | torch, error))
        return {check.name: check for check in check_gpus(tmp_path / "infiniband")}

    return look


def test_a_good_node(node: Any) -> None:
    found = node(adapters={"mlx5_0": "4: ACTIVE\n", "mlx5_1": "1: DOWN\n"})
    assert [c.status for name, c in found.items() if name != "locked memory"] == [Status.OK] * 5
    assert found["driver"].found == "580.65.06" and found["NCCL"].found == "2.27.7"
    assert found["GPU 0"].found == "NVIDIA H100 80GB HBM3, 79.1 of 79.6 GiB free"
    assert found["InfiniBand"].found == "mlx5_0 active of 2"


def test_a_node_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = check_gpus()
    assert (check.status, check.blocks) == (Status.MISSING, ("gpu",)) and "--gpus all" in check.remedy


@pytest.mark.parametrize(
    ("name", "status", "found", "setting"),
    [
        (
            "driver",
            Status.BROKEN,
            "Driver/library version mismatch",
            {"smi": "echo 'Driver/library version mismatch'; exit 18"},
        ),
        ("driver", Status.BROKEN, "no GPUs", {"smi": "true"}),
        (
            "GPU 0",
            Status.WARNING,
            "NVIDIA H100 80GB HBM3, 48.8 of 79.6 GiB free",
            {"smi": f"echo '{H100.format(50000)}'"},
        ),
        ("CUDA", Status.BROKEN, "torch is a CPU build", {"available": False, "built": None}),
        ("CUDA", Status.BROKEN, "torch is built for CUDA 13.0 and finds no GPU", {"available": False}),
        ("CUDA", Status.BROKEN, "RuntimeError: no kernel image", {"error": "RuntimeError: no kernel image"}),
        ("capability", Status.WARNING, "7.5", {"capabilities": [[9, 0], [7, 5]]}),
        ("peer access", Status.WARNING, "not between all GPUs", {"peers": False}),
        ("InfiniBand", Status.WARNING, "none active of 1", {"adapters": {"mlx5_0": "1: DOWN\n"}}),
        ("InfiniBand", Status.INFO, "none", {}),
    ],
)
def test_each_fault_has_its_line(node: Any, name: str, status: Status, found: str, setting: dict[str, Any]) -> None:
    check = node(**setting)[name]
    assert (check.status, check.found) == (status, found) and check.remedy
    assert ("gpu" in check.blocks) == (status is Status.BROKEN)


def test_the_command_fails_where_no_gpu_run_can_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ral_system.launch.doctor import cli

    broken = Check("CUDA", Status.BROKEN, "torch is a CPU build", "…", ("gpu",))
    for name, checks in (("check_packages", []), ("check_machine", []), ("check_gpus", [broken])):
        monkeypatch.setattr(cli, name, lambda checks=checks: checks)
    for arguments, code, obstacles in ((["--json"], 0, []), (["--json", "--gpu"], 1, ["CUDA"])):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == code
        assert json.loads(capsys.readouterr().out)["obstacles"]["gpu"] == obstacles
