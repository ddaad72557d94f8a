#!/usr/bin/env python3
"""Checks, renders and packages the chart, with Helm's own engine and the JSON schemas of Kubernetes.

scripts/chart runs it in an environment that has both:

    schema         writes the part of values.schema.json that is the schema of the configuration
    render         writes the plain manifests of deploy/kubernetes
    check          fails where the chart has a fault, or where one of these files is not current
    package DIR    writes the archive of the chart into a directory, and prints its path
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import helm_python
import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "charts/redis-proxy"
MANIFESTS = ROOT / "deploy/kubernetes"
VALUES_SCHEMA = CHART / "values.schema.json"
# The oldest Kubernetes that Chart.yaml allows, and the newest one with schemas.
KUBERNETES = ["1.30", "1.36"]
# What the chart itself sets, from other values.
OWN_KEYS = ["listen", "allow_unprotected"]
CRDS = os.environ.get("CRDS")

faults = []


def fault(text):
    faults.append(text)
    print(f"FAULT {text}")


def case(name):
    """The values of a case. The default case has none."""
    return yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text()) if name != "default" else {}


CASES = ["default", *sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*-values.yaml"))]


def render(values, namespace="default"):
    """The rendered documents by template, as texts."""
    chart = helm_python.Chart.load(str(CHART))
    chart.validate_schema(values)
    files = chart.render(values, name="redis-proxy", namespace=namespace)
    return {name: text for name, text in sorted(files.items()) if text.strip() and not name.endswith("NOTES.txt")}


def documents(values):
    return [document for text in render(values).values() for document in yaml.safe_load_all(text) if document]


def config_schema():
    schema = json.loads((ROOT / "redis-proxy.schema.json").read_text())
    for section in schema["properties"].values():
        for key in OWN_KEYS:
            section["properties"].pop(key, None)
    return {key: schema[key] for key in ("type", "additionalProperties", "properties")}


def values_schema():
    schema = json.loads(VALUES_SCHEMA.read_text())
    schema["properties"]["config"] = {"description": "Keys of redis-proxy.toml by section.", **config_schema()}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def manifests():
    """The plain manifests: what the chart renders, without the labels that mean that Helm manages it."""
    helm = re.compile(r"^ *(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n", re.M)
    head = "# Rendered from charts/redis-proxy by `make chart`; change that instead.\n"
    for name, values in [("redis-proxy", {}), ("sidecar", case("sidecar"))]:
        texts = [helm.sub("", text).strip("\n") for text in render(values).values()]
        yield MANIFESTS / f"{name}.yaml", head + "\n---\n".join(texts) + "\n"


def containers(document):
    """The pod and the containers of a document."""
    pod = document.get("spec", {}).get("template", {}).get("spec", {})
    return pod, pod.get("initContainers", []) + pod.get("containers", [])


def check_restricted(name, document):
    """The rules of Kubernetes's restricted pod security that a Deployment can break."""
    pod, found = containers(document)
    for container in found:
        security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        is_restricted = (
            security.get("allowPrivilegeEscalation") is False
            and security.get("runAsNonRoot") is True
            and security.get("runAsUser") != 0
            and security.get("capabilities", {}).get("drop") == ["ALL"]
            and not security.get("capabilities", {}).get("add")
            and security.get("seccompProfile", {}).get("type") == "RuntimeDefault"
        )
        is_restricted or fault(f"{name}: container {container['name']} breaks the restricted pod security")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        key not in pod or fault(f"{name}: {key}")
    for volume in pod.get("volumes", []):
        set(volume) - {"name"} <= {"configMap", "projected"} or fault(f"{name}: volume {volume['name']}")


def check_selectors(name, found):
    """Every selector selects the pods, and every named port is a port of them."""
    deployment = next(document for document in found if document["kind"] == "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    _, parts = containers(deployment)
    ports = {port["name"] for part in parts for port in part.get("ports", [])}
    for document in found:
        spec = document.get("spec", {})
        kind = document["kind"]
        selector = {"Service": spec.get("selector"), "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels")}
        selected = selector.get(kind, (spec.get("selector") or {}).get("matchLabels", {})) or {}
        selected.items() <= labels or fault(f"{name}: {kind} selects other pods")
        named = [port.get("targetPort") for port in spec.get("ports", [])] if kind == "Service" else []
        if kind == "NetworkPolicy":
            named = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
        set(named) <= ports or fault(f"{name}: {kind} names a port that no container has: {named}")


def crd_schema(kind):
    """The schema of a custom resource, where CRDS names a folder of definitions."""
    for path in pathlib.Path(CRDS).glob("*.yaml") if CRDS else []:
        crd = yaml.safe_load(path.read_text())
        if crd["spec"]["names"]["kind"] == kind:
            return next(version for version in crd["spec"]["versions"] if version["storage"])["schema"]["openAPIV3Schema"]
    return None


def check_document(name, document):
    kind = document["kind"]
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        schema = crd_schema(kind)
        if schema is None:
            print(f"not validated: {name}: {kind}, whose definition is not at hand (CRDS=FOLDER)")
            return
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
            fault(f"{name}: {kind}: {error.message}")
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            fault(f"{name}: {kind} for Kubernetes {version}: {error.message} at {list(error.path)}")


def check_configuration(name, values, document):
    """The program itself accepts the file and the environment that the chart makes."""
    program = os.environ.get("PROXY")
    if not program:
        print(f"not checked: {name}: redis-proxy check (PROXY=PROGRAM)")
        return
    deployment = next(each for each in documents(values) if each["kind"] == "Deployment")
    container = next(part for part in containers(deployment)[1] if part["name"] == "redis-proxy")
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(document["data"]["redis-proxy.toml"])
        file.flush()
        ran = subprocess.run([program, "check", "--config", file.name], env=environment, capture_output=True, text=True)
    ran.returncode == 0 or fault(f"{name}: redis-proxy check: {ran.stderr.strip()}")


# Values that must be refused, and a part of the reason.
REFUSED = [
    ({"replica": 3}, "replica"),
    ({"mode": "daemonset"}, "mode"),
    ({"config": {"cache": {"tll": "1s"}}}, "tll"),
    ({"config": {"cache": {"ttl": "soon"}}}, "ttl"),
    ({"config": {"http": {"listen": "0.0.0.0:1"}}}, "listen"),
    ({"mode": "sidecar"}, "sidecar.containers"),
    ({"image": {"digest": "sha256:1"}}, "digest"),
    ({"secretFiles": [{"key": "redis.password", "secret": "a", "item": "b"}]}, "secretFiles"),
]


def check_refused():
    for values, part in REFUSED:
        try:
            render(values)
            fault(f"accepted: {values}")
        except helm_python.HelmError as error:
            part in str(error) or fault(f"{values} is refused without a word of {part}: {error}")


def check_shipped_file():
    """redis-proxy.toml and the files of examples/ keep the schema that editors use."""
    if sys.version_info < (3, 11):
        print("not checked: TOML files, which Python can read from version 3.11 on")
        return
    import tomllib

    validator = jsonschema.Draft7Validator(json.loads((ROOT / "redis-proxy.schema.json").read_text()))
    for path in [ROOT / "redis-proxy.toml", *ROOT.glob("examples/*/*.toml")]:
        for error in validator.iter_errors(tomllib.loads(path.read_text())):
            fault(f"{path.relative_to(ROOT)}: {error.message} at {list(error.path)}")


def check():
    version = subprocess.check_output([ROOT / "scripts/version"], text=True).strip()
    meta = yaml.safe_load((CHART / "Chart.yaml").read_text())
    meta["version"] == meta["appVersion"] == version or fault(f"Chart.yaml has not the version {version} of Cargo.toml")
    VALUES_SCHEMA.read_text() == values_schema() or fault("values.schema.json is not current: make chart")
    for path, text in manifests():
        (path.exists() and path.read_text() == text) or fault(f"{path.relative_to(ROOT)} is not current: make chart")
    for name in CASES:
        values = case(name)
        report = helm_python.lint(str(CHART), values, strict=True)
        [fault(f"{name}: lint: {each['path']}: {each['error']}") for each in report["messages"] if each["severity"] >= 2]
        found = documents(values)
        for document in found:
            check_document(name, document)
            if document["kind"] == "Deployment":
                check_restricted(name, document)
            if document["kind"] == "ConfigMap" and "redis-proxy.toml" in document["data"]:
                check_configuration(name, values, document)
        check_selectors(name, found)
        print(f"ok: {name}: {', '.join(sorted(document['kind'] for document in found))}")
    check_refused()
    check_shipped_file()
    print(f"{len(CASES)} cases, {len(REFUSED)} refusals, {len(faults)} faults")
    return 1 if faults else 0


def main(command, *arguments):
    if command == "schema":
        VALUES_SCHEMA.write_text(values_schema())
    elif command == "render":
        MANIFESTS.mkdir(parents=True, exist_ok=True)
        for path, text in manifests():
            path.write_text(text)
            print(path.relative_to(ROOT))
    elif command == "check":
        return check()
    elif command == "package":
        made = pathlib.Path(helm_python.package(str(CHART), destination=arguments[0]))
        # Otherwise it would have nearly the name of the archive of the sources.
        print(made.rename(made.with_name(made.name.replace("redis-proxy-", "redis-proxy-chart-"))))
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or [""]))
