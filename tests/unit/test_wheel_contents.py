"""An editable install puts the whole repository on the path and hides what a wheel lacks; so build one and look."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("actors", "conf", "launch")
"""Folders of the repository that are installed below `ral_system`."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_every_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    folders = {ROOT / "ral_system": "ral_system"} | {ROOT / name: f"ral_system/{name}" for name in LINKED}
    sources = {
        f"{installed}/{file.relative_to(folder)}"
        for folder, installed in folders.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sources - set(wheel.namelist()) == set()


def test_what_a_submitted_job_reads_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {
        "ral_system/types/__init__.py",
        "ral_system/actors/__init__.py",
        "ral_system/launch/doctor/cli.py",
        "ral_system/conf/config.yaml",
    }
    expected |= {
        f"ral_system/launch/cluster/{name}"
        for name in ("ray-cluster.yaml", "kuberay.yaml", "kuberay-volume.yaml", "slurm.sbatch")
    }
    assert expected - names == set()
    folders = {folder.name for folder in (ROOT / "conf").iterdir() if any(folder.glob("*.yaml"))}
    assert {
        name.split("/")[2] for name in names if name.startswith("ral_system/conf/") and name.count("/") == 3
    } == folders


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert tops == {"ral_system"}


def test_the_commands_and_the_licence_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    (commands,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "ral-train = ral_system.launch.train:main" in wheel.read(commands).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
