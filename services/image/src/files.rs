//! The files of the image, as one layer.

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tar::{Builder, EntryType, Header};

/// Where a program is.
pub(crate) fn path(program: &str) -> String {
    format!("usr/bin/{program}")
}

/// Where libraries of TLS look for the certificates.
pub(crate) const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
/// Its user and group: nobody else's, and not root.
pub(crate) const USER: u32 = 65532;

/// A tar archive of all files, each owned by root and of the time zero.
pub(crate) fn layer(program: &str, binary: &[u8]) -> anyhow::Result<Vec<u8>> {
    check_static(binary)?;
    let passwd = format!("{program}:x:{USER}:{USER}::/nonexistent:/nonexistent\n");
    let group = format!("{program}:x:{USER}:\n");
    let roots = roots();
    let mut tar = Builder::new(Vec::new());
    for folder in ["etc/", "etc/ssl/", "etc/ssl/certs/", "usr/", "usr/bin/"] {
        add(&mut tar, folder, EntryType::Directory, 0o755, &[])?;
    }
    for (path, mode, content) in [
        ("etc/passwd", 0o644, passwd.as_bytes()),
        ("etc/group", 0o644, group.as_bytes()),
        (ROOTS, 0o644, roots.as_bytes()),
        (&path(program), 0o755, binary),
    ] {
        add(&mut tar, path, EntryType::Regular, mode, content)?;
    }
    tar.into_inner().context("cannot write the layer")
}

/// Adds what is owned by root and of the time zero.
pub(crate) fn add(
    tar: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> anyhow::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len().try_into()?);
    tar.append_data(&mut header, path, content)
        .with_context(|| format!("cannot add {path}"))
}

/// What Mozilla trusts, as of the version of the crate in Cargo.lock.
fn roots() -> String {
    let mut pem = String::new();
    for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let text = BASE64_STANDARD.encode(root);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = more;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// The program header of an ELF file that names the program which loads libraries.
const INTERPRETER: u32 = 3;

/// One that needs libraries would not start in the image, which has none.
fn check_static(binary: &[u8]) -> anyhow::Result<()> {
    let Some(headers) = program_headers(binary) else {
        bail!("the binary is no 64-bit little-endian ELF file");
    };
    if headers.contains(&INTERPRETER) {
        bail!("the binary needs libraries: build it with -C target-feature=+crt-static");
    }
    Ok(())
}

/// The kinds of its program headers (ELF-64, System V ABI, chapter 5).
fn program_headers(binary: &[u8]) -> Option<Vec<u32>> {
    fn number<const N: usize>(binary: &[u8], at: usize) -> Option<[u8; N]> {
        binary.get(at..at.checked_add(N)?)?.try_into().ok()
    }
    if binary.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let first = usize::try_from(u64::from_le_bytes(number(binary, 0x20)?)).ok()?;
    let size = usize::from(u16::from_le_bytes(number(binary, 0x36)?));
    let count = usize::from(u16::from_le_bytes(number(binary, 0x38)?));
    let kind = |index: usize| {
        let at = first.checked_add(index.checked_mul(size)?)?;
        Some(u32::from_le_bytes(number(binary, at)?))
    };
    (0..count).map(kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_needs_libraries_is_refused() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let refused = layer("mailbell", &own).unwrap_err().to_string();
        assert!(refused.contains("crt-static"), "{refused}");
        for junk in [&b""[..], b"\x7fELF\x02\x01", b"#!/bin/sh\n"] {
            let refused = layer("mailbell", junk).unwrap_err().to_string();
            assert!(refused.contains("no 64-bit"), "{refused}");
        }
    }

    /// Where there is an engine, the Dockerfile makes an image of the same files, user and program.
    #[test]
    fn the_dockerfile_says_the_same() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
        let read = |name| std::fs::read_to_string(format!("{root}{name}")).unwrap();
        let (file, toolchain) = (read("Dockerfile"), read("rust-toolchain.toml"));
        let release = toolchain.lines().find_map(|line| {
            let release = line.strip_prefix("channel = \"")?;
            release.strip_suffix('"')
        });
        let base = format!("FROM rust:{}-slim-bookworm@sha256:", release.unwrap());
        let pinned = file.lines().find_map(|line| line.strip_prefix(&base));
        let digest = pinned.and_then(|rest| rest.strip_suffix(" AS build"));
        let is_hex = |digest: &str| digest.bytes().all(|it| it.is_ascii_hexdigit());
        assert!(
            digest.is_some_and(|it| it.len() == 64 && is_hex(it)),
            "{base}"
        );
        for line in [
            "FROM scratch".to_owned(),
            format!("ENV PATH=/usr/bin SSL_CERT_FILE=/{ROOTS}"),
            format!("USER {USER}:{USER}"),
            format!("ENTRYPOINT [\"/{}\"]", path("mailbell")),
        ] {
            assert!(file.lines().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn the_roots_are_certificates() {
        let pem = roots();
        assert!(pem.matches("BEGIN CERTIFICATE").count() > 100);
        assert!(pem.lines().all(|line| line.len() <= 64));
    }
}
