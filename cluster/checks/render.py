"""Render a kustomization folder: the part of kustomize that these manifests use, and nothing more.

The tests must run where neither kustomize nor kubectl is installed. No Python
package brings them, and the kubectl of Debian 12 (1.20) is older than `replacements`, which the
overlays use. A field that is not understood here is an error, never skipped, and a test
compares the result with the real tool wherever there is one.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

UNDERSTOOD = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "patches",
    "replacements",
    "configMapGenerator",
    "generatorOptions",
}
CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
LOCAL_CONFIG = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[Document]:
    """Return the documents of a kustomization folder, in no promised order."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(kustomization) - UNDERSTOOD:
        raise ValueError(
            f"{folder}/kustomization.yaml: {sorted(unknown)} is not among {sorted(UNDERSTOOD)}"
        )
    documents: list[Document] = []
    for entry in kustomization.get("resources", []):
        path = folder / entry
        documents += render(path) if path.is_dir() else load(path)
    documents += [
        _config_map(folder, generator) for generator in kustomization.get("configMapGenerator", [])
    ]
    for patch in kustomization.get("patches", []):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        matched = [document for document in documents if _selected(document, patch["target"])]
        if not matched:
            raise ValueError(f"{folder}: patch target {patch['target']} matches nothing")
        for document in matched:
            apply_patch(document, yaml.safe_load(text))
    for replacement in kustomization.get("replacements", []):
        _replace(documents, replacement)
    if namespace := kustomization.get("namespace"):
        for document in documents:
            if document["kind"] not in CLUSTER_SCOPED:
                document["metadata"]["namespace"] = namespace
    return [
        d for d in documents if d["metadata"].get("annotations", {}).get(LOCAL_CONFIG) != "true"
    ]


def load(path: Path) -> list[Document]:
    """Return a file's documents with every anchor expanded into a copy of its own."""
    # Aliases share one object in memory; a patch must not reach the other places that use the
    # anchor.
    return [
        copy.deepcopy(_unshare(document))
        for document in yaml.safe_load_all(path.read_text())
        if document
    ]


def apply_patch(document: Document, operations: list[Document]) -> None:
    """Apply JSON patch operations (RFC 6902: add, remove, replace, test) in place."""
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        holder: Any = document
        for part in parents:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        key: Any = last
        if isinstance(holder, list):
            key = len(holder) if last == "-" else int(last)
        match operation["op"]:
            case "add" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(operation["value"]))
            case "replace" if (
                (key not in holder) if isinstance(holder, dict) else key >= len(holder)
            ):
                raise ValueError(f"nothing to replace at {operation['path']}")
            case "add" | "replace":
                holder[key] = copy.deepcopy(operation["value"])
            case "remove":
                del holder[key]
            case "test":
                if holder[key] != operation["value"]:
                    raise ValueError(
                        f"{operation['path']} is {holder[key]!r}, expected {operation['value']!r}"
                    )
            case other:
                raise ValueError(f"patch operation {other!r} is none of add, remove, replace, test")


def _unshare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshare(item) for key, item in value.items()}
    return [_unshare(item) for item in value] if isinstance(value, list) else value


def _selected(document: Document, target: Document) -> bool:
    return document["kind"] == target["kind"] and document["metadata"]["name"] == target["name"]


def _config_map(folder: Path, generator: Document) -> Document:
    if not generator.get("options", {}).get("disableNameSuffixHash"):
        raise ValueError(
            f"configMapGenerator {generator['name']}: names with hashes are not understood"
        )
    data = {Path(file).name: (folder / file).read_text() for file in generator["files"]}
    metadata: Document = {"name": generator["name"]}
    if labels := generator["options"].get("labels"):
        metadata["labels"] = labels
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _replace(documents: list[Document], replacement: Document) -> None:
    source = next(d for d in documents if _selected(d, replacement["source"]))
    value = _at(source, replacement["source"]["fieldPath"].split("."))
    for target in replacement["targets"]:
        for document in (d for d in documents if _selected(d, target["select"])):
            for field in target["fieldPaths"]:
                *parents, last = field.split(".")
                _at(document, parents)[last] = copy.deepcopy(value)


def _at(document: Document, parts: list[str]) -> Any:
    for part in parts:
        document = document[part]
    return document
