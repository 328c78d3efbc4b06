"""The files that start clusters: legal by the schemas we have, and closed to the outside by default."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ral_system import launch

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
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_the_kubernetes_objects_belong_together_and_demand_the_token() -> None:
    cluster, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["entrypoint"].startswith(EXPERIMENT)
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes
        assert all(type(v) is str for c in pod["containers"] for v in c["resources"]["limits"].values())
    assert all(type(value) is str for group in groups for value in group["rayStartParams"].values())


def test_the_pods_share_results_and_models_and_take_keys_from_a_secret() -> None:
    cluster, _ = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    claim = load(CLUSTER / "kuberay-volume.yaml")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
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
    for worker in cluster["spec"]["workerGroupSpecs"]:
        tolerated = {toleration["key"] for toleration in worker["template"]["spec"]["tolerations"]}
        assert tolerated == {"nvidia.com/gpu"}


def test_the_first_steps_wait_for_the_job_before_they_follow_it() -> None:
    text = (CLUSTER / "kuberay.yaml").read_text()
    steps = [
        text.index(step)
        for step in ("apply -f kuberay-volume.yaml", "apply -f kuberay.yaml", "wait --for=create job/ral", "job/ral\n")
    ]
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


@pytest.mark.parametrize("name", ["kuberay.yaml", "ray-cluster.yaml", "slurm.sbatch"])
def test_every_example_names_a_run_folder_that_nodes_share(name: str) -> None:
    text = (CLUSTER / name).read_text()
    submissions = text.count("ral-train experiment=") + text.count('ral-train "$')
    assert submissions == text.count("runs_dir=/") + text.count('runs_dir="$SLURM_SUBMIT_DIR/runs"')


def test_the_slurm_script_parses_and_demands_the_token() -> None:
    script = CLUSTER / "slurm.sbatch"
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(script)], capture_output=True, timeout=60).stderr == b""
    text = script.read_text()
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
