#!/usr/bin/env python3
"""Reads what `make image` has written, and the list of its materials (CycloneDX), with `cargo tree` on standard input:
contents.py --archive FILE --again FILE --sbom FILE --lock FILE --folder FOLDER ...

The image is not larger than we want it, comes out the same twice, and names no folder of the machine on which it was made. The list is
of what is in it: every crate that is compiled into the binary stands there, as Cargo.lock has it, as that of the root certificates does,
and the C library.
"""

import argparse
import gzip
import io
import json
import os
import pathlib
import re
import sys
import tarfile
import tomllib

# docs/performance.md has the aim, and what it is.
MOST_BYTES = 40_000_000
BINARY = "usr/bin/mailbell"
# services/image has them of it.
ROOTS = "webpki-root-certs"


def layers(archive):
    """As tar files, by what the manifest says."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:

        def blob(descriptor):
            return files.extractfile("blobs/" + descriptor["digest"].replace(":", "/")).read()

        index = json.load(files.extractfile("index.json"))
        manifest = json.loads(blob(index["manifests"][0]))
        return [gzip.decompress(blob(layer)) for layer in manifest["layers"]]


# What the build puts in place of the machine's folders (`REMAP` of the Makefile).
STAND_INS = ("/mailbell", "/target", "/cargo", "/rust")


def names_no(folders, what, content):
    for folder in folders:
        if any(name.startswith(folder) for name in STAND_INS):
            # Where that is the folder itself, nothing can be told apart.
            continue
        at = content.find(folder.encode())
        assert at < 0, f"{what} names {folder}: {content[max(0, at - 60) : at + 120]}"


def check_image(archive, again, folders):
    assert archive == again, "the same binary has made another archive"
    unpacked = layers(archive)
    size = sum(map(len, unpacked))
    assert size <= MOST_BYTES, f"the image is {size / 1e6:.1f} MB unpacked, and may have {MOST_BYTES / 1e6:.0f}"
    with tarfile.open(fileobj=io.BytesIO(unpacked[0])) as files:
        names_no(folders, BINARY, files.extractfile(BINARY).read())
    return size


def check_list(text, lock, tree, folders):
    names_no(folders, "the list of materials", text)
    bom = json.loads(text)
    # What the specification asks of each list.
    assert bom["bomFormat"] == "CycloneDX" and re.fullmatch(r"1\.[3-9]", bom["specVersion"]) and bom["version"] >= 1, bom.keys()
    program = bom["metadata"]["component"]
    assert (program["type"], program["name"]) == ("application", "mailbell"), program
    components = bom["components"]
    for component in [program, *components]:
        assert component["type"] in ("application", "library") and component["name"] and component["version"], component
        assert (component.get("purl") or "").startswith("pkg:"), component
    references = [component["bom-ref"] for component in [program, *components]]
    assert len(references) == len(set(references)), "two components have one name"
    of = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    assert len(of) == len(bom["dependencies"]) and of[program["bom-ref"]], "it does not say what mailbell depends on"
    unknown = {*of, *(ref for refs in of.values() for ref in refs)} - set(references)
    assert not unknown, f"dependencies that are no components: {sorted(unknown)}"
    # What Cargo says, of versions and of content.
    locked = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    named = set()
    libraries = [component for component in components if not component["purl"].startswith("pkg:cargo/")]
    for component in [program, *components]:
        if component in libraries:
            continue
        key = (component["name"], component["version"])
        assert component["purl"].startswith(f"pkg:cargo/{key[0]}@{key[1]}"), component
        named.add(key)
        assert key in locked, f"Cargo.lock has no {key}"
        hashes = [it["content"] for it in component.get("hashes", []) if it["alg"] == "SHA-256"]
        assert hashes == ([locked[key]] if locked[key] else []), f"Cargo.lock has another content of {key}"
    compiled = {(words[0], words[1].removeprefix("v")) for words in map(str.split, tree.splitlines()) if words}
    assert ("mailbell", program["version"]) in compiled, "cargo tree has not told of mailbell"
    assert compiled <= named, f"compiled, and not in the list: {sorted(compiled - named)}"
    # What is in the image and not compiled from a crate of the binary.
    assert ROOTS in {name for name, _ in named}, f"the root certificates are those of {ROOTS}, which is not in the list"
    library, release = os.confstr("CS_GNU_LIBC_VERSION").split()
    found = [(component["name"], component["version"].startswith(release)) for component in libraries]
    assert found == [(library, True)], f"{library} {release}, and nothing else, is linked in: {libraries}"
    return len(components)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    for name in ("archive", "again", "sbom", "lock"):
        arguments.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments.add_argument("--folder", action="append", required=True, help="that nothing may name")
    given = arguments.parse_args()
    size = check_image(given.archive.read_bytes(), given.again.read_bytes(), given.folder)
    lock = tomllib.loads(given.lock.read_text())
    # `cargo tree` on standard input.
    count = check_list(given.sbom.read_bytes(), lock, sys.stdin.read(), given.folder)
    print(f"{given.archive}: {size / 1e6:.1f} MB unpacked, at most {MOST_BYTES / 1e6:.0f}; {count} components, all as locked")
