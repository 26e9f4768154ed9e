//! An image, and the archive of it (OCI image specification 1.1: image manifest, image configuration, and image layout in a tar file).

use std::{collections::BTreeMap, io::Write as _};

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use crate::files::{self, ROOTS, USER, add};

/// What an image is made of.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// A static one.
    pub(crate) binary: &'a [u8],
    /// What the program is called; it is found in `/usr/bin`.
    pub(crate) program: &'a str,
    /// By which the image is known once it is imported, with a tag.
    pub(crate) name: &'a str,
    /// What else it says of itself, by the names of the specification after `org.opencontainers.image.`; the version is the tag.
    pub(crate) labels: &'a [(&'a str, &'a str)],
    /// When what it is built from was made.
    pub(crate) created: Timestamp,
}

/// An image with one layer.
#[derive(Debug)]
pub(crate) struct Image {
    /// What importing it needs, as a tar file.
    pub(crate) archive: Vec<u8>,
    /// By which registries and kubelets know it.
    pub(crate) digest: String,
    /// Bytes of all its files.
    pub(crate) unpacked: usize,
}

impl Image {
    /// Puts the binary into an image.
    ///
    /// # Errors
    /// When the binary would not start in it, or the name has no tag.
    pub(crate) fn new(source: &Source<'_>) -> anyhow::Result<Self> {
        let Source {
            binary,
            program,
            name,
            labels,
            created,
        } = *source;
        let tag = name.rsplit_once(':').map(|(_, tag)| tag);
        let tag = tag.filter(|tag| !tag.is_empty() && !tag.contains('/'));
        let tag = tag.with_context(|| format!("{name} has no tag"))?;
        let files = files::layer(program, binary)?;
        let labels: BTreeMap<String, &str> = labels
            .iter()
            .chain(&[("version", tag)])
            .map(|(key, value)| (format!("org.opencontainers.image.{key}"), *value))
            .collect();
        // With neither a time nor a name in it.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&files)?;
        let layer = gzip.finish()?;
        let config = json!({
            "created": created.to_string(),
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": format!("{USER}:{USER}"),
                "Entrypoint": [format!("/{}", files::path(program))],
                "Env": ["PATH=/usr/bin", format!("SSL_CERT_FILE=/{ROOTS}")],
                "Labels": labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&files)] },
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
        })
        .to_string();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": digest(manifest.as_bytes()),
                "size": manifest.len(),
                "platform": { "architecture": architecture(), "os": "linux" },
                "annotations": {
                    "org.opencontainers.image.ref.name": tag,
                    // By which containerd calls it.
                    "io.containerd.image.name": name,
                },
            }],
        })
        .to_string();
        let layout = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
        let blobs = [manifest.as_bytes(), config.as_bytes(), &layer];
        let mut tar = Builder::new(Vec::new());
        let mut file =
            |path: &str, content: &[u8]| add(&mut tar, path, EntryType::Regular, 0o644, content);
        file("oci-layout", layout.as_bytes())?;
        file("index.json", index.as_bytes())?;
        for blob in blobs {
            file(&digest(blob).replace("sha256:", "blobs/sha256/"), blob)?;
        }
        Ok(Self {
            archive: tar.into_inner()?,
            digest: digest(manifest.as_bytes()),
            unpacked: files.len(),
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// As Go calls the machine that this was built on, for which the binary is too.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn digest(content: &[u8]) -> String {
    let bytes = Sha256::digest(content);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    /// The smallest file that passes for a static binary: a header of ELF-64, and no program headers.
    fn binary() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf
    }

    fn image(binary: &[u8]) -> Image {
        let source = Source {
            binary,
            program: "mailbell",
            name: "mailbell.dev/mailbell:0.1.0",
            labels: &[("revision", "abc")],
            created: Timestamp::from_second(1_700_000_000).unwrap(),
        };
        Image::new(&source).unwrap()
    }

    fn unpack(tar: &[u8]) -> BTreeMap<String, (Vec<u8>, u32)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(
                (
                    entry.header().mtime().unwrap(),
                    entry.header().uid().unwrap()
                ),
                (0, 0)
            );
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            (path, (content, entry.header().mode().unwrap()))
        });
        entries.collect()
    }

    /// As whoever imports it: from the index to the manifest, to the configuration and the layer, each by its digest.
    #[test]
    fn every_part_is_where_its_digest_says() {
        let image = image(&binary());
        let files = unpack(&image.archive);
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path].0).unwrap();
        let blob = |of: &Value| {
            let path = of["digest"].as_str().unwrap().replace(':', "/");
            let content = &files[&format!("blobs/{path}")].0;
            assert_eq!(of["digest"], digest(content));
            assert_eq!(of["size"], content.len());
            content.clone()
        };
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        let index = json("index.json");
        let described = &index["manifests"][0];
        assert_eq!(described["digest"], image.digest.as_str());
        let name = &described["annotations"]["io.containerd.image.name"];
        assert_eq!(name, "mailbell.dev/mailbell:0.1.0");
        let manifest: Value = serde_json::from_slice(&blob(described)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/mailbell");
        let label = |name| &config["config"]["Labels"][format!("org.opencontainers.image.{name}")];
        assert_eq!(label("version"), "0.1.0");
        assert_eq!(label("revision"), "abc");
        let layer = blob(&manifest["layers"][0]);
        let mut unpacked = Vec::new();
        GzDecoder::new(&layer[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&unpacked));
        assert_eq!(image.unpacked, unpacked.len());
        let files = unpack(&unpacked);
        assert_eq!(files["usr/bin/mailbell"], (binary(), 0o755));
        assert!(files.contains_key("etc/ssl/certs/ca-certificates.crt"));
        // Nothing to break out with.
        assert_eq!(files.len(), 9, "{:?}", files.keys());
    }

    #[test]
    fn the_same_goes_in_the_same_comes_out() {
        let one = image(&binary());
        let two = image(&binary());
        assert!(one.archive == two.archive);
        let mut other = binary();
        other.push(0);
        assert_ne!(image(&other).digest, one.digest);
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        for name in ["mailbell", "localhost:5000/mailbell", "mailbell:"] {
            let source = Source {
                binary: &binary(),
                program: "mailbell",
                name,
                labels: &[],
                created: Timestamp::UNIX_EPOCH,
            };
            let refused = Image::new(&source).unwrap_err().to_string();
            assert!(refused.contains("has no tag"), "{name}: {refused}");
        }
    }
}
