use std::fs;

use mailbell_test_servers::Certificate;
use tempfile::TempDir;

use super::*;

fn tls() -> TlsSettings {
    let authority = Certificate::localhost().authority_pem;
    TlsSettings::only([authority.as_bytes()]).unwrap()
}

/// A file with this text, in a directory of its own.
fn written(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.json");
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn one(rest: &str) -> String {
    format!(r#"{{"providers": [{{"name": "a", "hosts": ["*.a.test"]{rest}}}]}}"#)
}

/// The account of a tenant.
fn of(tenant: &str) -> AccountId {
    format!("{tenant}.01ARZ3NDEKTSV4RRFFQ69G5FAV")
        .parse()
        .unwrap()
}

fn refused(text: &str) -> String {
    let (_dir, path) = written(text);
    PolicyFile::load(path, tls()).unwrap_err().to_string()
}

#[test]
fn a_file_that_makes_no_sense_is_refused_and_says_where() {
    for (text, part) in [
        ("", "policy.json: EOF while parsing"),
        ("{\"providers\":\n[{}]}", "missing field `name` at line 2"),
        (&one(r#", "rest": 1"#), "unknown field `rest`"),
        (
            &one(r#", "quirks": {"idleMinutes": 30}"#),
            "quirks.idleMinutes: 30 is not between 1 and 29",
        ),
        (
            &one(r#", "ca": "none""#),
            "provider \"a\": no usable certificate",
        ),
        (&one(r#", "caFile": "none.pem""#), "none.pem"),
        (r#"{"pausedTenants": ["A"]}"#, "\"A\" is no tenant"),
    ] {
        let error = refused(text);
        assert!(error.contains(part), "{error}");
    }
    // What it quotes of the file is bounded.
    assert!(refused(&format!("{{\"{}\": 1}}", "x".repeat(100_000))).len() < 1000);
    let large = " ".repeat(1024 * 1024 + 1);
    assert!(refused(&large).contains("larger than 1048576 bytes"));
}

#[test]
fn a_change_counts_and_one_that_makes_no_sense_changes_nothing() {
    let (dir, path) = written(&one(r#", "paused": true"#));
    let file = PolicyFile::load(&path, tls()).unwrap();
    let mut current = file.current();
    let paused = |current: &mut watch::Receiver<Arc<Policy>>| {
        let policy = current.borrow_and_update();
        policy
            .providers
            .find("IMAP.a.test")
            .map(|provider| provider.paused)
    };
    assert_eq!(paused(&mut current), Some(true));
    assert!(!file.reload().unwrap(), "nothing is new");
    fs::write(&path, "{").unwrap();
    for _ in 0..2 {
        assert!(file.reload().is_err(), "told for as long as it is so");
    }
    assert!(!current.has_changed().unwrap());
    assert_eq!(paused(&mut current), Some(true));
    // Back to what it was is nothing new.
    fs::write(&path, one(r#", "paused": true"#)).unwrap();
    assert!(!file.reload().unwrap());
    let roots = Certificate::localhost().authority_pem;
    fs::write(dir.path().join("roots.pem"), &roots).unwrap();
    fs::write(&path, one(r#", "caFile": "roots.pem""#)).unwrap();
    assert!(file.reload().unwrap());
    assert!(current.has_changed().unwrap());
    assert_eq!(paused(&mut current), Some(false));
    assert!(
        current
            .borrow()
            .providers
            .find("x.a.test")
            .unwrap()
            .tls
            .is_some()
    );
    // A file that it names counts as much as the file itself.
    fs::write(dir.path().join("roots.pem"), format!("\n{roots}")).unwrap();
    assert!(file.reload().unwrap());
    fs::remove_file(dir.path().join("roots.pem")).unwrap();
    assert!(file.reload().is_err());
    assert!(
        current
            .borrow()
            .providers
            .find("x.a.test")
            .unwrap()
            .tls
            .is_some()
    );
}

#[test]
fn a_tenant_that_is_paused_is_named_before_a_provider_that_is() {
    let (_dir, path) = written(
        r#"{"pausedTenants": ["acme"], "providers": [{"name": "a", "hosts": ["*.a.test"], "paused": true}]}"#,
    );
    let file = PolicyFile::load(&path, tls()).unwrap();
    let policy = file.current();
    let pause = |tenant, host| policy.borrow().of(&of(tenant), host).pause();
    assert_eq!(pause("acme", "x.a.test"), Some(Pause::Tenant));
    assert_eq!(pause("acme", "x.b.test"), Some(Pause::Tenant));
    assert_eq!(pause("other", "x.a.test"), Some(Pause::Provider));
    assert_eq!(pause("other", "x.b.test"), None);
    let nothing = |tenant, host| policy.borrow().of(&of(tenant), host).is_nothing();
    assert!(nothing("other", "x.b.test") && !nothing("acme", "x.b.test"));
}

#[test]
fn quirks_bound_periods_and_never_hasten_a_poll() {
    let limits = Limits::default();
    let with = |quirks| {
        let provider = Provider {
            quirks,
            ..Provider::default()
        };
        provider.session_limits(limits)
    };
    assert_eq!(with(Quirks::default()), limits);
    let slow = with(Quirks {
        idle_minutes: Some(9),
        poll_seconds: Some(600),
        ..Quirks::default()
    });
    assert_eq!(slow.idle, Duration::from_secs(9 * 60));
    let ten = Duration::from_secs(600);
    assert_eq!([slow.poll_least, slow.poll_most, slow.sweep], [ten; 3]);
    let least = with(Quirks {
        poll_seconds: Some(10),
        ..Quirks::default()
    });
    assert_eq!(least, limits, "as it is anyhow");
}

#[test]
fn what_is_given_away_goes_by_the_logins_that_a_provider_takes() {
    let rates = Rates {
        connects: 1000,
        host_connects: 100,
        host_logins: 50,
        handshakes: 256,
    };
    let mut provider = Provider::default();
    assert_eq!(provider.logins(&rates), Some(50));
    provider.limits.connects_per_second = Some(5);
    assert_eq!(provider.logins(&rates), Some(5));
    provider.limits.logins_per_second = Some(2);
    assert_eq!(provider.logins(&rates), Some(2));
    provider.paused = true;
    assert_eq!(provider.logins(&rates), None);
}
