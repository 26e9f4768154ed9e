#!/usr/bin/env python3
"""Starts what `make image` has written, in an empty root and a network of its own: check.py target/mailbell.oci.tar

It follows the archive as a kubelet does, from the index to the layer, each part by its digest. The binary has no library to look names
up with, so a name is looked up too: by the resolv.conf of a pod, at a name server that this script is.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading

CHROOT = shutil.which("chroot", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
NAME = "admin.mailbell.svc.cluster.test"


def blob(archive, descriptor):
    algorithm, digest = descriptor["digest"].split(":")
    content = archive.extractfile(f"blobs/{algorithm}/{digest}").read()
    assert hashlib.new(algorithm, content).hexdigest() == digest, descriptor
    assert len(content) == descriptor["size"], descriptor
    return content


def unpack(path, root):
    with tarfile.open(path) as archive:
        index = json.load(archive.extractfile("index.json"))
        manifest = json.loads(blob(archive, index["manifests"][0]))
        config = json.loads(blob(archive, manifest["config"]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(blob(archive, layer))) as files:
                files.extractall(root)
    return config["config"]


def serve_names(asked):
    """Answers questions for NAME's address with 127.0.0.1, and all others with no such name (RFC 1035)."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def run():
        while True:
            question, client = server.recvfrom(512)
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode())
                at += question[at] + 1
            name, kind = ".".join(labels), question[at + 1 : at + 3]
            asked.append(name)
            section = question[12 : at + 5]
            known = name == NAME and kind == b"\0\1"
            code = b"\x85\x80" if name == NAME else b"\x85\x83"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if known else b""
            counts = b"\0\1\0" + (b"\1" if known else b"\0") + b"\0\0\0\0"
            server.sendto(question[:2] + code + counts + section + answer, client)

    threading.Thread(target=run, daemon=True).start()


def bring_loopback_up():
    set_flags, up = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP, netdevice(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up))


def inside(path, whose):
    bring_loopback_up()
    with tempfile.TemporaryDirectory(prefix="mailbell-image-") as root:
        config = unpack(path, root)
        # What a kubelet puts there, and a token.
        with open(f"{root}/etc/resolv.conf", "w") as file:
            file.write("nameserver 127.0.0.1\nsearch mailbell.svc.cluster.test svc.cluster.test\noptions ndots:5\n")
        token = os.open(f"{root}/token", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(token, b"mba_" + os.urandom(32).hex().encode() + b"\n")
        os.close(token)
        # Whoever is not root is one of the others in the container already.
        user = []
        if whose == "root":
            user = [f"--userspec={config['User']}"]
            os.chown(f"{root}/token", *map(int, config["User"].split(":")))
            os.chmod(root, 0o755)
        environment = dict(entry.split("=", 1) for entry in config["Env"])

        def run(*arguments):
            command = [CHROOT, *user, root, *config["Entrypoint"], *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

        version = run("--version")
        assert version.returncode == 0 and version.stdout.startswith("mailbell "), version
        asked = []
        serve_names(asked)
        # By its short name, as pods call one another.
        call = ["account", "list", "--admin-token-file", "/token", "--admin-url"]
        found = run(*call, "https://admin:7444")
        assert "onnection refused" in found.stderr, found
        assert NAME in asked, asked
        lost = run(*call, "https://other:7444")
        assert "lookup" in lost.stderr, lost
    print(f"{version.stdout.strip()} starts from {path}, and finds names")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        whose, rights = ("root", []) if os.geteuid() == 0 else ("mine", ["--map-root-user"])
        namespaces = ["unshare", *rights, "--net", "--fork", "--kill-child"]
        os.execvp("unshare", [*namespaces, sys.executable, __file__, sys.argv[1], whose])
    inside(*sys.argv[1:])
