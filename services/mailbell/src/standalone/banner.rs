//! What a person reads when it has started.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_runtime::health::Health;
use tokio::time::{Instant, interval};

use super::addresses::Addresses;
use crate::terminal::{Paint, Style};

/// After this the banner is printed all the same, with what is missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until everything is ready and says what listens where.
pub(super) async fn when_ready(health: Health, addresses: Addresses, directory: PathBuf) {
    let begin = Instant::now();
    let mut tick = interval(Duration::from_millis(50));
    let missing = loop {
        tick.tick().await;
        let report = health.readiness();
        if report.draining {
            return;
        }
        if report.ok {
            break Vec::new();
        }
        if begin.elapsed() > PATIENCE {
            let reasons = report.checks.into_iter().filter_map(|check| check.reason);
            break reasons.collect();
        }
    };
    // A closed standard output is no reason to end: it is a service.
    let _ = print(
        &mut io::stdout().lock(),
        Paint::stdout(),
        &addresses,
        &directory,
        &missing,
    );
}

fn print(
    out: &mut impl Write,
    paint: Paint,
    addresses: &Addresses,
    directory: &Path,
    missing: &[String],
) -> io::Result<()> {
    let title = if missing.is_empty() {
        paint.paint(Style::Green, "Mailbell is ready")
    } else {
        paint.paint(Style::Yellow, "Mailbell is starting")
    };
    let version = &addresses.version;
    writeln!(
        out,
        "\n{title} (version {version}, process {})\n",
        addresses.pid
    )?;
    let nats = addresses.nats.join(", ");
    let places = [
        ("devices", addresses.push_url()),
        ("admin API", addresses.admin_url()),
        ("health, metrics", format!("http://{}", addresses.http)),
        ("NATS", nats),
        ("state", directory.display().to_string()),
    ];
    for (name, place) in places {
        writeln!(out, "  {name:<16}{place}")?;
    }
    if addresses.push_needs_name() {
        let hint = "the certificate has no name to connect to: `listen` and devices need a --url that it covers";
        writeln!(out, "  {}", paint.paint(Style::Yellow, hint))?;
    }
    for reason in missing {
        writeln!(out, "  {}", paint.paint(Style::Yellow, reason))?;
    }
    let flag = match super::state_dir::StateDir::default_path() {
        Some(usual) if usual == directory => String::new(),
        _ => format!(" --state-dir {}", directory.display()),
    };
    writeln!(
        out,
        "\nIn another terminal:\n\
         \x20 mailbell account add{flag} imaps://you@example.org@imap.example.org\n\
         \x20 mailbell listen{flag}\n\
         \x20 mailbell doctor{flag}\n\n\
         Ctrl-C stops it; nothing is lost.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_where_and_what_next() {
        let addresses = Addresses {
            pid: 1,
            version: "0.1.0".to_owned(),
            push: "127.0.0.1:7443".parse().unwrap(),
            push_tls: false,
            push_authority: None,
            admin: "127.0.0.1:7444".parse().unwrap(),
            admin_tls: false,
            admin_authority: None,
            http: "127.0.0.1:7445".parse().unwrap(),
            nats: vec!["nats://127.0.0.1:4222".to_owned()],
            own_nats: true,
            installation: "main".to_owned(),
        };
        let said = |missing: &[String]| {
            let mut out = Vec::new();
            print(
                &mut out,
                Paint::new(false),
                &addresses,
                Path::new("/tmp/x"),
                missing,
            )
            .unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = said(&[]);
        assert!(text.contains("ready") && text.contains("http://127.0.0.1:7443"));
        assert!(text.contains("mailbell listen --state-dir /tmp/x"));
        assert!(said(&["no NATS".to_owned()]).contains("starting"));
    }
}
