#!/bin/bash
# Removes what the processes of a cluster leave behind, once its owner closes standard input or is gone, however it died.
#   cleanup.sh FOLDER GROUP: the folder of the cluster, and how the names of its control groups begin
set -uo pipefail
folder=$1 group=$2
trap '' INT TERM HUP
cat >/dev/null
# Its processes are being killed now, which takes a moment: a group with one in it stays, and so does a folder into which one writes.
for _ in $(seq 300); do
    find /sys/fs/cgroup -mindepth 2 -depth -type d -path "*/$group.*" -exec rmdir {} + 2>/dev/null
    left=$(find /sys/fs/cgroup -mindepth 2 -type d -name "$group.*" 2>/dev/null)
    [ -n "$left" ] || rm -rf "$folder" 2>/dev/null
    [ -e "$folder" ] || exit 0
    sleep 0.1
done
echo "left behind: $folder $left" >&2
exit 1
