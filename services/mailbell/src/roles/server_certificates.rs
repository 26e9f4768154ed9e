//! The certificates of the NATS servers, which read a renewed one when they are told to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use mailbell_bus::{BusOptions, server_certificate};
use mailbell_runtime::{drain::DrainHandle, reload::Looks, tls};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use rustls::{crypto::ring, pki_types::CertificateDer};
use tokio::{sync::watch, time::Instant};

use super::{process::Process, tls::RELOAD_EVERY};
use crate::certificate::{trust, validity};

/// `nats_server_reloads_total{why,outcome}`: how often a NATS server was told to read its files: since it shows another `certificate` than the
/// one in its Secret, or since the `roots` that it is to trust have changed; `done`, or `failed`. It may be done and change nothing: a file
/// comes to each node at a time of its own.
pub const RELOADS: &str = "nats_server_reloads";

/// By then each node has what is in a Secret, after the first one has: the kubelet looks every minute, at what may be a minute old.
const BROUGHT: Duration = Duration::from_secs(300);
/// For so long what a server has shown stands for it while it is away: it may come back with that.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// A server that was told so often, and still shows another certificate, has not got it.
const IN_VAIN: u32 = 5;
/// It reads its files after so long again whatever is known: a node that was cut off may have brought the roots later still.
const ROOTS_AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Of those trusted before so many are remembered.
const MOST_BEFORE: usize = 64;

/// Why a server is told.
const CERTIFICATE: &str = "certificate";
const ROOTS: &str = "roots";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    why: &'static str,
    outcome: &'static str,
}

/// Looks at what NATS servers show, and has them show what they are to.
#[derive(Debug)]
pub struct ServerCertificates {
    file: PathBuf,
    options: BusOptions,
    /// Until when the one that ends first is good.
    until: watch::Sender<Option<i64>>,
    servers: BTreeMap<String, Server>,
    roots: Option<Roots>,
    /// Until when the authority is good that their certificate is of.
    authority: Option<i64>,
    /// What was wrong the last time with what they are to show, so that it is told once.
    problem: Option<Of>,
    reloads: Family<Labels, Counter>,
}

/// A server, by its URL.
#[derive(Debug, Default)]
struct Server {
    /// Until when the certificate is good that it showed last, and when that was.
    seen: Option<(i64, Instant)>,
    /// How often it has read its files since it showed the one in its Secret last, while it showed another one.
    told: u32,
    /// When it has read the roots last, if each node had them by then.
    read_roots: Option<Instant>,
}

/// Whom servers are to trust, and since when that is known here. Whom they do trust nobody sees.
#[derive(Debug)]
struct Roots {
    known: Vec<CertificateDer<'static>>,
    since: Instant,
    /// Whom they were to trust before, and may still be of, until all have read their files.
    before: Vec<CertificateDer<'static>>,
}

/// What is in their Secret, and is good.
struct Wanted {
    certificate: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    /// Until when the authority is good, in seconds since 1970. `None`: it is one of the system's.
    authority: Option<i64>,
}

/// Why they are not to show what is in their Secret, as a sentence.
#[derive(Debug)]
struct Problem {
    of: Of,
    why: String,
}

/// By what it is known to be the same: a sentence may have the time in it.
#[derive(Debug, PartialEq, Eq)]
enum Of {
    /// What cannot be read.
    Files(String),
    /// What is of no use.
    Certificates(Vec<CertificateDer<'static>>),
}

impl ServerCertificates {
    /// Those of the servers of `options` are to show what is in `file`, which is read again at each look, and to trust what is in the `ca` of
    /// their TLS.
    #[must_use]
    pub fn new(file: PathBuf, options: &BusOptions, process: &mut Process) -> Self {
        let reloads = Family::default();
        process.metrics.registry().register(
            RELOADS,
            "NATS servers told to read their files again",
            reloads.clone(),
        );
        Self {
            file,
            options: options.clone(),
            until: process.certificates.add_told("nats"),
            servers: BTreeMap::new(),
            roots: None,
            authority: None,
            problem: None,
            reloads,
        }
    }

    /// Until the process drains.
    pub async fn keep(mut self, mut drain: DrainHandle) {
        let mut looks = Looks::every(RELOAD_EVERY);
        while looks.next(&mut drain).await {
            tokio::select! {
                biased;
                // First: somebody waits for this handle.
                _ = drain.signaled() => return,
                () = self.look() => {}
            }
        }
    }

    async fn look(&mut self) {
        let (options, file) = (self.options.clone(), self.file.clone());
        let Ok(read) = tokio::task::spawn_blocking(move || read(&options, &file)).await else {
            // The process ends.
            return;
        };
        let wanted = self.wanted(read);
        // None is away, or has anything to read.
        let mut all_have = wanted.is_some();
        for url in self.options.urls.clone() {
            let shown = match server_certificate::shown(&url).await {
                Ok(shown) => shown,
                // Whether there are servers enough is told elsewhere.
                Err(error) => {
                    tracing::debug!(url, %error, "cannot see a NATS server's certificate");
                    all_have = false;
                    continue;
                }
            };
            let server = self.servers.entry(url.clone()).or_default();
            let end = validity(&shown.certificate).map(|(_, until)| (until, Instant::now()));
            server.seen = end;
            let why = wanted
                .as_ref()
                .and_then(|wanted| server.why(wanted, &shown.certificate));
            if let Some(why) = why {
                all_have = false;
                self.tell(&url, &shown.server_id, why).await;
            }
        }
        if let Some(roots) = self.roots.as_mut().filter(|_| all_have) {
            roots.before.clear();
        }
        self.until.send_replace(self.first_end());
    }

    /// Until when the certificate is good that ends first, of those that servers show and their authority.
    fn first_end(&self) -> Option<i64> {
        let ends = self.servers.values().filter_map(|server| server.seen);
        let ends = ends.filter(|(_, at)| at.elapsed() < REMEMBERED);
        ends.map(|(until, _)| until).chain(self.authority).min()
    }

    /// Notes what was read. Nobody is told of what is not good: one after the other all would show what none of them is trusted with, and
    /// many a thing of that sort nobody can take back who is told by them.
    fn wanted(&mut self, read: Result<Wanted, Problem>) -> Option<Wanted> {
        match read {
            Ok(wanted) => {
                self.problem = None;
                self.authority = wanted.authority;
                self.trust(&wanted.roots);
                Some(wanted)
            }
            Err(problem) => {
                if self.is_new(problem.of) {
                    let why = problem.why;
                    tracing::warn!(
                        why,
                        "no NATS server is told to show what is in their Secret"
                    );
                }
                self.count(CERTIFICATE, "failed");
                None
            }
        }
    }

    /// Whether it is another problem than the last time.
    fn is_new(&mut self, problem: Of) -> bool {
        let before = self.problem.replace(problem);
        before != self.problem
    }

    /// Notes whom servers are to trust.
    fn trust(&mut self, wanted: &[CertificateDer<'static>]) {
        let known = self.roots.as_ref().map(|roots| roots.known.as_slice());
        if known == Some(wanted) {
            return;
        }
        let mut before = Vec::new();
        for root in self.roots.take().into_iter().flat_map(Roots::all) {
            if !before.contains(&root) && before.len() < MOST_BEFORE {
                before.push(root);
            }
        }
        self.roots = Some(Roots {
            known: wanted.to_vec(),
            since: Instant::now(),
            before,
        });
        for server in self.servers.values_mut() {
            server.read_roots = None;
        }
    }

    async fn tell(&mut self, url: &str, server_id: &str, why: &'static str) {
        let before = self
            .roots
            .as_ref()
            .map_or(&[][..], |roots| roots.before.as_slice());
        let done = server_certificate::read_again(&self.options, url, server_id, before).await;
        let outcome = match done {
            Ok(()) => {
                if self.is_told(url, why) == IN_VAIN {
                    tracing::warn!(
                        url,
                        "a NATS server has read its files again and again, and shows another certificate than that in its Secret: its node has not got it"
                    );
                } else {
                    tracing::info!(url, why, "told a NATS server to read its files again");
                }
                "done"
            }
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(url, why, %error, %file, "a NATS server could not be told to read its files again");
                "failed"
            }
        };
        self.count(why, outcome);
    }

    /// Notes that it has read its files. How often it has done so for its certificate.
    fn is_told(&mut self, url: &str, why: &str) -> u32 {
        let roots = self.roots.as_ref();
        let are_brought = roots.is_some_and(|roots| roots.since.elapsed() >= BROUGHT);
        self.servers.get_mut(url).map_or(0, |server| {
            server.read_roots = are_brought.then(Instant::now);
            if why == CERTIFICATE {
                server.told = server.told.saturating_add(1);
            }
            server.told
        })
    }

    fn count(&self, why: &'static str, outcome: &'static str) {
        self.reloads.get_or_create(&Labels { why, outcome }).inc();
    }
}

impl Server {
    /// Why it has to read its files, if it has.
    fn why(&mut self, wanted: &Wanted, shown: &CertificateDer<'_>) -> Option<&'static str> {
        if wanted.certificate != *shown {
            return Some(CERTIFICATE);
        }
        self.told = 0;
        let has_roots = self
            .read_roots
            .is_some_and(|read| read.elapsed() < ROOTS_AGAIN);
        (!has_roots).then_some(ROOTS)
    }
}

impl Roots {
    /// Those trusted now first.
    fn all(self) -> impl Iterator<Item = CertificateDer<'static>> {
        self.known.into_iter().chain(self.before)
    }
}

fn read(options: &BusOptions, file: &Path) -> Result<Wanted, Problem> {
    let unread = |error: mailbell_runtime::Error| {
        let why = error.to_string();
        Problem {
            of: Of::Files(why.clone()),
            why,
        }
    };
    let chain = tls::certificates(file).map_err(unread)?;
    let ca = options.tls.as_ref().and_then(|tls| tls.ca.as_deref());
    let roots = ca.map(tls::certificates).transpose().map_err(unread)?;
    let now_s = Timestamp::now().as_second();
    let authority = roots
        .as_ref()
        .map(|roots| judge(options, &chain, roots, now_s));
    let roots = roots.unwrap_or_default();
    let authority = authority.transpose().map_err(|why| Problem {
        of: Of::Certificates([chain.as_slice(), roots.as_slice()].concat()),
        why: format!("{} {why}", file.display()),
    })?;
    let first = chain.into_iter().next();
    let none = || Problem {
        of: Of::Certificates(Vec::new()),
        why: format!("{} has no certificate", file.display()),
    };
    Ok(Wanted {
        certificate: first.ok_or_else(none)?,
        roots,
        authority,
    })
}

/// Until when its authority is good; or what is wrong, as the rest of a sentence about it.
fn judge(
    options: &BusOptions,
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now_s: i64,
) -> Result<i64, String> {
    let hosts = options.urls.iter();
    let hosts: Vec<String> = hosts
        .filter_map(|url| server_certificate::host(url))
        .collect();
    let provider = Arc::new(ring::default_provider());
    let until = trust::by_nats(chain, roots, &hosts, now_s, &provider)
        .map_err(|(said, advice)| format!("{said}: {advice}"))?;
    // Roles trust it all the same.
    if until <= now_s && hosts.len() > 1 {
        return Err(
            "is of an authority in its ca.crt that has expired: servers do not meet by it"
                .to_owned(),
        );
    }
    Ok(until)
}

#[cfg(test)]
mod tests {
    use mailbell_bus::Role;
    use mailbell_core::ids::Installation;
    use tokio::time::advance;

    use super::*;

    const URL: &str = "tls://main-nats-0:4222";

    fn der(text: &str) -> CertificateDer<'static> {
        CertificateDer::from(text.as_bytes().to_vec())
    }

    fn secret(certificate: &str, roots: &str) -> Result<Wanted, Problem> {
        Ok(Wanted {
            certificate: der(certificate),
            roots: vec![der(roots)],
            authority: Some(9),
        })
    }

    fn keeper() -> ServerCertificates {
        ServerCertificates {
            file: PathBuf::new(),
            options: BusOptions::new(Vec::new(), Installation::default(), Role::Admin),
            until: watch::channel(None).0,
            servers: BTreeMap::from([(URL.to_owned(), Server::default())]),
            roots: None,
            authority: None,
            problem: None,
            reloads: Family::default(),
        }
    }

    /// What a server that shows this is told for, and whether it has read the roots after that.
    fn look(keeper: &mut ServerCertificates, wanted: &Wanted, shown: &str) -> Option<&'static str> {
        let why = keeper
            .servers
            .get_mut(URL)
            .unwrap()
            .why(wanted, &der(shown));
        if let Some(why) = why {
            keeper.is_told(URL, why);
        }
        why
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_told_until_it_shows_its_certificate_and_has_its_roots() {
        let mut keeper = keeper();
        let wanted = keeper.wanted(secret("new", "one")).unwrap();
        assert_eq!(look(&mut keeper, &wanted, "old"), Some(CERTIFICATE));
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        // Its node may not have had them when it read them.
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        advance(BROUGHT).await;
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        assert_eq!(look(&mut keeper, &wanted, "new"), None);
        let wanted = keeper.wanted(secret("new", "two")).unwrap();
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        advance(BROUGHT).await;
        // With a certificate it reads the roots too.
        let wanted = keeper.wanted(secret("newer", "two")).unwrap();
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(CERTIFICATE));
        assert_eq!(look(&mut keeper, &wanted, "newer"), None);
        // A node that was cut off may have brought the roots since.
        advance(ROOTS_AGAIN).await;
        assert_eq!(look(&mut keeper, &wanted, "newer"), Some(ROOTS));
        assert_eq!(look(&mut keeper, &wanted, "newer"), None);
    }

    /// A certificate for the servers of these options, and its authority, which ends then.
    fn issued(options: &BusOptions, ends: i32) -> [CertificateDer<'static>; 2] {
        let hosts = options.urls.iter();
        let hosts: Vec<String> = hosts
            .map(|url| server_certificate::host(url).unwrap())
            .collect();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.not_after = rcgen::date_time_ymd(ends, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = authority.self_signed(&key).unwrap().der().clone();
        let issuer = rcgen::Issuer::new(authority, key);
        let shown = rcgen::CertificateParams::new(hosts).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let shown = shown.signed_by(&key, &issuer).unwrap();
        [shown.der().clone(), root]
    }

    #[test]
    fn servers_that_are_to_meet_need_an_authority_that_is_good() {
        let of = |servers: i32| {
            let urls = (0..servers).map(|server| format!("tls://nats-{server}:4222"));
            BusOptions::new(urls.collect(), Installation::default(), Role::Admin)
        };
        let judged = |servers, ends| {
            let options = of(servers);
            let [shown, root] = issued(&options, ends);
            judge(&options, &[shown], &[root], Timestamp::now().as_second())
        };
        assert!(judged(3, 4000).unwrap() > Timestamp::now().as_second());
        let lost = judged(3, 2020).unwrap_err();
        assert!(lost.contains("authority in its ca.crt"), "{lost}");
        assert!(judged(1, 2020).unwrap() < Timestamp::now().as_second());
        let [shown, _] = issued(&of(3), 4000);
        let [_, another] = issued(&of(3), 4000);
        let now_s = Timestamp::now().as_second();
        let lost = judge(&of(3), &[shown], &[another], now_s).unwrap_err();
        assert!(lost.contains("not trusted by its own ca.crt"), "{lost}");
    }

    #[test]
    fn what_is_not_good_is_counted_each_time_and_told_once() {
        let mut keeper = keeper();
        let unfit = |certificate: &str, why: &str| Problem {
            of: Of::Certificates(vec![der(certificate)]),
            why: why.to_owned(),
        };
        for (problem, is_new) in [
            (unfit("one", "expired 1 s ago"), true),
            (unfit("one", "expired 61 s ago"), false),
            (unfit("two", "expired 1 s ago"), true),
        ] {
            assert_eq!(keeper.is_new(problem.of), is_new);
        }
        assert!(keeper.wanted(Err(unfit("two", "expired"))).is_none());
        assert!(keeper.roots.is_none());
        let (why, outcome) = (CERTIFICATE, "failed");
        let failed = keeper.reloads.get_or_create(&Labels { why, outcome }).get();
        assert_eq!(failed, 1);
        keeper.wanted(secret("new", "one"));
        assert!(keeper.is_new(unfit("two", "expired").of));
    }

    #[tokio::test(start_paused = true)]
    async fn whom_servers_were_to_trust_before_is_remembered_and_no_more_of_them_than_so_many() {
        let mut keeper = keeper();
        let before = |keeper: &ServerCertificates| keeper.roots.as_ref().unwrap().before.clone();
        keeper.wanted(secret("new", "one"));
        assert_eq!(before(&keeper), []);
        keeper.wanted(secret("new", "two"));
        keeper.wanted(secret("new", "three"));
        assert_eq!(before(&keeper), [der("two"), der("one")]);
        // As it was.
        keeper.wanted(secret("new", "two"));
        assert_eq!(before(&keeper), [der("three"), der("two"), der("one")]);
        for number in 0..2 * MOST_BEFORE {
            keeper.wanted(secret("new", &number.to_string()));
        }
        assert_eq!(before(&keeper).len(), MOST_BEFORE);
    }

    #[test]
    fn how_often_a_server_was_told_in_vain_is_counted_by_what_it_has_done() {
        let mut keeper = keeper();
        let wanted = keeper.wanted(secret("new", "one")).unwrap();
        // It is not there to be told.
        let server = keeper.servers.get_mut(URL).unwrap();
        assert_eq!(server.why(&wanted, &der("old")), Some(CERTIFICATE));
        for _ in 1..IN_VAIN {
            look(&mut keeper, &wanted, "old");
        }
        assert_eq!(keeper.is_told(URL, CERTIFICATE), IN_VAIN);
        // For its roots it reads them in vain never.
        look(&mut keeper, &wanted, "new");
        assert_eq!(keeper.is_told(URL, ROOTS), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_spoken_for_by_what_it_showed_last_for_a_while() {
        let mut keeper = keeper();
        let server = keeper.servers.get_mut(URL).unwrap();
        server.seen = Some((7, Instant::now()));
        assert_eq!(keeper.first_end(), Some(7));
        advance(REMEMBERED).await;
        assert_eq!(keeper.first_end(), None);
        keeper.wanted(secret("new", "one"));
        assert_eq!(keeper.first_end(), Some(9));
    }
}
