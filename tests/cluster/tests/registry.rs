//! What `docs/operating.md` says of a registry, with one that runs.

#![cfg(test)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use mailbell_test_cluster::{
    archive,
    guide::{Needs, blocks},
    in_private_network,
};
use mailbell_test_servers::{
    Authority,
    process::{Process, wait_until},
};
use tempfile::TempDir;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);
const HOST: &str = "registry.example.org";
/// What the page leaves open.
const TAG: &str = "1.2.3";
/// In a network of its own the port is free.
const CONFIG: &str = "\
version: 0.1
storage: { filesystem: { rootdirectory: images } }
http: { addr: ':443', tls: { certificate: tls.crt, key: tls.key } }
";
/// A person's system has one: it says whose signatures are asked for.
const POLICY: &str = r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#;

/// In this folder, where names lead to this machine and roots are those of the registry.
fn typed(folder: &Path, script: &str) -> String {
    let shell = r#"mount --bind hosts /etc/hosts && exec bash -euo pipefail -c "$0""#;
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("unshare")
        .args(["--mount", "sh", "-c", shell, script])
        .current_dir(folder)
        .env("HOME", folder)
        .env("SSL_CERT_FILE", folder.join("ca.crt"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{script}: {said}");
    String::from_utf8(stdout).unwrap()
}

#[test]
fn the_image_goes_into_a_registry_as_it_is() {
    in_private_network(async || {
        let folder = TempDir::with_prefix("mailbell-test-").unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["target", ".config/containers"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        symlink(
            archive("mailbell").unwrap(),
            path("target/mailbell.oci.tar"),
        )
        .unwrap();
        let certificate = Authority::new().certificate(&[HOST]);
        let hosts = format!("127.0.0.1 localhost {HOST}\n");
        for (name, content) in [
            ("ca.crt", &certificate.authority_pem),
            ("tls.crt", &certificate.certificate_pem),
            ("tls.key", &certificate.key_pem),
            ("hosts", &hosts),
            ("config.yml", &CONFIG.to_owned()),
            (".config/containers/policy.json", &POLICY.to_owned()),
        ] {
            fs::write(path(name), content).unwrap();
        }
        let serve = r#"cd "$0" && exec docker-registry serve config.yml"#;
        let serve = ["-c", serve, folder.path().to_str().unwrap()];
        let mut registry = Process::start(Path::new("sh"), &serve, &path("log")).unwrap();
        let answers = || async { TcpStream::connect(("127.0.0.1", 443)).await.is_ok() };
        let there = wait_until(&mut registry, LIMIT, answers).await;
        assert!(
            there.is_ok(),
            "{}",
            fs::read_to_string(path("log")).unwrap()
        );

        let blocks = blocks().unwrap();
        let mut of_registries = blocks.iter().filter(|it| it.needs == Needs::Registry);
        let script = of_registries.next().unwrap().script.replace("TAG", TAG);
        assert!(of_registries.next().is_none());
        typed(folder.path(), &script);
        let digest = |image: &str| {
            let inspect = format!("skopeo inspect --format '{{{{.Digest}}}}' {image}");
            typed(folder.path(), &inspect)
        };
        let there = digest(&format!("docker://{HOST}/mailbell:{TAG}"));
        assert!(there.starts_with("sha256:"), "{there}");
        assert_eq!(there, digest("oci-archive:target/mailbell.oci.tar"));
    })
    .unwrap();
}
