//! What is wrong with NATS servers, by what they say.

use std::collections::{BTreeMap, BTreeSet};

use mailbell_operator::desired::MONITOR_PORT;

use super::{Answers, Seen, Stream, Told};
use crate::doctor::{Report, Verdict, kube::pods::Trouble};

/// So much of the disk that is set aside, in percent, leaves time to do something.
const FILLING: u64 = 80;
/// So much does not.
const FULL: u64 = 95;
/// What is told of a sentence.
const MAX_SENTENCE: usize = 300;

/// One thing, in the order in which they are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    /// This server does not answer where others do.
    Silent(String),
    /// This one has JetStream off.
    Off(String),
    /// This one knows no leader.
    Alone(String),
    /// They follow several leaders.
    Split,
    /// So many servers are counted, which is more than there should be.
    Counted(usize),
    /// The first runs, and the second, which leads, does not hear it.
    Unheard(String, String),
    /// This server has no current copy of that stream, as the stream's leader says.
    Behind(String, String),
    /// This stream has no leader.
    Leaderless(String),
    /// This stream has too few copies.
    Few(String),
    /// The disk of this server is filling.
    Filling(String),
}

pub(super) fn told(answers: &Answers) -> impl Iterator<Item = (&str, &Told)> {
    answers.iter().filter_map(|(server, answer)| match answer {
        Seen::There(told) => Some((server.as_str(), told)),
        _ => None,
    })
}

fn streams(told: &Told) -> impl Iterator<Item = &Stream> {
    told.account_details.iter().flat_map(|it| &it.stream_detail)
}

/// `looks`: the last one is told, as far as the one before has it too. `by_hand`: a server that can be asked otherwise.
pub(super) fn judge(
    report: &mut Report,
    finding: &str,
    namespace: &str,
    looks: &[Answers],
    by_hand: Option<&str>,
) {
    let Some(answers) = looks.last() else {
        return;
    };
    if told(answers).next().is_none() {
        return not_asked(report, finding, namespace, answers, by_hand);
    }
    let all = looks.iter().map(wrongs);
    let lasting = all.reduce(|first, second| &first & &second);
    let lasting = lasting.unwrap_or_default();
    if lasting.is_empty() {
        let names: BTreeSet<&str> = told(answers)
            .flat_map(|(_, told)| streams(told).map(|stream| stream.name.as_str()))
            .collect();
        let fullest = told(answers).filter_map(|(_, told)| used(told)).max();
        report.ok(
            finding,
            format!(
                "its servers agree, all copies of {} streams are current, and {}% of what is set aside on disk is used at most",
                names.len(),
                fullest.unwrap_or_default()
            ),
        );
    }
    for it in troubles(&lasting, answers, namespace) {
        report.add(finding, it.verdict, it.said, it.advice);
    }
}

fn why(answer: &Seen<Told>) -> Option<String> {
    let why = match answer {
        Seen::There(_) => return None,
        Seen::Missing => "there is no such pod",
        Seen::Denied(why) | Seen::Failed(why) => why,
    };
    Some(why.chars().take(MAX_SENTENCE).collect())
}

/// None of them. That is no fault of theirs: most networks that enforce policies let only kubelets ask.
fn not_asked(
    report: &mut Report,
    finding: &str,
    namespace: &str,
    answers: &Answers,
    by_hand: Option<&str>,
) {
    let Some((_, answer)) = answers.first() else {
        return;
    };
    let said = match answer {
        Seen::Denied(_) => "you may not ask the servers by the API server (get pods/proxy)",
        _ => "no server was reached by the API server",
    };
    let by_hand = by_hand.map(|server| {
        format!(
            ". By hand: kubectl --namespace {namespace} port-forward {server} {MONITOR_PORT}, then http://localhost:{MONITOR_PORT}/healthz and /jsz"
        )
    });
    report.skipped(
        finding,
        format!(
            "copies, disks and the certificates that they show were not looked at, {said}: {}{}",
            why(answer).unwrap_or_default(),
            by_hand.unwrap_or_default()
        ),
    );
}

/// All that one look has.
pub(super) fn wrongs(answers: &Answers) -> BTreeSet<Wrong> {
    let silent = answers.iter().filter(|(_, answer)| why(answer).is_some());
    let mut found: BTreeSet<Wrong> = silent
        .map(|(server, _)| Wrong::Silent(server.clone()))
        .collect();
    for (server, told) in told(answers) {
        if told.disabled {
            found.insert(Wrong::Off(server.to_owned()));
        }
        if used(told).is_some_and(|used| used >= FILLING) {
            found.insert(Wrong::Filling(server.to_owned()));
        }
    }
    if answers.len() > 1 {
        cluster(answers, &mut found);
    }
    copies(answers, &mut found);
    found
}

/// Those that store something.
fn on(answers: &Answers) -> impl Iterator<Item = (&str, &Told)> {
    told(answers).filter(|(_, told)| !told.disabled)
}

fn leaders(answers: &Answers) -> BTreeSet<&str> {
    let leaders = on(answers).map(|(_, told)| told.meta_cluster.leader.as_str());
    leaders.filter(|leader| !leader.is_empty()).collect()
}

/// Whether they are one.
fn cluster(answers: &Answers, found: &mut BTreeSet<Wrong>) {
    if leaders(answers).len() > 1 {
        found.insert(Wrong::Split);
    }
    for (server, told) in on(answers) {
        let meta = &told.meta_cluster;
        if meta.leader.is_empty() {
            found.insert(Wrong::Alone(server.to_owned()));
        }
        if meta.leader != server {
            continue;
        }
        if meta.cluster_size > answers.len() {
            found.insert(Wrong::Counted(meta.cluster_size));
        }
        let offline = meta.replicas.iter().filter(|replica| replica.offline);
        let lost = offline.filter(|replica| on(answers).any(|(it, _)| it == replica.name));
        found.extend(lost.map(|it| Wrong::Unheard(it.name.clone(), server.to_owned())));
    }
}

/// Whether each stream is kept as often as it should be.
fn copies(answers: &Answers, found: &mut BTreeSet<Wrong>) {
    let mut led = BTreeMap::new();
    for (server, told) in told(answers) {
        for stream in streams(told) {
            let it: &mut Option<usize> = led.entry(stream.name.as_str()).or_default();
            if stream.cluster.leader == server {
                *it = Some(stream.cluster.replicas.len() + 1);
                let replicas = stream.cluster.replicas.iter();
                let behind = replicas.filter(|replica| replica.offline || !replica.current);
                found.extend(behind.map(|it| Wrong::Behind(it.name.clone(), stream.name.clone())));
            } else if !stream.cluster.leader.is_empty() {
                // By one that does not answer, or has just got it.
                it.get_or_insert(usize::MAX);
            }
        }
    }
    for (stream, copies) in led {
        match copies {
            None => found.insert(Wrong::Leaderless(stream.to_owned())),
            Some(copies) if copies < answers.len() => found.insert(Wrong::Few(stream.to_owned())),
            Some(_) => false,
        };
    }
}

/// In percent of what is set aside; `None`: that is not bounded.
fn used(told: &Told) -> Option<u64> {
    told.storage
        .saturating_mul(100)
        .checked_div(told.config.max_storage)
}

fn trouble(verdict: Verdict, said: String, advice: &str) -> Trouble {
    Trouble {
        verdict,
        said,
        advice: advice.to_owned(),
    }
}

/// In words. Of what may be wrong with many the first is named.
fn troubles(wrongs: &BTreeSet<Wrong>, answers: &Answers, namespace: &str) -> Vec<Trouble> {
    let mut found = Vec::new();
    let (mut alone, mut behind) = (Vec::new(), BTreeMap::new());
    let (mut leaderless, mut few) = (Vec::new(), Vec::new());
    for wrong in wrongs {
        match wrong {
            Wrong::Alone(server) => alone.push(server.as_str()),
            Wrong::Behind(server, _) => *behind.entry(server).or_insert(0) += 1,
            Wrong::Leaderless(stream) => leaderless.push(stream),
            Wrong::Few(stream) => few.push(stream),
            one => found.extend(of_one(one, answers)),
        }
    }
    if !alone.is_empty() {
        let said = format!(
            "no leader is known to {}: nothing is stored there",
            alone.join(", ")
        );
        // The others go on, and it may have just started.
        found.push(if agree(answers) {
            trouble(
                Verdict::Warn,
                said,
                "the others follow one: if it has not just started, see the network between its node and theirs, before another one goes",
            )
        } else {
            trouble(
                Verdict::Fail,
                said,
                "a majority of the servers has to meet: see their pods, and the network between their nodes",
            )
        });
    }
    for (server, count) in behind {
        found.push(trouble(
            Verdict::Warn,
            format!("{server} has no current copy of {count} streams"),
            "it catches up by itself while it runs: stop no other server, and drain no other node, before",
        ));
    }
    if let Some(first) = leaderless.first() {
        found.push(trouble(
            Verdict::Fail,
            format!(
                "{} streams, {first} among them, have no leader: they take and tell nothing",
                leaderless.len()
            ),
            "a majority of the servers that have it has to run: see to those that do not",
        ));
    }
    if let Some(first) = few.first() {
        found.push(trouble(
            Verdict::Warn,
            format!("{} streams, {first} among them, have fewer copies than {}", few.len(), answers.len()),
            &format!(
                "the setup job puts that right: see what is told of it; or kubectl --namespace {namespace} delete job {}, and the operator makes it again (kubectl --namespace {namespace} get jobs has its whole name)",
                setup(answers)
            ),
        ));
    }
    found
}

/// Whether a majority follows one leader.
fn agree(answers: &Answers) -> bool {
    let mut followers = BTreeMap::new();
    for (_, told) in on(answers) {
        let leader = told.meta_cluster.leader.as_str();
        *followers.entry(leader).or_insert(0) += 1;
    }
    followers.remove("");
    followers.values().any(|count| *count > answers.len() / 2)
}

/// How the name of the job begins that makes their streams.
fn setup(answers: &Answers) -> String {
    let server = answers.first().map_or("", |(server, _)| server);
    let installation = server
        .rsplit_once("-nats-")
        .map_or(server, |(name, _)| name);
    format!("{installation}-setup-…")
}

fn of_one(wrong: &Wrong, answers: &Answers) -> Option<Trouble> {
    let answer = |wanted: &str| answers.iter().find(|(server, _)| server == wanted);
    Some(match wrong {
        Wrong::Silent(server) => trouble(
            Verdict::Warn,
            format!("{server} does not answer: {}", why(&answer(server)?.1)?),
            "see what is told of its pod; what the others say of it follows",
        ),
        Wrong::Off(server) => trouble(
            Verdict::Fail,
            format!("{server} has JetStream off: it stores nothing"),
            "its log says why; most often its disk is missing or full",
        ),
        Wrong::Split => {
            let leaders: Vec<&str> = leaders(answers).into_iter().collect();
            trouble(
                Verdict::Fail,
                format!("they do not agree who leads: {}", leaders.join(", ")),
                "look again; if it stays so, see to the network between their nodes",
            )
        }
        Wrong::Counted(count) => trouble(
            Verdict::Warn,
            format!(
                "{count} servers are counted where {} are wanted{}: a majority is more than it need be",
                answers.len(),
                strangers(answers)
            ),
            "see whose server came to them, and start it again if it is gone: no user of theirs may have it forgotten. If it never comes back only another installation is without it",
        ),
        Wrong::Unheard(server, leader) => trouble(
            Verdict::Fail,
            format!("{server} runs, and {leader}, which leads, does not hear it"),
            "see to the network between their nodes, and whether their certificate is good for both",
        ),
        Wrong::Filling(server) => {
            let (_, told) = told(answers).find(|(it, _)| it == server)?;
            let used = used(told)?;
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            trouble(
                if used < FULL {
                    Verdict::Warn
                } else {
                    Verdict::Fail
                },
                format!(
                    "{server} has used {used}% of what is set aside on its disk, {:.1} of {:.1} GiB; at all of it new mail is not told",
                    gib(told.storage),
                    gib(told.config.max_storage)
                ),
                "see which streams are large (/jsz?streams=true); the size is set once: a larger disk is another installation",
            )
        }
        // Told together with others.
        Wrong::Alone(_) | Wrong::Behind(..) | Wrong::Leaderless(_) | Wrong::Few(_) => return None,
    })
}

/// Servers that nobody has wanted, by what the one says that leads.
fn strangers(answers: &Answers) -> String {
    let leads = told(answers).find(|(server, told)| told.meta_cluster.leader == *server);
    let others = leads
        .iter()
        .flat_map(|(_, told)| &told.meta_cluster.replicas);
    let is_wanted = |name: &str| answers.iter().any(|(server, _)| server == name);
    let strange = others.map(|it| it.name.as_str());
    let strange: Vec<&str> = strange.filter(|name| !is_wanted(name)).collect();
    match strange.is_empty() {
        true => String::new(),
        false => format!(", {} among them", strange.join(", ")),
    }
}
