#!/usr/bin/env bash
# Builds programs of the tests' cluster from Go modules: build.sh kubernetes|nodes|helm RELEASE FOLDER. The folder is whole afterwards,
# or not there.
set -euo pipefail
what=$1 release=$2 folder=$3
tools=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$folder")"
staging=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$staging"' EXIT
flags="-s -w"

# MODULE PROGRAM PACKAGE. By the toolchain that is there: where modules come from, there need be no other.
build() {
    (cd "$tools/$1" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly \
        go build -trimpath -ldflags "$flags" -o "$staging/$2" "$3")
}

# PROGRAM... Each says the release, by which a client and a server know each other's age.
kubernetes() {
    local program major minor version=k8s.io/component-base/version
    IFS=. read -r major minor _ <<<"${release#v}"
    flags+=" -X $version.gitVersion=$release -X $version.gitMajor=$major -X $version.gitMinor=$minor"
    for program in "$@"; do
        build kubernetes "$program" "k8s.io/kubernetes/cmd/$program"
    done
}

case $what in
    kubernetes)
        build etcd etcd go.etcd.io/etcd/server/v3
        kubernetes kube-apiserver kubectl
        ;;
    nodes)
        build coredns coredns github.com/coredns/coredns
        build pod pod .
        kubernetes kube-controller-manager kube-scheduler kubelet kube-proxy
        ;;
    helm)
        flags+=" -X helm.sh/helm/v4/internal/version.version=$release"
        build helm helm helm.sh/helm/v4/cmd/helm
        ;;
    *) printf 'build.sh: unknown: %s\n' "$what" >&2; exit 64 ;;
esac
chmod 755 "$staging"
# Somebody else may have built the same meanwhile.
mv -T "$staging" "$folder" 2>/dev/null || [ -d "$folder" ]
