#!/usr/bin/env bash
# The overlay `laptop` on a cluster of this machine, for `make laptop` and `make laptop-kind`; again: changes only.
#   cluster/commands/laptop.sh prepare   operator (by helm, where none is), namespace, secrets: in the current context
#   cluster/commands/laptop.sh kind      a cluster of kind named sat-ray, and both images in it; needs docker, kind, kubectl, helm
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
namespace=sat-ray

fail() {
    echo "$1" >&2
    exit 2
}

require() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "no $program on the PATH; install it"
    done
}

version() { sed -n "s/^$1=//p" "$root/cluster/versions.env"; }

exists() { kubectl -n "$namespace" get secret "$1" >/dev/null 2>&1; }

# Values come on standard input: on a command line every user of the machine could read them.
create() { kubectl -n "$namespace" create secret generic "$1" --from-env-file=/dev/stdin; }

prepare() {
    require kubectl openssl
    if ! kubectl get deployments -A -o name | grep -q kuberay-operator; then
        require helm
        helm repo add kuberay https://ray-project.github.io/kuberay-helm/
        helm install kuberay-operator kuberay/kuberay-operator --version "$(version KUBERAY)" \
            --namespace kuberay-operator --create-namespace --wait
    fi
    kubectl apply --server-side -f "$root/cluster/base/namespace.yaml"
    exists sat-ray-auth || printf 'auth_token=%s\n' "$(openssl rand -hex 32)" | create sat-ray-auth
    exists sat-ray-mlflow-admin ||
        printf 'MLFLOW_AUTH_ADMIN_PASSWORD=%s\nMLFLOW_FLASK_SERVER_SECRET_KEY=%s\n' \
            "$(openssl rand -hex 16)" "$(openssl rand -hex 32)" | create sat-ray-mlflow-admin
    # One account is enough on a laptop: sweeps use the administrator's.
    exists sat-ray-mlflow-client ||
        printf 'MLFLOW_TRACKING_USERNAME=admin\nMLFLOW_TRACKING_PASSWORD=%s\n' \
            "$(kubectl -n "$namespace" get secret sat-ray-mlflow-admin \
                -o jsonpath='{.data.MLFLOW_AUTH_ADMIN_PASSWORD}' | base64 -d)" | create sat-ray-mlflow-client
}

case ${1:-} in
    prepare) prepare ;;
    kind)
        require docker kind kubectl helm openssl
        docker info >/dev/null 2>&1 || fail "the Docker engine does not answer; start it"
        kind get clusters | grep -qx sat-ray || kind create cluster --name sat-ray
        kubectl config use-context kind-sat-ray
        "$root/cluster/images/local.sh"
        kind load docker-image --name sat-ray "$(version RAY_IMAGE)" "$(version MLFLOW_IMAGE)"
        ;;
    *) fail "usage: cluster/commands/laptop.sh prepare | kind" ;;
esac
