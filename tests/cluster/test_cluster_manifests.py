"""The manifests in cluster/, checked without Kubernetes, a network or a container engine."""

import fnmatch
import importlib.metadata
import json
import re
import shutil
import subprocess
from pathlib import Path

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from cluster_rules import (
    ALL_RULES,
    BROKEN_LAUNCHERS,
    DASHBOARD,
    INFEASIBLE,
    OTHER_METRICS,
    OVERLAYS,
    PURCHASES,
    SCHEMA_FILES,
    SWEEP_PURCHASES,
    alert_queries,
    broken_manifests,
    change,
    core_documents,
    dashboard_queries,
    own_metrics,
    queried,
    ray_dashboards,
    ray_metrics,
    ray_schema,
    rendered,
    run,
    small_sweep,
    tool,
)
from repository import ROOT, locked

from cluster.checks.documents import CLUSTER, clusters, named, of_kind, pods, versions
from cluster.checks.launcher import launcher
from cluster.checks.pinned import main as main_of_pinned
from cluster.checks.pinned import pinned_images
from cluster.checks.plan import Plan, plan
from cluster.checks.references import SECRETS
from cluster.checks.render import load
from sat_ray.sweep.resources.bundles import bundles
from sat_ray.sweep.resources.nodes import (
    NODE_GROUPS,
    Demand,
    NodeGroup,
    announced_groups,
    check_room,
    pool_selector,
)

RULES = {rule.__name__: rule for rule in ALL_RULES}
BROKEN = broken_manifests()
PACKAGES = ("ray", "torch", "torchvision", "mlflow", "pyarrow", "boto3")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_keeps_every_rule(overlay, rule):
    assert list(RULES[rule](rendered(overlay))) == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_manifest_is_refused(broken):
    documents = rendered(broken.overlay)
    change(named(documents, broken.kind, broken.target), **broken.change)
    assert list(RULES[broken.rule](documents))


def test_every_rule_has_a_broken_manifest():
    assert {broken.rule for broken in BROKEN} == set(RULES)


@pytest.mark.parametrize("overlay", [*OVERLAYS, "../monitoring"])
def test_our_rendering_is_what_kustomize_renders(overlay):
    program = tool("kustomize", "kubectl")
    command = [program, "build"] if Path(program).name == "kustomize" else [program, "kustomize"]
    theirs = [d for d in yaml.safe_load_all(run(*command, CLUSTER / "overlays" / overlay)) if d]
    ours = rendered(overlay)

    def order(document):
        return document["kind"], document["metadata"]["name"]

    assert sorted(ours, key=order) == sorted(theirs, key=order)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_kinds_fit_the_strict_schema(overlay):
    for document in of_kind(rendered(overlay), *SCHEMA_FILES):
        errors = jsonschema.Draft7Validator(ray_schema(document["kind"])).iter_errors(document)
        assert [f"{list(error.absolute_path)}: {error.message}" for error in errors] == []


def test_the_strict_schema_refuses_an_unknown_field():
    document = named(rendered("autoscaling"), "RayCluster", "sat-ray")
    document["spec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    assert not jsonschema.Draft7Validator(ray_schema("RayCluster")).is_valid(document)


def test_core_kinds_fit_the_schema_of_kubernetes():
    for document in core_documents():
        kubernetes_validate.validate(document, versions()["KUBERNETES_SCHEMA"], strict=True)


def test_the_schema_of_kubernetes_refuses_a_misspelt_field():
    service = named(rendered("autoscaling"), "Service", "mlflow")
    service["spec"]["selectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, versions()["KUBERNETES_SCHEMA"], strict=True)


def _planned(*tasks, gangs=(), selector=None) -> Plan:
    cluster = named(rendered("autoscaling"), "RayCluster", "sat-ray")
    return plan(cluster, tasks, gangs=gangs, selector=selector)


@pytest.mark.parametrize(("tasks", "gangs", "nodes", "unplaced"), PURCHASES)
def test_ray_would_buy_these_nodes(tasks, gangs, nodes, unplaced):
    assert _planned(*tasks, gangs=gangs) == Plan(nodes, unplaced)


def test_cpu_tasks_with_the_pool_label_never_start_a_gpu_node():
    flood = [{"CPU": 4}] * 1000
    bought = _planned(*flood, selector={"sat-ray/pool": "cpu"})
    assert bought.nodes == {"cpu": 8}
    # Without the label Ray spills over once the CPU group is full, which is why the README asks for
    # it.
    assert "gpu-spot" in _planned(*flood).nodes


@pytest.fixture
def announced(monkeypatch) -> list[NodeGroup]:
    """Return the node groups that the cluster announces to a driver."""
    settings = named(rendered("autoscaling"), "ConfigMap", "sat-ray-environment")["data"]
    monkeypatch.setenv(NODE_GROUPS, settings[NODE_GROUPS])
    return announced_groups()


def _bought(demand: Demand, announced: list[NodeGroup], *, tasks: int) -> Plan:
    """Return what Ray would buy for a demand, or for some of its tasks."""
    selector = pool_selector(demand.resources, announced)
    if demand.gang:
        gangs = [[demand.resources] * demand.count] * demand.at_once
        return _planned(gangs=gangs, selector=selector)
    return _planned(*[demand.resources] * tasks, selector=selector)


@pytest.mark.parametrize(("resources", "nodes"), SWEEP_PURCHASES)
def test_a_sweep_buys_these_nodes_stage_by_stage(resources, nodes, announced):
    demands = bundles(small_sweep(**resources))
    check_room(demands, announced)
    bought = {one.stage: _bought(one, announced, tasks=one.count).nodes for one in demands}
    assert {stage: found for stage, found in bought.items() if stage in nodes} == nodes


@pytest.mark.parametrize(("resources", "message"), INFEASIBLE)
def test_what_no_node_could_ever_hold_is_refused_and_ray_would_not_buy_it_either(
    resources, message, announced
):
    demands = bundles(small_sweep(**resources))
    with pytest.raises(ValueError, match=message):
        check_room(demands, announced)
    assert any(_bought(demand, announced, tasks=1).unplaced for demand in demands)


def test_a_job_gets_the_cluster_of_the_raycluster():
    spec = named(rendered("rayjob"), "RayJob", "sat-ray-sweep")["spec"]["rayClusterSpec"]
    assert spec == named(rendered("autoscaling"), "RayCluster", "sat-ray")["spec"]
    assert of_kind(rendered("rayjob"), "RayCluster") == []


def test_the_queue_has_room_for_the_fixed_size():
    documents = rendered("kueue")
    (cluster,) = clusters(documents)
    wanted = {"cpu": 0, "nvidia.com/gpu": 0}
    for group in (cluster.head, *cluster.groups):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name in wanted:
            wanted[name] += int(limits.get(name, 0)) * group.get("replicas", 1)
    flavor = named(documents, "ClusterQueue", "sat-ray")["spec"]["resourceGroups"][0]["flavors"][0]
    quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    assert all(int(quota[name]) >= amount for name, amount in wanted.items())


def test_images_and_names_carry_the_pinned_versions():
    pinned = versions()
    assert f"ray{pinned['RAY']}-torch{pinned['TORCH']}-py{pinned['PYTHON']}-" in pinned["RAY_IMAGE"]
    assert f"mlflow{pinned['MLFLOW']}-" in pinned["MLFLOW_IMAGE"]
    for name in ("Dockerfile.ray", "Dockerfile.mlflow"):
        assert (
            f"ARG PYTHON_IMAGE={pinned['PYTHON_IMAGE']}\nFROM ${{PYTHON_IMAGE}}\n"
            in (CLUSTER / "images" / name).read_text()
        )
    assert pinned["PYTHON_IMAGE"].startswith(f"python:{pinned['PYTHON']}.")
    versions_of = {
        name: version
        for name, (version, _) in locked("cluster/images/requirements-mlflow.txt").items()
    }
    assert {name: versions_of[name] for name in ("mlflow", "boto3", "psycopg")} == {
        "mlflow": pinned["MLFLOW"], "boto3": pinned["BOTO3"], "psycopg": pinned["PSYCOPG"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ray", "mlflow"])
def test_an_image_installs_only_what_is_locked_by_version_and_hash(name):
    packages = locked(f"cluster/images/requirements-{name}.txt")
    assert len(packages) > 50 and all(hashes for _, hashes in packages.values())
    (install,) = [
        line
        for line in (CLUSTER / "images" / f"Dockerfile.{name}").read_text().splitlines()
        if "pip install" in line
    ]
    assert "--require-hashes" in install and "--no-deps" in install


def test_the_image_of_ray_holds_the_versions_that_are_tested():
    here, tested = locked("cluster/images/requirements-ray.txt"), locked("requirements.lock")
    assert {name: version for name, (version, _) in here.items()} == {
        name: tested[name][0] for name in here
    }


def test_images_are_built_on_a_base_with_a_digest_only():
    commands = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "docker build" in line
    ]
    assert len(commands) == 2 and all(
        "PYTHON_IMAGE=$(PYTHON_IMAGE)@$(PYTHON_IMAGE_DIGEST)" in line for line in commands
    )
    assert re.fullmatch(r"(sha256:[0-9a-f]{64})?", versions()["PYTHON_IMAGE_DIGEST"])
    if not versions()["PYTHON_IMAGE_DIGEST"]:
        done = subprocess.run(
            ["make", "image", "REGISTRY=r"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode and "PYTHON_IMAGE_DIGEST is empty" in done.stdout


def test_an_overlay_is_applied_only_with_digests(tmp_path):
    documents = rendered("gcs-fault-tolerance")
    assert {sentence.split()[0] for sentence in pinned_images(documents)} == {
        versions()[name] for name in ("RAY_IMAGE", "MLFLOW_IMAGE", "REDIS_IMAGE")
    }
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    assert main_of_pinned([str(path)]) == 1
    for pod in pods(documents):
        for container in pod.containers:
            container["image"] = f"registry.example.com/{container['image']}@sha256:{'0' * 64}"
    text = yaml.safe_dump_all(documents)
    path.write_text(text)
    assert main_of_pinned([str(path)]) == 1, "the examples of bucket, role and server are left"
    path.write_text(re.sub("sat-ray-example|111122223333|example.internal", "mine", text))
    assert main_of_pinned([str(path)]) == 0


@pytest.mark.parametrize("name", ["nodes/karpenter.yaml", "aws/ray-up.yaml"])
def test_a_file_with_examples_is_refused_until_they_are_replaced(name, tmp_path, capsys):
    assert main_of_pinned([str(CLUSTER / name)]) == 1
    assert "REPLACE; put your own in its place" in capsys.readouterr().out
    path = tmp_path / "filled.yaml"
    text = (CLUSTER / name).read_text()
    path.write_text(re.sub("REPLACE|sat-ray-example|example.internal", "mine", text))
    assert main_of_pinned([str(path)]) == 0


def test_nothing_is_started_on_aws_while_examples_are_left():
    recipe = (ROOT / "Makefile").read_text().partition("\nray-up:")[2].partition("\n\n")[0]
    check, start = (recipe.find(word) for word in ("cluster.checks.pinned", "ray up --yes"))
    assert 0 < check < start


def test_karpenter_removes_empty_nodes_alone_and_its_machine_image_is_chosen():
    documents = load(CLUSTER / "nodes" / "karpenter.yaml")
    for pool in of_kind(documents, "NodePool"):
        assert pool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty", pool["metadata"][
            "name"
        ]
    (node_class,) = of_kind(documents, "EC2NodeClass")
    assert all(
        not term["alias"].endswith("@latest") for term in node_class["spec"]["amiSelectorTerms"]
    )
    wanted = {pod.spec["nodeSelector"]["sat-ray/pool"] for pod in pods(rendered("autoscaling"))}
    assert {
        pool["spec"]["template"]["metadata"]["labels"]["sat-ray/pool"]
        for pool in of_kind(documents, "NodePool")
    } == wanted


def test_the_bucket_policy_keeps_everybody_else_from_every_version_of_an_object():
    policy = json.loads((CLUSTER / "aws" / "bucket-policy.json").read_text())
    (denied,) = [statement for statement in policy["Statement"] if statement["Sid"] == "NobodyElse"]
    for action in (
        "GetObject",
        "GetObjectVersion",
        "PutObject",
        "PutObjectAcl",
        "DeleteObject",
        "DeleteObjectVersion",
        "ListBucketVersions",
    ):
        assert any(fnmatch.fnmatch(f"s3:{action}", pattern) for pattern in denied["Action"]), action
    assert set(denied["Resource"]) == {
        "arn:aws:s3:::sat-ray-example",
        "arn:aws:s3:::sat-ray-example/*",
    }


def test_the_bucket_policy_lets_in_every_machine_and_account_that_the_manifests_give_a_role():
    """A Deny wins over what their own policies allow: other roles could read nothing."""
    policy = json.loads((CLUSTER / "aws" / "bucket-policy.json").read_text())
    (denied,) = [statement for statement in policy["Statement"] if statement["Sid"] == "NobodyElse"]
    excepted = set(denied["Condition"]["StringNotEquals"]["aws:PrincipalArn"])
    machines = {
        group["node_config"]["IamInstanceProfile"]["Name"]
        for group in _launcher()["available_node_types"].values()
    }
    account = "arn:aws:iam::111122223333:role/"
    named = set(re.findall(rf"{account}[\w-]+", (CLUSTER / "README.md").read_text()))
    named |= set(
        re.findall(rf"{account}[\w-]+", (CLUSTER / "aws" / "head-policy.json").read_text())
    )
    assert len(machines) == 2 and named
    assert {account + name for name in machines} | named <= excepted


def test_the_head_may_start_only_machines_of_the_cluster():
    policy = json.loads((CLUSTER / "aws" / "head-policy.json").read_text())
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    types = statements["StartOwnMachines"]["Condition"]["ForAnyValue:StringEquals"][
        "ec2:InstanceType"
    ]
    config = _launcher()
    groups = config["available_node_types"]
    assert set(types) == {
        group["node_config"]["InstanceType"]
        for name, group in groups.items()
        if name != config["head_node_type"]
    }
    for sid, key in (
        ("StartOwnMachines", "aws:RequestTag/ray-cluster-name"),
        ("ChangeOwnMachines", "aws:ResourceTag/ray-cluster-name"),
    ):
        assert statements[sid]["Condition"]["StringEquals"][key] == config["cluster_name"]
    profiles = {
        group["node_config"]["IamInstanceProfile"]["Name"]
        for name, group in groups.items()
        if name != "head"
    }
    assert {statements["WorkersRole"]["Resource"].rpartition("/")[2]} == profiles
    assert [sid for sid, statement in statements.items() if statement["Resource"] == "*"] == [
        "Look"
    ]
    assert all(action.startswith("ec2:Describe") for action in statements["Look"]["Action"])


@pytest.mark.parametrize("package", PACKAGES)
def test_requirements_pin_the_versions_of_the_cluster(package):
    pin = rf"(?m)^{package}(\[[\w,]+\])?=={re.escape(versions()[package.upper()])}\b"
    assert re.search(pin, (ROOT / "requirements.txt").read_text())


@pytest.mark.parametrize("package", PACKAGES)
def test_installed_packages_are_the_versions_of_the_cluster(package):
    installed = importlib.metadata.version(package)
    assert installed.split("+")[0] == versions()[package.upper()]


def test_the_readme_creates_every_secret_that_is_referred_to():
    text = (CLUSTER / "README.md").read_text()
    for name, keys in SECRETS.items():
        (command,) = re.findall(rf"(?m)^secret {name} (?:.*\\\n)*.*", text)
        assert set(re.findall(r"--from-(?:literal|file)=(\w+)=", command)) == keys


def test_the_image_holds_what_the_job_starts():
    dockerfile = (CLUSTER / "images" / "Dockerfile.ray").read_text()
    entrypoint = named(rendered("rayjob"), "RayJob", "sat-ray-sweep")["spec"]["entrypoint"].split()
    assert f"COPY pipelines {Path(entrypoint[1]).parent}\n" in dockerfile
    for name in ("Dockerfile.ray", "Dockerfile.mlflow"):
        text = (CLUSTER / "images" / name).read_text()
        assert "USER 1000:100" in text
        assert all("--no-cache-dir" in line for line in text.splitlines() if "pip install" in line)


def test_alert_rules_pass_promtool_and_their_examples(tmp_path):
    promtool = tool("promtool")
    (rule,) = load(CLUSTER / "monitoring" / "alerts.yaml")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    shutil.copy(CLUSTER / "monitoring" / "alerts_test.yaml", tmp_path)
    run(promtool, "check", "rules", "rules.yaml", cwd=tmp_path)
    run(promtool, "test", "rules", "alerts_test.yaml", cwd=tmp_path)


def test_the_monitor_scrapes_ports_that_ray_pods_have():
    (monitor,) = load(CLUSTER / "monitoring" / "podmonitor.yaml")
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    containers = [
        container
        for pod in pods(rendered("autoscaling"))
        if pod.ray
        for container in pod.containers
    ]
    ports = {
        port["name"]: port["containerPort"]
        for container in containers
        for port in container["ports"]
    }
    assert scraped <= set(ports)
    ray = named(rendered("autoscaling"), "NetworkPolicy", "ray")
    assert {ports[name] for name in scraped} == {
        port["port"] for port in ray["spec"]["ingress"][1]["ports"]
    }


def test_the_sweep_dashboard_shows_every_metric_of_a_sweep():
    shown = set().union(*map(queried, dashboard_queries()))
    assert {name for name in shown if name.startswith("sat_ray_")} == own_metrics()
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_metric_that_is_queried_is_one_that_the_code_ray_or_kubernetes_exports():
    for query in [*dashboard_queries(), *alert_queries()]:
        assert queried(query) and queried(query) <= own_metrics() | ray_metrics() | OTHER_METRICS, (
            query
        )


def test_the_monitor_gives_our_metrics_the_names_that_are_queried():
    (monitor,) = load(CLUSTER / "monitoring" / "podmonitor.yaml")
    (rule,) = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    assert {
        re.fullmatch(rule["regex"], f"ray_{name}")[1] for name in own_metrics()
    } == own_metrics()
    assert not any(re.fullmatch(rule["regex"], name) for name in ray_metrics())


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ('sum by (a, b) (x{l=~"$y"}) > 0 unless sum(changes(z[1h])) > 0', {"x", "z"}),
        ("label_values(x, label)", {"x"}),
        ('absent(up{job=~".*/ray"} == 1)', {"up"}),
    ],
)
def test_the_names_in_a_query_are_found(query, names):
    assert queried(query) == names


def test_rays_own_dashboards_fit_into_config_maps():
    for document in yaml.safe_load_all(ray_dashboards()):
        (content,) = document["data"].values()
        assert json.loads(content)["panels"]
        assert len(content) < 2**20


def _launcher() -> dict:
    return yaml.safe_load((CLUSTER / "aws" / "ray-up.yaml").read_text())


def test_the_launcher_file_passes_rays_own_checks():
    from ray.autoscaler._private import util

    util.validate_config(util.prepare_config(_launcher()))


def test_the_launcher_file_keeps_what_ray_does_not_check():
    assert list(launcher(_launcher())) == []


@pytest.mark.parametrize(("at", "to"), BROKEN_LAUNCHERS)
def test_a_broken_launcher_file_is_refused(at, to):
    config = _launcher()
    change(config, at=at, **({} if to is None else {"to": to}))
    assert list(launcher(config))


def _input_of(service: str, operation: str):
    """Return what a request to AWS may hold."""
    model = botocore.session.get_session().get_service_model(service)
    return model.operation_model(operation).input_shape


def test_the_launcher_asks_aws_for_fields_that_exist():
    shape = _input_of("ec2", "RunInstances")
    for group in _launcher()["available_node_types"].values():
        request = {**group["node_config"], "MinCount": 1, "MaxCount": 1}
        # Ray takes a list and asks for one of them
        request["SubnetId"] = request.pop("SubnetIds")[0]
        assert not ParamValidator().validate(request, shape).has_errors()
        assert set(request) <= set(shape.members)


def test_the_lifecycle_rules_are_ones_that_s3_knows():
    lifecycle = json.loads((CLUSTER / "aws" / "lifecycle.json").read_text())
    request = {"Bucket": "sat-ray-example", "LifecycleConfiguration": lifecycle}
    report = ParamValidator().validate(request, _input_of("s3", "PutBucketLifecycleConfiguration"))
    assert not report.has_errors(), report.generate_report()


def test_policies_speak_of_the_bucket_in_the_environment():
    bucket = named(rendered("autoscaling"), "ConfigMap", "sat-ray-environment")["data"][
        "SAT_RAY_STORAGE"
    ].split("/")[2]
    for name in ("bucket-policy.json", "worker-policy.json"):
        text = (CLUSTER / "aws" / name).read_text()
        assert json.loads(text)["Version"] == "2012-10-17"
        assert set(re.findall(r"arn:aws:s3:::([\w-]+)", text)) == {bucket}


def test_hadolint_finds_nothing():
    run(
        tool("hadolint"),
        CLUSTER / "images" / "Dockerfile.ray",
        CLUSTER / "images" / "Dockerfile.mlflow",
    )


def test_shellcheck_finds_nothing():
    run(tool("shellcheck"), *CLUSTER.rglob("*.sh"))


def test_yamllint_finds_nothing():
    settings = (
        "{extends: relaxed, rules: {line-length: {max: 120}, indentation: {indent-sequences: "
        "consistent}}}"
    )
    run(tool("yamllint"), "--strict", "-d", settings, CLUSTER)
