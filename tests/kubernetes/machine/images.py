"""Images made of one static binary, and archives brought into the nodes' containerds."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from .processes import run
from .settings import BINARIES, KUBERAY, KUEUE, PAUSE_IMAGE, STATE, Node

DNS_IMAGE = "docker.io/library/satray-coredns:1"
OPERATOR_IMAGE = f"docker.io/library/satray-kuberay-operator:{KUBERAY}"
# image: the binary it holds, and its path inside
OWN = {
    PAUSE_IMAGE: ("pause", "pause"),
    DNS_IMAGE: ("coredns", "coredns"),
    OPERATOR_IMAGE: ("kuberay-operator", "manager"),
}
KUEUE_IMAGE = f"docker.io/library/satray-kueue:{KUEUE}"


def import_own(node: Node) -> None:
    """Bring the images of the cluster itself into a node."""
    for image, (binary, path) in OWN.items():
        _import_binary(node, image, binary, path)


def import_kueue(node: Node) -> None:
    """Bring the image of Kueue into a node."""
    _import_binary(node, KUEUE_IMAGE, "kueue", "manager")


def import_archive(node: Node, archive: Path) -> None:
    """Bring an archive of an image (Docker's or OCI's format) into a node."""
    run(
        *("ctr", "--address", str(node.socket), "--namespace", "k8s.io"),
        *("images", "import", "--snapshotter", "overlayfs", str(archive)),
    )


def link_all(source: Node, target: Node) -> None:
    """Give a node that has none the images of another; both share the space of their files.

    Neither runtime may run. Layers are read only, so hard links serve; the databases are copied.
    """
    given, made = (node.folder / "containerd" for node in (source, target))
    if made.exists():
        return
    made.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "--archive", "--link", str(given), str(made))
    for database in made.glob("*/*.db"):
        copied = ("cp", "--archive", "--remove-destination")
        run(*copied, str(given / database.relative_to(made)), str(database))


def _import_binary(node: Node, image: str, binary: str, path: str) -> None:
    archive = STATE / "images" / f"{binary}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    _write_archive(archive, image, BINARIES / binary, path)
    import_archive(node, archive)


def _write_archive(archive: Path, image: str, binary: Path, path: str) -> None:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        entry = files.gettarinfo(str(binary), path)
        entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o755, 0, 0, "", ""
        with binary.open("rb") as stream:
            files.addfile(entry, stream)
    digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    settings = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{path}"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, mode="w") as files:
        for name, content in {
            "config.json": json.dumps(settings).encode(),
            "manifest.json": json.dumps(manifest).encode(),
            "layer.tar": layer.getvalue(),
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            files.addfile(entry, io.BytesIO(content))
