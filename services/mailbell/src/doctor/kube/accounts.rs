//! MailAccounts: how many there are, and what to do for those that are not as they should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::ListParams,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use mailbell_operator::{api::MailAccount, controller::goes_on_by_itself};

use super::{
    Unread,
    access::{Seen, seen},
    clip,
};
use crate::doctor::{Report, Verdict};

/// MailAccounts of a page. Together they are about 2 MiB.
const PAGE: u32 = 500;
/// Pages that are read: 20,000 MailAccounts.
const MOST_PAGES: usize = 40;
/// So many of an installation are named; of the others is said how many they are.
const NAMED: usize = 5;
/// An operator that can reach the admin API needs seconds, and gives up after ten minutes.
const LONG_S: i64 = 15 * 60;

/// Those of the namespace, by the installation that they name. `all`: of `mailbells` none is missing. Returns the Secrets that have their
/// passwords, if they can be seen.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    unread: &Unread<'_>,
    mailbells: &[String],
    all: bool,
) -> Option<BTreeSet<String>> {
    let mut counted = Counted::of(mailbells, all);
    let api: Api<DeserializeGuard<MailAccount>> = Api::namespaced(client.clone(), unread.namespace);
    let mut params = ListParams::default().limit(PAGE);
    let mut is_whole = false;
    for _ in 0..MOST_PAGES {
        let page = match seen(api.list(&params).await) {
            Seen::There(page) => page,
            // Of a release before.
            Seen::Missing => return Some(BTreeSet::new()),
            Seen::Denied(why) => {
                report.skipped("accounts", format!("you may not see them: {why}"));
                return None;
            }
            Seen::Failed(why) => {
                report.fail("accounts", why, "look again");
                return None;
            }
        };
        for DeserializeGuard(object) in &page.items {
            match object {
                Ok(account) => counted.add(account, Timestamp::now()),
                Err(bad) => counted.add_unreadable(bad, unread),
            }
        }
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            is_whole = true;
            break;
        }
    }
    let passwords = mem::take(&mut counted.passwords);
    counted.tell(report, unread);
    if !is_whole {
        let looked = usize::try_from(PAGE).map_or(0, |page| page.saturating_mul(MOST_PAGES));
        report.skipped(
            "accounts",
            format!("only the first {looked} were looked at"),
        );
    }
    Some(passwords)
}

/// Those of one installation.
#[derive(Debug, Default)]
struct Tally {
    declared: usize,
    watched: usize,
    wrong: usize,
    /// The first of those that are wrong: name, what is wrong, and what to do.
    named: Vec<(String, String, String)>,
}

#[derive(Debug)]
struct Counted {
    of: BTreeMap<String, Tally>,
    /// Of installations that are not there; `None`: whether they are is not known.
    nowhere: Option<Tally>,
    /// Those that cannot be read are the wrong ones of all that are declared: of which installation they are is not known.
    unreadable: Tally,
    /// The Secrets of installations that are there.
    passwords: BTreeSet<String>,
}

impl Counted {
    fn of(mailbells: &[String], all: bool) -> Self {
        let empty = mailbells
            .iter()
            .map(|name| (name.clone(), Tally::default()));
        Self {
            of: empty.collect(),
            nowhere: all.then(Tally::default),
            unreadable: Tally::default(),
            passwords: BTreeSet::new(),
        }
    }

    fn add_unreadable(&mut self, bad: &InvalidObject, unread: &Unread<'_>) {
        let (name, said, advice) = unread.told(bad, "mailaccount");
        self.unreadable.declared += 1;
        self.unreadable.add(name, (said, advice));
    }

    fn add(&mut self, account: &MailAccount, now: Timestamp) {
        self.unreadable.declared += 1;
        let (found, is_there) = match self.of.get_mut(&account.spec.mailbell) {
            Some(tally) => (Some(tally), true),
            None => (self.nowhere.as_mut(), false),
        };
        let Some(tally) = found else { return };
        if is_there {
            let secret = &account.spec.password.secret_name;
            self.passwords.insert(secret.clone());
        }
        tally.declared += 1;
        let trouble = match judge(account, now) {
            _ if !is_there => nowhere(account),
            Judged::Watched => {
                tally.watched += 1;
                return;
            }
            Judged::Waits => return,
            Judged::Wrong(trouble) => trouble,
        };
        tally.add(account.name_any(), trouble);
    }

    fn tell(self, report: &mut Report, unread: &Unread<'_>) {
        let namespace = unread.namespace;
        let all = format!("kubectl --namespace {namespace} get mailaccounts has all of them");
        let (known, worst) = match self.unreadable.wrong {
            0 => ("", Verdict::Fail),
            // Those that cannot be may be watched.
            _ => (", of those that can be read", Verdict::Warn),
        };
        for (name, tally) in self.of {
            let waits = tally.declared - tally.watched - tally.wrong;
            let said = match tally.declared {
                0 => format!("none is declared{known}"),
                declared => format!(
                    "{declared} declared{known}: {} watched, {waits} paused or on their way, {} with something wrong",
                    tally.watched, tally.wrong
                ),
            };
            tally.tell(report, &format!("accounts {name}"), said, worst, &all);
        }
        if let Some(tally) = self.nowhere.filter(|tally| tally.wrong > 0) {
            let said = format!("{} name a Mailbell that is not there", tally.wrong);
            tally.tell(report, "accounts", said, Verdict::Fail, &all);
        }
        let tally = self.unreadable;
        if tally.wrong > 0 {
            let said = format!("{} of {} cannot be read", tally.wrong, tally.declared);
            let all = "the operator's log names all of them";
            tally.tell(report, "accounts", said, unread.worst(), all);
        }
    }
}

impl Tally {
    fn add(&mut self, name: String, (said, advice): (String, String)) {
        self.wrong += 1;
        if self.named.len() < NAMED {
            self.named.push((name, said, advice));
        }
    }

    /// A mailbox with something wrong is no fault of the installation; if all of them are, something is.
    /// `worst`: if all are wrong. `all`: where the others are, of more than are named.
    fn tell(self, report: &mut Report, finding: &str, said: String, worst: Verdict, all: &str) {
        let verdict = match self.wrong {
            0 => return report.ok(finding, said),
            wrong if wrong == self.declared => worst,
            _ => Verdict::Warn,
        };
        let advice = match self.wrong > self.named.len() {
            true => format!("the first {NAMED} follow; {all}"),
            false => "see what is said of each".to_owned(),
        };
        report.add(finding, verdict, said, advice);
        for (name, said, advice) in self.named {
            report.warn(&format!("account {name}"), said, advice);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Watched,
    /// Nobody has to do anything.
    Waits,
    /// What is wrong, and what to do.
    Wrong((String, String)),
}

fn judge(account: &MailAccount, now: Timestamp) -> Judged {
    let ready = ready(account);
    if let Some(begun) = &account.metadata.deletion_timestamp {
        let age = now.as_second().saturating_sub(begun.0.as_second());
        if age < LONG_S {
            return Judged::Waits;
        }
        let why = ready.filter(|ready| ready.reason == "Removing");
        let why = why.map_or_else(
            || "no operator has said why".to_owned(),
            |ready| clip(&ready.message),
        );
        return Judged::Wrong((
            format!(
                "has been going for {} minutes, and is still there: {why}",
                age / 60
            ),
            "see whether the operator works: it takes the finalizer off. docs/operating.md, What to do when, says how to do without"
                .to_owned(),
        ));
    }
    let Some(ready) = ready else {
        let created = account.metadata.creation_timestamp.as_ref();
        let age = created.map_or(0, |created| {
            now.as_second().saturating_sub(created.0.as_second())
        });
        return match age < LONG_S {
            true => Judged::Waits,
            false => Judged::Wrong((
                "no operator has looked at it".to_owned(),
                "see whether an operator looks after this namespace".to_owned(),
            )),
        };
    };
    match ready.status.as_str() {
        "True" => Judged::Watched,
        _ if goes_on_by_itself(&ready.reason) => Judged::Waits,
        _ => Judged::Wrong((
            format!("{}: {}", ready.reason, clip(&ready.message)),
            advice(account, &ready.reason),
        )),
    }
}

fn ready(account: &MailAccount) -> Option<&Condition> {
    let mut conditions = account.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|it| it.type_ == "Ready")
}

fn nowhere(account: &MailAccount) -> (String, String) {
    let said = format!("there is no Mailbell {}", account.spec.mailbell);
    let advice = "make that Mailbell; or delete this object, and declare it for one that is there";
    (said, advice.to_owned())
}

fn advice(account: &MailAccount, reason: &str) -> String {
    let namespace = account.namespace().unwrap_or_default();
    let name = account.name_any();
    match reason {
        "BadCredentials" => {
            let key = account.spec.password.key.as_ref().unwrap_or(&name);
            format!(
                "put the right password into the Secret {}, key {key}; it is noticed within some minutes",
                account.spec.password.secret_name
            )
        }
        "AdminAway" => {
            "see what is told of the installation and its pods; the operator's log says more"
                .to_owned()
        }
        _ => format!("kubectl --namespace {namespace} describe mailaccount {name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::doctor::kube::MAX_SENTENCE;

    const UNREAD: Unread<'_> = Unread {
        namespace: "mail",
        release: None,
    };
    const NOW: &str = "2026-01-01T01:00:00Z";

    fn account(
        name: &str,
        mailbell: &str,
        metadata: Value,
        ready: Option<[&str; 3]>,
    ) -> MailAccount {
        let mut object = json!({
            "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailAccount",
            "metadata": { "name": name, "namespace": "mail" },
            "spec": { "mailbell": mailbell, "server": { "host": "imap.example.org", "user": "x" } },
        });
        let more = metadata.as_object().unwrap().clone();
        object["metadata"].as_object_mut().unwrap().extend(more);
        if let Some([status, reason, message]) = ready {
            object["status"] = json!({ "conditions": [{ "type": "Ready", "status": status, "reason": reason,
                "message": message, "lastTransitionTime": NOW }] });
        }
        serde_json::from_value(object).unwrap()
    }

    /// One that waits may be well in a moment.
    #[test]
    fn a_failure_is_only_where_all_of_them_have_something_wrong() {
        let ready = |reason| Some(["False", reason, "It says why."]);
        let wrong = account("bob", "main", json!({}), ready("BadCredentials"));
        let waits = account("eve", "main", json!({}), ready("Paused"));
        for (all, verdict) in [
            (vec![&wrong], Verdict::Fail),
            (vec![&wrong, &waits], Verdict::Warn),
        ] {
            let mut counted = Counted::of(&["main".to_owned()], true);
            for account in all {
                counted.add(account, NOW.parse().unwrap());
            }
            let mut report = Report::default();
            counted.tell(&mut report, &UNREAD);
            assert_eq!(report.findings[0].verdict, verdict);
        }
    }

    fn judged(metadata: Value, ready: Option<[&str; 3]>) -> Judged {
        judge(
            &account("bob", "main", metadata, ready),
            NOW.parse().unwrap(),
        )
    }

    fn wrong(metadata: Value, ready: Option<[&str; 3]>) -> (String, String) {
        match judged(metadata, ready) {
            Judged::Wrong(both) => both,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_needs_somebody_is_told_from_what_goes_on_by_itself() {
        let watched = Some(["True", "Watching", "It is watched."]);
        assert_eq!(judged(json!({}), watched), Judged::Watched);
        for reason in [
            "Starting",
            "Paused",
            "TenantPaused",
            "ProviderPaused",
            "InstallationPaused",
            "Trying",
        ] {
            let ready = Some(["False", reason, "so"]);
            assert_eq!(judged(json!({}), ready), Judged::Waits, "{reason}");
        }
        let (said, advice) = wrong(
            json!({}),
            Some(["False", "BadCredentials", "It is refused."]),
        );
        assert_eq!(said, "BadCredentials: It is refused.");
        assert!(
            advice.contains("the Secret mail-passwords, key bob"),
            "{advice}"
        );
        let (_, advice) = wrong(json!({}), Some(["False", "NoSecret", "so"]));
        assert_eq!(advice, "kubectl --namespace mail describe mailaccount bob");
        let long = "x".repeat(5000);
        let (said, _) = wrong(json!({}), Some(["Unknown", "AdminAway", &long]));
        assert_eq!(said.len(), "AdminAway: ".len() + MAX_SENTENCE);
    }

    #[test]
    fn who_is_new_or_only_just_going_is_waited_for() {
        let minutes = |minutes: i64| {
            let now: Timestamp = NOW.parse().unwrap();
            Timestamp::from_second(now.as_second() - 60 * minutes)
                .unwrap()
                .to_string()
        };
        let made = |ago| json!({ "creationTimestamp": minutes(ago) });
        assert_eq!(judged(made(14), None), Judged::Waits);
        assert!(wrong(made(15), None).0.contains("no operator has looked"));
        let going = |ago| json!({ "deletionTimestamp": minutes(ago) });
        let ready = Some(["False", "Removing", "it could not be deleted yet"]);
        assert_eq!(judged(going(14), ready), Judged::Waits);
        let (said, advice) = wrong(going(20), ready);
        assert!(
            said.contains("for 20 minutes") && said.contains("not be deleted yet"),
            "{said}"
        );
        assert!(advice.contains("takes the finalizer off"), "{advice}");
        let said = wrong(going(20), Some(["True", "Watching", "well"])).0;
        assert!(said.contains("no operator has said why"), "{said}");
    }

    fn told(mut counted: Counted, accounts: impl IntoIterator<Item = MailAccount>) -> Vec<String> {
        let now = NOW.parse().unwrap();
        for account in accounts {
            counted.add(&account, now);
        }
        let mut report = Report::default();
        counted.tell(&mut report, &UNREAD);
        let findings = report.findings.into_iter();
        findings
            .map(|it| format!("{:?} {}: {}", it.verdict, it.name, it.said))
            .collect()
    }

    #[test]
    fn thousands_are_counted_and_the_first_are_named() {
        let mailbells = ["main".to_owned(), "other".to_owned()];
        let bad = |n: usize, of: &str| {
            let ready = Some(["False", "NoSecret", "so"]);
            account(&format!("bad-{n}"), of, json!({}), ready)
        };
        let good = account("good", "main", json!({}), Some(["True", "Watching", "so"]));
        let many = (0..2000).map(|n| bad(n, "main")).chain([good]);
        let said = told(Counted::of(&mailbells, true), many);
        assert_eq!(
            said[0],
            "Warn accounts main: 2001 declared: 1 watched, 0 paused or on their way, 2000 with something wrong"
        );
        assert_eq!(said[1], "Warn account bad-0: NoSecret: so");
        assert_eq!(said[1 + NAMED], "Ok accounts other: none is declared");
        assert_eq!(said.len(), NAMED + 2);
        // None at all is watched.
        let said = told(Counted::of(&mailbells, true), [bad(1, "other")]);
        assert!(
            said[1].starts_with("Fail accounts other: 1 declared"),
            "{said:?}"
        );
    }

    #[test]
    fn an_installation_is_missed_only_if_all_are_known() {
        let lost = || account("lost", "gone", json!({}), None);
        let said = told(Counted::of(&[], true), [lost()]);
        assert_eq!(
            said,
            [
                "Fail accounts: 1 name a Mailbell that is not there",
                "Warn account lost: there is no Mailbell gone"
            ]
        );
        assert!(told(Counted::of(&[], false), [lost()]).is_empty());
    }

    #[test]
    fn an_operator_has_to_read_the_passwords_of_installations_that_are_there() {
        let mut counted = Counted::of(&["main".to_owned()], true);
        for mailbell in ["main", "main", "gone"] {
            let mut account = account("x", mailbell, json!({}), None);
            account.spec.password.secret_name = format!("of-{mailbell}");
            counted.add(&account, NOW.parse().unwrap());
        }
        assert_eq!(counted.passwords, BTreeSet::from(["of-main".to_owned()]));
    }
}
