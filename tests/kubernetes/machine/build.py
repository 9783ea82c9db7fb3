"""Build the binaries from Go modules whose checksums are pinned in go.sum."""

import hashlib
import os
import subprocess
from pathlib import Path

from .settings import BINARIES, KUBERNETES, KUEUE, MODULES

COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
TOOLS = ("kubelet", "kube-proxy", "kubectl")
OPERATOR = "github.com/ray-project/kuberay/ray-operator"
KUEUE_MODULE = "sigs.k8s.io/kueue"


def build() -> None:
    """Build each module whose files changed since its last build."""
    BINARIES.mkdir(parents=True, exist_ok=True)
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in (*COMPONENTS, *TOOLS)]
    _build("kubernetes", packages, flags=_version_flags())
    _build("addons", ["./coredns", "./netpol", "./pause"])
    # The operator's package is the module's root, so its name has to be given.
    _build("addons", [OPERATOR], output="kuberay-operator")


def build_kueue() -> None:
    """Build Kueue's controller unless its files are those of the last build."""
    version = f"-X {KUEUE_MODULE}/pkg/version.GitVersion=v{KUEUE}"
    _build("kueue", [f"{KUEUE_MODULE}/cmd/kueue"], flags=version)


def module_folder(path: str, *, named_in: str) -> Path:
    """Return where Go keeps the source of a module. named_in: the folder whose go.mod names it."""
    listed = subprocess.run(
        ["go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", path],
        cwd=MODULES / named_in,
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(listed.stdout.strip())


def _build(module: str, packages: list[str], *, flags: str = "", output: str = "") -> None:
    folder = MODULES / module
    stamp = BINARIES / f".{output or module}"
    key = _content(folder) + " ".join([*packages, flags])
    if stamp.exists() and stamp.read_text() == key:
        return
    print(f"building {output or module} (the first time takes long)", flush=True)
    subprocess.run(
        [
            *("go", "build", "-p", "2", "-trimpath", "-ldflags", f"-s -w {flags}"),
            *("-o", f"{BINARIES}/{output}", *packages),
        ],
        cwd=folder,
        check=True,
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"},
    )
    stamp.write_text(key)


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _version_flags() -> str:
    # Built as a module, Kubernetes does not know its version; clients compare it with theirs.
    major, minor, _ = KUBERNETES.split(".")
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        f"-X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor={major} "
        f"-X {package}.gitMinor={minor}"
        for package in packages
    )
