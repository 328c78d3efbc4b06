"""The files that start clusters: legal by the schemas we have, and closed to the outside by default."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ral_system import launch
from tests.unit.launch.kuberay_file import ray_job

ROOT = Path(__file__).parents[3]
CLUSTER = Path(launch.__file__).parent / "cluster"
EXPERIMENT = "ral-train experiment=ral_qwen2_5_vl_7b_8gpu"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return load(ROOT / "docker" / "compose.yaml")["services"]


def test_compose_publishes_on_loopback_only(services) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8265:8265"]
    assert not any("network_mode" in service for service in services.values())


def test_every_compose_service_demands_the_token_of_the_secret_file(services) -> None:
    assert set(services) == {"head", "worker"}
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_auth_token"
        assert "RAY_AUTH_TOKEN" not in service["environment"]  # it would show in `docker inspect`
        assert service["secrets"] == ["ray_auth_token"]
    assert load(ROOT / "docker" / "compose.yaml")["secrets"] == {"ray_auth_token": {"file": "./ray_auth_token"}}


def test_the_token_file_is_kept_out_of_commits_and_images() -> None:
    assert "docker/ray_auth_token" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.startswith("!docker") for line in ignored)


def test_compose_containers_have_no_privileges_and_enough_shared_memory(services) -> None:
    for service in services.values():
        assert "privileged" not in service
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["shm_size"] == "8gb"


def test_the_gpu_overlay_changes_known_services_only(services) -> None:
    overlay = load(ROOT / "docker" / "compose.gpu.yaml")["services"]
    assert set(overlay) <= set(services)
    assert not any({"ports", "environment", "privileged"} & set(service) for service in overlay.values())


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_a_host_has_one_worker_with_all_gpus(name: str) -> None:
    """A worker reports to Ray each GPU that it sees, so two of them would have every GPU twice."""
    worker = load(ROOT / "docker" / "compose.gpu.yaml")["services"]["worker"]
    assert [device["count"] for device in worker["deploy"]["resources"]["reservations"]["devices"]] == ["all"]
    lines = (ROOT / "docker" / name).read_text().partition("\nname:")[0].splitlines()
    commands = [line for line in lines if line.startswith("#   docker compose ") and "compose.gpu.yaml" in line]
    assert len(commands) == 1 and commands[0].endswith(" --scale worker=1")


def test_the_image_copies_every_package_and_runs_as_a_user() -> None:
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    for package in ("ral_system", "actors", "conf", "launch"):
        assert f"COPY {package} {package}" in lines
    assert "USER ral" in lines
    assert "ENV RAY_AUTH_MODE=token" in lines


def test_the_on_premises_cluster_fits_rays_schema_and_demands_the_token() -> None:
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("ray is not installed")
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = load(CLUSTER / "ray-cluster.yaml")
    # Ray rewrites this key of the local provider before it validates.
    jsonschema.validate({key: value for key, value in cluster.items() if key != "min_workers"}, schema)
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token HF_HOME=/shared/huggingface ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.fixture(scope="module")
def kuberay() -> dict[str, Any]:
    return load(CLUSTER / "kuberay.yaml")


def test_the_kubernetes_pods_belong_together_and_demand_the_token(kuberay) -> None:
    assert kuberay["spec"]["entrypoint"].startswith(EXPERIMENT)
    cluster = kuberay["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes


def test_the_pods_share_results_and_models_and_take_keys_from_a_secret(kuberay) -> None:
    cluster, claim = kuberay["spec"]["rayClusterSpec"], load(CLUSTER / "kuberay-volume.yaml")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        environment = {variable["name"]: variable for variable in container["env"]}
        assert environment["HF_HOME"]["value"].startswith(f"{mounts['runs']}/")
        for key in ("WANDB_API_KEY", "HF_TOKEN"):
            assert environment[key]["valueFrom"]["secretKeyRef"] == {"name": "ral-keys", "key": key, "optional": True}
        assert pod["securityContext"] == {"fsGroup": 1000}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for worker in cluster["workerGroupSpecs"]:
        tolerated = {toleration["key"] for toleration in worker["template"]["spec"]["tolerations"]}
        assert tolerated == {"nvidia.com/gpu"}


def test_a_failed_run_starts_again_where_its_checkpoints_are(kuberay) -> None:
    """KubeRay makes a new cluster for each retry of a job that brings its own."""
    spec = kuberay["spec"]
    assert spec["backoffLimit"] > 0 and "clusterSelector" not in spec
    assert spec["shutdownAfterJobFinishes"] is True
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    claimed = {volume["name"] for volume in head["volumes"] if "persistentVolumeClaim" in volume}
    kept = [m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] in claimed]
    assert kept == [spec["entrypoint"].partition("runs_dir=")[2]]


def test_the_image_that_the_pods_pull_is_built_and_pushed_first(kuberay) -> None:
    """A name without a registry would only be found on a node that has built the image."""
    text = (CLUSTER / "kuberay.yaml").read_text()
    image = kuberay["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    host, _, _ = image.partition("/")
    assert "." in host
    base = load(ROOT / "docker" / "compose.gpu.yaml")["x-gpu"]["build"]["args"]["BASE"]
    build = f"docker build -f docker/Dockerfile -t {image} "
    wanted = (build, f"BASE={base} ", f"docker push {image}\n", "kubectl apply")
    steps = [text.index(step) for step in wanted]
    assert steps == sorted(steps)
    docs = (ROOT / "docs" / "cluster.md").read_text()
    assert [docs.count(step) for step in wanted[:3]] == [1, 1, 1]


def test_one_gpu_is_asked_for_and_used(kuberay) -> None:
    job, whole = ray_job(one_gpu=True), kuberay
    one = "ral-train experiment=ral_qwen2_5_vl_3b_1gpu runs_dir=/runs"
    assert (job["spec"].pop("entrypoint"), whole["spec"]["entrypoint"]) == (one, f"{EXPERIMENT} runs_dir=/runs")
    limits = []
    for found in (job, copy.deepcopy(whole)):
        (worker,) = found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        resources = worker["template"]["spec"]["containers"][0].pop("resources")
        assert resources["limits"] == resources["requests"]
        limits.append(resources["limits"]["nvidia.com/gpu"])
    assert limits == ["1", "8"]
    for file in (ROOT / "docker" / "compose.gpu.yaml", CLUSTER / "slurm-1gpu.sbatch"):
        assert "experiment=ral_qwen2_5_vl_3b_1gpu" in file.read_text()
    assert "#SBATCH --gpus-per-node=1\n" in (CLUSTER / "slurm-1gpu.sbatch").read_text()


def test_the_first_steps_wait_for_the_job_before_they_follow_it(kuberay) -> None:
    text, name = (CLUSTER / "kuberay.yaml").read_text(), kuberay["metadata"]["name"]
    wanted = (
        "apply -f kuberay-volume.yaml",
        "create secret generic ral-keys",
        "apply -f kuberay.yaml",
        f"wait --for=create job/{name} ",
        f"logs --follow --pod-running-timeout=5m job/{name}\n",
    )
    steps = [text.index(step) for step in wanted]
    assert steps == sorted(steps)


def test_compose_leaves_results_on_the_host_and_keeps_models(services) -> None:
    for service in services.values():
        by_target = {volume["target"]: volume for volume in service["volumes"]}
        assert by_target["/runs"] == {
            "type": "bind", "source": "../runs", "target": "/runs", "bind": {"create_host_path": False}
        }  # fmt: skip
        assert service["environment"]["HF_HOME"].startswith("/cache/")
        assert by_target["/cache"]["type"] == "volume"
    assert "mkdir /runs /cache && chown ral /runs /cache" in (ROOT / "docker" / "Dockerfile").read_text()
    assert "/runs/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["kuberay.yaml", "ray-cluster.yaml", "slurm.sbatch", "slurm-1gpu.sbatch"])
def test_every_example_names_a_run_folder_that_nodes_share(name: str) -> None:
    text = (CLUSTER / name).read_text()
    submissions = text.count("ral-train experiment=") + text.count('ral-train "$')
    assert submissions == text.count("runs_dir=/") + text.count('runs_dir="$SLURM_SUBMIT_DIR/runs"')


def test_shell_scripts_have_no_known_mistakes() -> None:
    """In every file that begins as a script for a shell."""
    folders = [ROOT / name for name in (".ci", "bench", "docker", "docs", "examples", "launch")]
    firsts = {f: f.read_bytes().partition(b"\n")[0] for folder in folders for f in folder.rglob("*") if f.is_file()}
    scripts = [file for file, first in firsts.items() if first.startswith(b"#!") and first.endswith(b"sh")]
    assert {file.relative_to(ROOT).as_posix() for file in scripts} >= {".ci/run", "launch/cluster/slurm.sbatch"}
    command = [str(Path(sys.executable).parent / "shellcheck"), "--format=gcc", *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_slurm_script_demands_the_token() -> None:
    text = (CLUSTER / "slurm.sbatch").read_text()
    assert text.index("export RAY_AUTH_MODE=token") < text.index("ray start")
    assert "--dashboard-host=127.0.0.1" in text
    assert "experiment=ral_qwen2_5_vl_7b_8gpu" in text


def test_the_image_installs_the_pinned_set_of_its_kind() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert 'pip install -c "constraints-$EXTRA.txt" ".[$EXTRA]"' in text
    extra = load(ROOT / "docker" / "compose.gpu.yaml")["x-gpu"]["build"]["args"]["EXTRA"]
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for kind in ("cpu", extra):
        assert f"constraints-{kind}.txt" in text
        assert f"!constraints-{kind}.txt" in ignored
        assert (ROOT / f"constraints-{kind}.txt").is_file()
