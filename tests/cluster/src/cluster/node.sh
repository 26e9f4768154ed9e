#!/bin/bash
# A node of the tests' cluster, in namespaces of its own; its process 1 ends all of it. node.rs runs this, with in the environment:
#   NODE       its name
#   ADDRESS    its own on the bridge
#   GATEWAY    where the control plane is
#   ROUTES     "NETWORK ROUTER ..." to the pods of other nodes
#   FOLDER     what is its own: its configuration, and all that it writes
#   GROUP      the name of its control groups
#   IMAGES     archives of the images that pods of it may have
#   BRIDGE     the bridge outside
set -euo pipefail

# In the control groups of version 1 of whoever runs this, below its own. The list is read whole first: it changes with each step.
outside() {
    local list controllers path group
    list=$(</proc/self/cgroup)
    while IFS=: read -r _ controllers path; do
        # Of version 2, which has no controllers here.
        [ -n "$controllers" ] || continue
        group="/sys/fs/cgroup/${controllers#name=}${path%/}/$GROUP"
        mkdir -p "$group"
        case $controllers in
            *cpuset*) for what in cpus mems; do cat "${group%/*}/cpuset.$what" >"$group/cpuset.$what"; done ;;
        esac
        echo $$ >"$group/cgroup.procs"
    done <<<"$list"
    # The way back to the network of the bridge.
    exec 9</proc/self/ns/net
    exec unshare --mount --pid --net --cgroup --uts --ipc --fork --kill-child --mount-proc "$BASH" "$0" inside
}

mounts() {
    local controllers name
    mount -t sysfs sysfs /sys
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        [ -n "$controllers" ] || continue
        name=${controllers#name=}
        mkdir "/sys/fs/cgroup/$name"
        [ "$name" = "$controllers" ] || controllers="none,$controllers"
        mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$name"
    done </proc/self/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p "$FOLDER"/{lib,log,sysctl,volumes}
    mount --bind "$FOLDER/lib" /var/lib
    mount --bind "$FOLDER/log" /var/log
    # The kubelet sets these of the whole machine: it gets files of its own, which are as it wants them.
    for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
        name=${setting%=*}
        echo "${setting#*=}" >"$FOLDER/sysctl/${name#*/}"
        mount --bind "$FOLDER/sysctl/${name#*/}" "/proc/sys/$name"
    done
    # Volumes of pods are mounted by the kubelet and seen by containerd.
    mount --make-rshared /
}

network() {
    hostname "$NODE"
    nsenter --net=/proc/self/fd/9 ip link add "$NODE" type veth peer name eth0 netns 1
    nsenter --net=/proc/self/fd/9 ip link set "$NODE" master "$BRIDGE" up
    exec 9<&-
    ip link set lo up
    ip address add "$ADDRESS/24" dev eth0
    ip link set eth0 up
    ip route add default via "$GATEWAY"
    set -- $ROUTES
    while [ $# -gt 0 ]; do
        ip route add "$1" via "$2"
        shift 2
    done
    echo 1 >/proc/sys/net/ipv4/ip_forward
    # Who was cut off is soon back: where the kernel can, what was lost is sent again each second.
    [ ! -e /proc/sys/net/ipv4/tcp_rto_max_ms ] || echo 1000 >/proc/sys/net/ipv4/tcp_rto_max_ms
}

inside() {
    mounts
    network
    containerd --config "$FOLDER/containerd.toml" >"$FOLDER/containerd.log" 2>&1 &
    local tries=0
    until ctr version >/dev/null 2>&1; do
        [ $((tries += 1)) -lt 300 ] || { echo "containerd does not answer" >&2; exit 1; }
        sleep 0.1
    done
    for image in $IMAGES; do
        ctr --namespace k8s.io images import "$image" >/dev/null
    done
    # A connection that has died in silence is soon given up.
    export HTTP2_READ_IDLE_TIMEOUT_SECONDS=5 HTTP2_PING_TIMEOUT_SECONDS=3
    kube-proxy --config "$FOLDER/kube-proxy.yaml" >"$FOLDER/kube-proxy.log" 2>&1 &
    kubelet --config "$FOLDER/kubelet.yaml" --kubeconfig "$FOLDER/kubeconfig" --hostname-override "$NODE" \
        --node-ip "$ADDRESS" >"$FOLDER/kubelet.log" 2>&1 &
    # A node of which one of them has ended is none.
    wait -n
    echo "one of the programs of $NODE has ended: see its logs in $FOLDER" >&2
}

"${1:-outside}"
