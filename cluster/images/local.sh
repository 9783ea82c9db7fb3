#!/usr/bin/env bash
# Both images for a cluster on this machine; `make image` builds those that a registry serves.
#   cluster/images/local.sh [FOLDER]   FOLDER gets the archives (default .cache/images)
# With a Docker engine these are two ordinary builds, and no archive is written. Without one: buildah as root. Where
# PYTHON_IMAGE is not set, it then builds on Debian's own Python, so that no image registry is needed, and writes an
# archive of each image as `docker save` does, for `ctr images import`, `kind load image-archive`, `k3d image import`.
#   PYTHON_IMAGE  the base (default: with Docker that of versions.env)
#   LEAVE_OUT     packages removed from the Ray image (default: those that torch opens only on a GPU; 1.1 GB)
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/.cache/images}
leave_out=${LEAVE_OUT-triton nvidia-cusolver}
base=localhost/sat-ray-python:3.11-bookworm
certificates=/etc/ssl/certs/ca-certificates.crt

fail() {
    echo "$1" >&2
    exit 2
}

version() { sed -n "s/^$1=//p" "$root/cluster/versions.env"; }

# Debian's Python with pip on the PATH and in /usr/local, as python:3.11-slim has them. `ray` needs the headers for
# torch.compile, as there.
make_base() {
    local container rootfs
    rootfs=$(mktemp -d /var/tmp/sat-ray-base.XXXXXXXX)
    # shellcheck disable=SC2064
    trap "rm -rf -- '$rootfs'" EXIT
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,libpython3-dev bookworm "$rootfs"
    chroot "$rootfs" python3 -m venv /usr/local
    rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$rootfs" /
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
    buildah commit --quiet --rm "$container" "$base"
}

build() {
    local dockerfile=$1 context=$2 image=$3
    shift 3
    if docker info >/dev/null 2>&1; then
        docker build -f "$dockerfile" "$@" -t "$image" "$context"
        return
    fi
    # A package index behind a proxy of this network is trusted as this machine trusts it.
    buildah build --isolation chroot --layers -f "$dockerfile" --ignorefile "$dockerfile.dockerignore" \
        --volume "$certificates:$certificates:ro" "$@" -t "docker.io/library/$image" "$context"
    # Written under another name first: whoever waits for the archive never reads half of it.
    local archive=$folder/${image%%:*}
    mkdir -p "$folder"
    rm -f "$archive.part"
    buildah push --quiet "docker.io/library/$image" "docker-archive:$archive.part:docker.io/library/$image"
    mv "$archive.part" "$archive.tar"
    ls -l "$archive.tar"
}

if docker info >/dev/null 2>&1; then
    base=$(version PYTHON_IMAGE)
else
    for program in buildah debootstrap; do
        command -v $program >/dev/null || fail "no Docker engine and no $program: start Docker, or apt-get install buildah debootstrap"
    done
    [[ $(id -u) = 0 ]] || fail "buildah and debootstrap need root here: start Docker, or run this as root"
    [[ -n ${PYTHON_IMAGE:-} ]] || buildah inspect --type image "$base" >/dev/null 2>&1 || make_base
fi
base=${PYTHON_IMAGE:-$base}

cd "$root"
build cluster/images/Dockerfile.mlflow cluster/images "$(version MLFLOW_IMAGE)" --build-arg PYTHON_IMAGE="$base"
build cluster/images/Dockerfile.ray . "$(version RAY_IMAGE)" --build-arg PYTHON_IMAGE="$base" --build-arg LEAVE_OUT="$leave_out"
