"""Kubernetes takes the manifests, their pods are locked down, and what they name is there."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.contracts._cluster import (
    FIELDS,
    OBJECTS,
    PODS,
    STAGES,
    Object,
    Pod,
    check_fields,
    cluster_spec,
    in_tree,
    of_kind,
)
from tests.contracts._tree import ROOT, sources

EACH_POD = pytest.mark.parametrize("pod", PODS, ids=str)
CLUSTERS = of_kind("RayCluster", "RayService")
EACH_CLUSTER = pytest.mark.parametrize("each", CLUSTERS, ids=str)
JOBS = of_kind("RayJob")
SERVICE = of_kind("RayService")[0]
SERVE = yaml.safe_load(SERVICE.body["spec"]["serveConfigV2"])
SERVING = next(pod for pod in PODS if pod.owner == f"{SERVICE.name} gpu")
POLICIES = {each.name: each.body["spec"] for each in of_kind("NetworkPolicy")}


def entry_points() -> set[str]:
    """Modules of train_jobs that are run as a job; ``cli`` is the command itself."""
    mains = {path.stem for path in sources("train_jobs") if "__main__" in path.read_text(encoding="utf-8")}
    return mains - {"cli"}


@pytest.mark.parametrize("each", OBJECTS, ids=str)
def test_an_object_has_the_fields_of_its_kind_and_lives_in_the_namespace(each: Object) -> None:
    version, fields = FIELDS["kinds"][each.kind]
    assert each.body["apiVersion"] == version
    check_fields(each.body, fields)
    (namespace,) = of_kind("Namespace")
    assert each is namespace or each.body["metadata"]["namespace"] == namespace.name


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("rayVersions", "2.60.0"),
        ("authOptions", {"mode": "tokens"}),
        ("workerGroupSpecs", [{"groupName": "x"}]),
    ],
)
def test_a_misspelt_field_a_wrong_value_and_a_missing_one_are_found(place: str, value: Any) -> None:
    body = copy.deepcopy(of_kind("RayCluster")[0].body)
    body["spec"][place] = value
    with pytest.raises(jsonschema.ValidationError):
        check_fields(body, "RayCluster")


def test_names_are_not_used_twice() -> None:
    names = [(each.kind, each.name) for each in OBJECTS]
    assert len(set(names)) == len(names)


@EACH_POD
def test_a_pod_passes_the_restricted_level(pod: Pod) -> None:
    whole = pod.spec["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
    assert not any("hostPath" in volume for volume in pod.spec["volumes"])
    for container in pod.containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]
        assert container["resources"]["limits"]["memory"], container["name"]


@EACH_POD
def test_only_a_head_whose_autoscaler_asks_the_api_server_has_its_token(pod: Pod) -> None:
    assert pod.spec.get("automountServiceAccountToken", True) is bool(pod.extra)


@EACH_POD
def test_a_pod_mounts_volumes_that_it_has_and_has_none_for_nothing(pod: Pod) -> None:
    volumes = {volume["name"] for volume in pod.spec["volumes"]} | set(pod.claims)
    mounted = {mount["name"] for container in pod.containers for mount in container["volumeMounts"]}
    assert mounted == volumes


@EACH_POD
def test_an_image_is_one_of_ours_or_pinned(pod: Pod) -> None:
    for container in pod.containers:
        if image := container.get("image"):
            name, _, tag = image.partition(":")
            assert tag in STAGES if name == "largeforge" else re.search(r"\d+\.\d+\.\d+", tag), image


@EACH_POD
def test_secrets_and_claims_that_a_pod_names_are_made(pod: Pod) -> None:
    secrets = {each.name: each.body["stringData"] for each in of_kind("Secret")}
    variables = [variable for each in pod.containers for variable in each.get("env", [])]
    for reference in (each["valueFrom"]["secretKeyRef"] for each in variables if "valueFrom" in each):
        assert reference["key"] in secrets[reference["name"]]
    for source in (source for each in pod.containers for source in each.get("envFrom", [])):
        assert source["secretRef"]["name"] in secrets
    for volume in pod.spec["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["secretName"] in secrets
        if "persistentVolumeClaim" in volume:
            claims = {each.name for each in of_kind("PersistentVolumeClaim")}
            assert volume["persistentVolumeClaim"]["claimName"] in claims


@EACH_POD
def test_a_pod_is_probed_at_what_answers_without_a_token(pod: Pod) -> None:
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    for probe in (pod.main["livenessProbe"], pod.main["readinessProbe"]):
        if "exec" in probe:
            assert pod.owner == "largeforge-redis"
        elif probe["httpGet"]["path"] == "/-/healthz":
            assert probe["httpGet"]["port"] == SERVE["http_options"]["port"]
        else:
            assert probe["httpGet"]["path"] in PUBLIC_EXACT_PATHS
            assert probe["httpGet"]["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


@EACH_CLUSTER
def test_a_head_runs_nothing_and_what_it_knows_outlives_it(each: Object) -> None:
    spec = cluster_spec(each)
    head = spec["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "nvidia.com/gpu" not in json.dumps(head)
    host, _, port = spec["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
    (redis,) = of_kind("Service")
    assert (host, int(port)) == (redis.name, redis.body["spec"]["ports"][0]["port"])
    password = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    (kept,) = of_kind("StatefulSet")
    (own,) = kept.body["spec"]["template"]["spec"]["containers"][0]["env"]
    assert password == own["valueFrom"]["secretKeyRef"]


@EACH_CLUSTER
def test_a_cluster_asks_for_a_token_and_grows_by_gpus_on_demand(each: Object) -> None:
    spec = cluster_spec(each)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        idle = 1 if each.kind == "RayService" else 0
        assert (group["minReplicas"], group["maxReplicas"] > idle) == (idle, True)
        asked = group["template"]["spec"]["containers"][0]["resources"]
        assert asked["requests"] == asked["limits"]
        assert ("nvidia.com/gpu" in asked["limits"]) is (group["groupName"] == "gpu")


@EACH_CLUSTER
def test_the_cluster_says_which_ray_the_images_have(each: Object) -> None:
    pinned = re.search(r'"ray\[[\w,]+\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert cluster_spec(each)["rayVersion"] == pinned


def test_there_is_a_job_for_each_entry_point() -> None:
    assert {each.body["metadata"]["labels"]["largeforge-job"] for each in JOBS} == entry_points()
    assert all(each.name == f"forge-{each.body['metadata']['labels']['largeforge-job']}" for each in JOBS)


@pytest.mark.parametrize("each", JOBS, ids=str)
def test_a_job_can_be_typed_and_its_manifest_is_one_of_its_kind(each: Object) -> None:
    from largeforge_ray.config import load_manifest
    from train_jobs.training import _names

    python, module_flag, module, option, manifest, store_flag, store = shlex.split(
        each.body["spec"]["entrypoint"]
    )
    job = each.body["metadata"]["labels"]["largeforge-job"]
    assert (python, module_flag, module) == ("python", "-m", f"train_jobs.{job}")
    assert (option, store_flag) == ("--manifest" if job == "run" else "--config", "--store")
    stages = load_manifest(in_tree(manifest)).stages
    assert job == "run" or any(job in _names(stage) for stage in stages)
    assert Path(store).is_relative_to("/store")


@pytest.mark.parametrize("each", JOBS, ids=str)
def test_a_job_goes_to_the_cluster_and_is_driven_where_gpus_are(each: Object) -> None:
    spec = each.body["spec"]
    (cluster,) = of_kind("RayCluster")
    assert spec["clusterSelector"] == {"ray.io/cluster": cluster.name}
    for resource in json.loads(spec["entrypointResources"]):
        groups = [g for g in cluster.body["spec"]["workerGroupSpecs"] if resource in g.get("resources", {})]
        assert [group["groupName"] for group in groups] == ["gpu"]


def test_the_service_names_an_application_with_arguments_that_it_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.forge import ForgeArgs
    from serve_apps.keys import require_keys

    (application,) = ServeDeploySchema.model_validate(SERVE).applications
    module, _, attribute = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    args = ForgeArgs(**application.args)
    require_keys(SERVE["http_options"]["host"], args.keys)
    assert args.engine_host == "0.0.0.0", "routers ask engines on other nodes"
    assert args.min_replicas <= args.max_replicas <= SERVING.group["maxReplicas"]
    assert SERVICE.body["spec"]["rayClusterDeletionDelaySeconds"] > args.request_timeout_s
    assert SERVING.spec["terminationGracePeriodSeconds"] > args.request_timeout_s


def test_routers_and_what_plans_them_keep_to_the_pods_that_have_gpus_and_keys() -> None:
    from serve_apps.forge import RouterDeployment

    (router,) = SERVE["applications"][0]["deployments"]
    assert router["name"] == RouterDeployment.name
    options = router["ray_actor_options"]
    assert options == {"num_cpus": 0, "label_selector": {"ray.io/node-group": SERVING.group["groupName"]}}
    args = SERVE["applications"][0]["args"]
    (init,) = SERVING.spec["initContainers"]
    folders = {mount["name"]: mount["mountPath"] for mount in SERVING.main["volumeMounts"]}
    (copied,) = {mount["name"] for mount in init["volumeMounts"]} & folders.keys()
    (example,) = [each for each in of_kind("Secret") if each.name == "largeforge-keys"]
    for file in (Path(args["keys"]), Path(args["admin_token"])):
        assert str(file.parent) == folders[copied]
        assert file.name in example.body["stringData"]
    assert Path(args["store"]).is_relative_to(folders["store"])


def test_an_upgrade_starts_a_second_cluster_and_leads_requests_to_workers() -> None:
    spec = SERVICE.body["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert spec["excludeHeadPodFromServeSvc"] is True
    serve = [port for port in SERVING.main["ports"] if port["name"] == "serve"]
    assert [port["containerPort"] for port in serve] == [SERVE["http_options"]["port"]]


def test_the_examples_of_secrets_are_in_the_form_that_is_read_and_open_nothing(tmp_path: Path) -> None:
    from largeforge_ray.keyfile import read_keys, read_token

    for each in of_kind("Secret"):
        for key, value in each.body["stringData"].items():
            (tmp_path / key).write_text(value)
            (tmp_path / key).chmod(0o600)
            assert "CHANGE-ME" in value or key == "keys.yaml", f"{each.name} holds a value for {key}"
    assert {key.sha256 for key in read_keys(tmp_path / "keys.yaml")} == {"0" * 64}
    assert read_token(tmp_path / "admin-token")


def test_nothing_is_reachable_but_what_a_policy_opens() -> None:
    assert POLICIES["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    rules = [(name, rule) for name, spec in POLICIES.items() for rule in spec.get("ingress", [])]
    assert all(rule["from"] for _, rule in rules), "a rule without from opens to everybody"
    assert [name for name, rule in rules if "ports" not in rule] == ["ray-nodes"]
    nodes = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert POLICIES["ray-nodes"]["ingress"] == [{"from": [{"podSelector": nodes}]}]


def test_the_dashboard_is_open_to_the_namespace_and_to_the_operator_only() -> None:
    inside, operator = POLICIES["dashboard"]["ingress"]
    assert inside["from"] == [{"podSelector": {}}]
    ports = {port["name"]: port["containerPort"] for pod in PODS for port in pod.main.get("ports", [])}
    assert [port["port"] for port in inside["ports"]] == [ports["dashboard"], ports["client"]]
    (where,) = operator["from"]
    label = where["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert f"--namespace {label}" in (ROOT / "docs/kubernetes.md").read_text()
    assert [port["port"] for port in operator["ports"]] == [ports["dashboard"]]


def test_the_router_and_the_metrics_are_open_at_the_ports_they_have() -> None:
    (router,) = POLICIES["router"]["ingress"]
    assert [port["port"] for port in router["ports"]] == [SERVE["http_options"]["port"]]
    (metrics,) = POLICIES["metrics"]["ingress"]
    (monitor,) = of_kind("PodMonitor")
    scraped = {end["port"] for end in monitor.body["spec"]["podMetricsEndpoints"]}
    heads = [pod for pod in PODS if pod.extra]
    for pod in heads:
        ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
        assert {ports[name] for name in scraped} == {port["port"] for port in metrics["ports"]}


def test_the_namespace_turns_away_what_is_not_restricted() -> None:
    (namespace,) = of_kind("Namespace")
    assert namespace.body["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
