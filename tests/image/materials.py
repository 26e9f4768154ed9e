#!/usr/bin/env python3
"""The list of what the image is made of (CycloneDX), on standard output, from those of two crates:
materials.py services/mailbell/mailbell-sbom.json services/image/mailbell-sbom.json

To the crates of the binary come the root certificates, which the program that packs the image has from a crate, and the C library, which
is linked in statically and is a package of the machine.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from urllib.parse import quote

ROOTS = "webpki-root-certs"


def c_library():
    """By the source package, by which distributions tell of its faults; where there are no packages of Debian, by its release."""
    name, release = os.confstr("CS_GNU_LIBC_VERSION").split()
    purl = f"pkg:generic/{name}@{release}"
    if shutil.which("dpkg-query"):
        # The package has what is linked in, libc.a.
        query = ["dpkg-query", "--show", "--showformat=${source:Version}", "libc6-dev"]
        release = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout
        purl = f"pkg:deb/{platform.freedesktop_os_release()['ID']}/{name}@{quote(release)}?arch=source"
    return {"type": "library", "bom-ref": purl, "name": name, "version": release, "scope": "required", "purl": purl}


def main(binary, packer):
    with open(binary, "rb") as one, open(packer, "rb") as other:
        bom, other = json.load(one), json.load(other)
    roots = next(component for component in other["components"] if component["name"] == ROOTS)
    needs = next(entry for entry in other["dependencies"] if entry["ref"] == roots["bom-ref"])
    library = c_library()
    program = bom["metadata"]["component"]["bom-ref"]
    for component, entry in [(roots, needs), (library, {"ref": library["bom-ref"]})]:
        bom["components"].append(component)
        bom["dependencies"].append(entry)
        of_program = next(entry for entry in bom["dependencies"] if entry["ref"] == program)
        of_program["dependsOn"].append(component["bom-ref"])
    print(json.dumps(bom, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
