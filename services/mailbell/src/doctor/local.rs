//! The state directory, its secrets, and the process.

use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use mailbell_runtime::secretfile;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::Report;
use crate::standalone::{addresses::Addresses, identity::secret_files};

const LIMIT: Duration = Duration::from_secs(5);
/// A report of `/readyz` has some hundred bytes.
const MAX_ANSWER: u64 = 256 * 1024;

pub(super) fn directory(report: &mut Report, directory: &Path) {
    let shown = directory.display();
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.fail(
                "state directory",
                format!("{shown} does not exist"),
                "start an installation with `mailbell standalone`, or name its directory with --state-dir",
            );
            return;
        }
        Err(error) => {
            report.fail(
                "state directory",
                format!("{shown}: {error}"),
                "run this as the user who started the installation",
            );
            return;
        }
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => report.warn(
            "state directory",
            format!("others may look into {shown}"),
            format!("chmod 700 {shown}"),
        ),
        Ok(_) => report.ok("state directory", shown.to_string()),
    }
    let mut problems = 0;
    for name in secret_files() {
        let path = directory.join(&name);
        if !path.exists() {
            continue;
        }
        if let Err(error) = secretfile::read(&path) {
            problems += 1;
            report.fail(
                "secrets",
                error.to_string(),
                format!("chmod 600 {}", path.display()),
            );
        }
    }
    if problems == 0 {
        report.ok("secrets", "can be read by their owner alone");
    }
}

/// What `/readyz` answers.
#[derive(Debug, Deserialize)]
struct Readiness {
    ok: bool,
    draining: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    ok: bool,
    reason: Option<String>,
}

pub(super) async fn process(report: &mut Report, directory: &Path) -> Option<Addresses> {
    let addresses = match Addresses::read(directory) {
        Ok(addresses) => addresses,
        Err(failure) => {
            report.fail(
                "process",
                failure.message,
                "start it with `mailbell standalone`",
            );
            return None;
        }
    };
    let pid = addresses.pid;
    match timeout(LIMIT, ready(addresses.http)).await {
        Ok(Ok(readiness)) if readiness.ok => {
            report.ok(
                "process",
                format!("process {pid} is ready (version {})", addresses.version),
            );
        }
        Ok(Ok(readiness)) if readiness.draining => {
            report.warn(
                "process",
                format!("process {pid} is stopping"),
                "wait, and look again",
            );
        }
        Ok(Ok(readiness)) => {
            for check in readiness.checks.into_iter().filter(|check| !check.ok) {
                let reason = check.reason.unwrap_or_default();
                report.fail(
                    "process",
                    format!("{} is not ready: {reason}", check.name),
                    "wait a little; if it stays so, the log of the process says why",
                );
            }
        }
        Ok(Err(_)) | Err(_) => {
            report.fail(
                "process",
                format!("process {pid} does not answer on http://{}", addresses.http),
                "it was killed, or hangs: start it (again) with `mailbell standalone`",
            );
            return None;
        }
    }
    let mine = env!("CARGO_PKG_VERSION");
    if addresses.version != mine {
        report.warn(
            "version",
            format!(
                "the process is version {}, this is {mine}",
                addresses.version
            ),
            "restart the process with this version",
        );
    }
    Some(addresses)
}

async fn ready(http: SocketAddr) -> io::Result<Readiness> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let body = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .and_then(|at| answer.get(at + 4..))
        .unwrap_or_default();
    serde_json::from_slice(body).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use mailbell_runtime::{health::Health, http::HttpServer, listen};

    use super::*;
    use crate::doctor::Verdict;

    fn verdicts(report: &Report) -> Vec<(&str, Verdict)> {
        let findings = report.findings.iter();
        findings
            .map(|finding| (finding.name.as_str(), finding.verdict))
            .collect()
    }

    #[test]
    fn a_secret_that_others_can_read_is_found() {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut report = Report::default();
        directory(&mut report, temp.path());
        assert_eq!(report.worst(), Verdict::Ok);
        let token = temp.path().join("admin.token");
        fs::write(&token, "x").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut report = Report::default();
        directory(&mut report, temp.path());
        assert_eq!(
            verdicts(&report),
            [
                ("state directory", Verdict::Warn),
                ("secrets", Verdict::Fail)
            ]
        );
        let mut report = Report::default();
        directory(&mut report, &temp.path().join("nowhere"));
        assert_eq!(report.worst(), Verdict::Fail);
    }

    #[tokio::test]
    async fn a_process_is_ready_or_says_why_not_or_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let mut report = Report::default();
        assert!(process(&mut report, temp.path()).await.is_none());
        let health = Health::new();
        health.set("logs", Err("they are being joined"));
        let bound = listen::bind("127.0.0.1:0".parse().unwrap(), "--http-listen").unwrap();
        let server = HttpServer::start(bound, health.clone()).unwrap();
        let addresses = Addresses {
            pid: 7,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            push: server.addr(),
            push_tls: false,
            push_authority: None,
            admin: server.addr(),
            admin_tls: false,
            admin_authority: None,
            http: server.addr(),
            nats: Vec::new(),
            own_nats: true,
            installation: "main".to_owned(),
        };
        addresses.write(temp.path()).unwrap();
        let mut report = Report::default();
        assert!(process(&mut report, temp.path()).await.is_some());
        assert!(report.findings[0].said.contains("they are being joined"));
        health.set("logs", Ok::<(), &str>(()));
        let mut report = Report::default();
        process(&mut report, temp.path()).await;
        assert_eq!(verdicts(&report), [("process", Verdict::Ok)]);
        server.stop().await;
        let mut report = Report::default();
        assert!(process(&mut report, temp.path()).await.is_none());
        assert_eq!(verdicts(&report), [("process", Verdict::Fail)]);
    }
}
