"""The Kubernetes files against schemas: Kubernetes' own for the pods and the claim, a hand-written one for the rest.

The schema of the RayJob is not KubeRay's CRD. It was written from KubeRay's API types in v1.6.2
(`ray-operator/apis/ray/v1/rayjob_types.go`, `raycluster_types.go`) and has only the fields that our file uses. So this
finds misspelt and misplaced fields and values of a wrong type. It does not prove that KubeRay accepts the file: an
error in the transcription, or a rule of the operator that is not among those at the end, would go unnoticed.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ral_system import launch
from tests.unit.launch.kuberay_file import ray_job

CLUSTER = Path(launch.__file__).parent / "cluster"
KUBERNETES = "1.31"
"""The oldest version that the file's commands work with."""


def closed(*required: str, **fields: Any) -> dict[str, Any]:
    """An object of these fields alone."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


TEXT = {"type": "string"}
INTEGER = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
POD = {"type": "object", "required": ["spec"]}
"""A pod's template, which is checked as a pod."""
HEAD = closed(
    *("template", "rayStartParams"),
    template=POD,
    rayStartParams=PARAMETERS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
WORKERS = closed(
    *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    rayStartParams=PARAMETERS,
    template=POD,
)
RAY_CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = closed(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    # The operator's own rule: pods and services take their names from this one.
    metadata=closed("name", name={"type": "string", "maxLength": 47, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}),
    spec=closed(
        entrypoint=TEXT,
        backoffLimit=INTEGER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=INTEGER,
        rayClusterSpec=RAY_CLUSTER,
    ),
)


def check(job: dict[str, Any]) -> None:
    """Raise for what KubeRay or Kubernetes would refuse."""
    jsonschema.validate(job, RAY_JOB)
    for pod in pods(job):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that the operator creates from the templates."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}


@pytest.fixture
def job() -> dict[str, Any]:
    return ray_job()


@pytest.mark.parametrize("one_gpu", [False, True])
def test_the_ray_job_fits_the_schemas(one_gpu: bool) -> None:
    job = ray_job(one_gpu=one_gpu)
    check(job)
    assert len(list(pods(job))) == 2


def test_the_claim_fits_the_schema_of_kubernetes() -> None:
    claim = yaml.safe_load((CLUSTER / "kuberay-volume.yaml").read_text())
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    claim["spec"]["accessMode"] = claim["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
        kubernetes_validate.validate(claim, KUBERNETES, strict=True)


def _head(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]


MISTAKES: dict[str, Callable[[dict[str, Any]], None]] = {
    "backofLimit": lambda job: job["spec"].update(backofLimit=3),
    "deletionPolicy": lambda job: job["spec"].update(deletionPolicy="DeleteCluster"),
    "workerGroups": lambda job: job["spec"]["rayClusterSpec"].update(workerGroups=[]),
    "template": lambda job: _head(job).pop("template"),
    "Token": lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="Token"),
    "0 is not of type 'string'": lambda job: _head(job)["rayStartParams"].update({"num-cpus": 0}),
    "secretRef": lambda job: _worker(job)["containers"][0]["env"].append({"name": "A", "valueFrom": {"secretRef": {}}}),
    "toleration": lambda job: _worker(job).update(toleration=_worker(job).pop("tolerations")),
    "containerPort": lambda job: _head(job)["template"]["spec"]["containers"][0]["ports"].append({"name": "x"}),
}
"""What the error names, and a change of the file that makes it."""


@pytest.mark.parametrize("named", MISTAKES)
def test_a_mistake_is_refused(job: dict[str, Any], named: str) -> None:
    MISTAKES[named](job)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match=re.escape(named)):
        check(job)


def test_the_operators_rules_between_fields_hold(job: dict[str, Any]) -> None:
    """Rules that are in the operator's code: tokens need Ray 2.52, a delay before deletion needs deletion."""
    version = tuple(map(int, job["spec"]["rayClusterSpec"]["rayVersion"].split(".")))
    assert version >= (2, 52, 0)
    assert job["spec"]["shutdownAfterJobFinishes"] or "ttlSecondsAfterFinished" not in job["spec"]
    pins = (Path(__file__).parents[3] / "constraints-gpu.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pins
