"""The files of examples/kubernetes are what they say: one Deployment a role, its lanes' ports, and nothing it need not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from securemodel.cli.app import main

FOLDER = Path(__file__).parents[2] / "examples" / "kubernetes"
LANES = 4


def parts(name: str) -> dict[str, dict[str, Any]]:
    return {part["kind"]: part for part in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())}


@pytest.mark.parametrize("name", ["bank", "dealer"])
def test_a_role_has_one_process_at_a_time_and_few_rights(name: str) -> None:
    found = parts(name)
    spec = found["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    assert (
        spec["selector"]["matchLabels"]
        == spec["template"]["metadata"]["labels"]
        == found["Service"]["spec"]["selector"]
    )
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    rights = container["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"]} and rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret["defaultMode"] == 0o400
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["bank", "dealer"])
def test_a_role_is_started_by_a_command_that_there_is(name: str) -> None:
    (container,) = parts(name)["Deployment"]["spec"]["template"]["spec"]["containers"]
    command, *words = container["args"]
    known = {option for parameter in main.commands[command].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", ["bank", "dealer"])
def test_every_port_is_reached_from_outside(name: str) -> None:
    found = parts(name)
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    inside = {port["name"]: port["containerPort"] for port in container["ports"]}
    outside = {port["targetPort"]: port["port"] for port in found["Service"]["spec"]["ports"]}
    assert inside == outside
    lanes = [port for called, port in inside.items() if called.startswith("lane-")]
    assert lanes == ([7001 + lane for lane in range(2 * LANES)] if name == "bank" else [])


def test_the_dealer_has_memory_for_its_sessions() -> None:
    (container,) = parts("dealer")["Deployment"]["spec"]["template"]["spec"]["containers"]
    words = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert int(words["--sessions"]) * float(words["--max-gib"]) <= int(container["resources"]["limits"]["memory"][:-2])


def test_a_party_that_ends_drains_first() -> None:
    pod = parts("bank")["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
