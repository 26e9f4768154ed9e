//! Whether an operator may what it has to: what a release needs may be more than what the chart of the one before has given.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        authorization::v1::{
            LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReviewSpec,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use mailbell_operator::rights::{LEASE, RIGHTS, Right, SECRETS};

use super::{
    access::{Seen, seen},
    operator::other_release,
};
use crate::doctor::Report;

/// So many questions are on their way at a time, of about eighty.
const AT_ONCE: usize = 8;
/// So many rights that are missing are named.
const NAMED: usize = 5;
/// Of so many Secrets with passwords is asked.
const MOST_SECRETS: usize = 100;

/// What there is for an operator to look after.
pub(super) struct Needs<'a> {
    pub(super) namespace: &'a str,
    /// Installations.
    pub(super) mailbells: &'a [String],
    /// Secrets that MailAccounts name; `None`: they cannot be seen.
    pub(super) passwords: Option<&'a BTreeSet<String>>,
}

/// Of each operator that looks after this namespace.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    operators: &[Deployment],
    needs: &Needs<'_>,
) {
    for operator in operators {
        let finding = format!("rights of {}", operator.name_any());
        let own = operator.namespace().unwrap_or_default();
        let user = user(operator, &own);
        let asked = all(&own, needs);
        let answers = stream::iter(asked)
            .map(|asked| ask(client, &user, asked))
            .buffered(AT_ONCE);
        let answers = answers.collect::<Vec<_>>().await;
        let release = other_release(operator);
        tell(report, &finding, release.as_deref(), answers);
        let passwords = needs.passwords.map_or(0, BTreeSet::len);
        if passwords > MOST_SECRETS {
            let said = format!(
                "only of the first {MOST_SECRETS} of {passwords} Secrets with passwords was asked"
            );
            report.skipped(&finding, said);
        }
    }
}

/// One thing that has to be allowed.
#[derive(Debug, Clone)]
struct Asked {
    namespace: String,
    attributes: ResourceAttributes,
    /// For some mailboxes only.
    is_password: bool,
}

impl Asked {
    fn of(namespace: &str, right: &Right, verb: &str) -> Self {
        let (resource, subresource) = match right.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (right.resource, None),
        };
        Self {
            namespace: namespace.to_owned(),
            attributes: ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                name: right.name.map(str::to_owned),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            },
            is_password: false,
        }
    }

    /// As `kubectl auth can-i` takes it.
    fn words(&self) -> String {
        let it = &self.attributes;
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let mut words = format!("{} {}", text(&it.verb), text(&it.resource));
        for (mark, part) in [('.', &it.group), ('/', &it.name)] {
            if let Some(part) = part.as_ref().filter(|part| !part.is_empty()) {
                words.push(mark);
                words.push_str(part);
            }
        }
        match &it.subresource {
            Some(part) => format!("{words} --subresource={part}"),
            None => words,
        }
    }
}

/// `own`: the namespace in which the operator is.
fn all(own: &str, needs: &Needs<'_>) -> Vec<Asked> {
    let Needs {
        namespace,
        mailbells,
        passwords,
    } = *needs;
    let each = |namespace: &str, rights: &[Right]| -> Vec<Asked> {
        let asked = rights.iter().flat_map(|right| {
            let verbs = right.verbs.iter();
            verbs.map(|verb| Asked::of(namespace, right, verb))
        });
        asked.collect()
    };
    let mut all = each(namespace, &RIGHTS);
    all.extend(each(own, &LEASE));
    // By the token it calls the admin API.
    let tokens = mailbells.iter().map(|it| format!("{it}-operator-token"));
    let passwords = passwords.into_iter().flatten().take(MOST_SECRETS).cloned();
    let tokens = tokens.map(|name| (name, false));
    for (secret, is_password) in tokens.chain(passwords.map(|name| (name, true))) {
        for mut asked in each(namespace, &[SECRETS]) {
            asked.is_password = is_password;
            asked.attributes.name = Some(secret.clone());
            all.push(asked);
        }
    }
    all
}

/// As whom it acts.
fn user(operator: &Deployment, namespace: &str) -> SubjectAccessReviewSpec {
    let pod = operator
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let account = pod.and_then(|pod| pod.service_account_name.as_deref());
    let account = account.unwrap_or("default");
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    SubjectAccessReviewSpec {
        user: Some(format!("system:serviceaccount:{namespace}:{account}")),
        groups: Some(groups.to_vec()),
        ..SubjectAccessReviewSpec::default()
    }
}

/// The right, and whether it is there. In its namespace, since who administers that may ask this.
async fn ask(client: &Client, user: &SubjectAccessReviewSpec, asked: Asked) -> (Asked, Seen<bool>) {
    let review = LocalSubjectAccessReview {
        metadata: ObjectMeta {
            namespace: Some(asked.namespace.clone()),
            ..ObjectMeta::default()
        },
        spec: SubjectAccessReviewSpec {
            resource_attributes: Some(asked.attributes.clone()),
            ..user.clone()
        },
        status: None,
    };
    let api: Api<LocalSubjectAccessReview> = Api::namespaced(client.clone(), &asked.namespace);
    let answer = api.create(&PostParams::default(), &review).await;
    let allowed = answer.map(|review| review.status.is_some_and(|status| status.allowed));
    (asked, seen(allowed))
}

/// `release`: that of the operator and that of this command, if they are not the same.
fn tell(
    report: &mut Report,
    finding: &str,
    release: Option<&str>,
    answers: Vec<(Asked, Seen<bool>)>,
) {
    let count = answers.len();
    let (mut missing, mut passwords) = (Vec::new(), Vec::new());
    let (mut unknown, mut failed) = (Vec::new(), Vec::new());
    for (asked, answer) in answers {
        match answer {
            Seen::There(true) => {}
            Seen::There(false) if asked.is_password => passwords.push(asked.words()),
            Seen::There(false) => missing.push(asked.words()),
            Seen::Denied(why) => unknown.push(why),
            Seen::Missing => unknown.push("the cluster has no access reviews".to_owned()),
            Seen::Failed(why) => failed.push(why),
        }
    }
    if !missing.is_empty() {
        lacks(report, finding, release, &missing);
    }
    if !passwords.is_empty() {
        // No fault of the installation: what is told of MailAccounts says whether it is one of all of them.
        report.warn(
            finding,
            format!(
                "it may not, for passwords of MailAccounts: {}",
                some(&passwords)
            ),
            "name these Secrets in `mailAccounts.passwordSecrets` of the chart mailbell, and upgrade it",
        );
    }
    if [&missing, &passwords, &unknown, &failed]
        .into_iter()
        .all(Vec::is_empty)
    {
        report.ok(finding, format!("it has all {count} that it needs"));
    }
    if let Some(why) = unknown.first() {
        let said = match unknown.len() {
            all if all == count => format!("they could not be checked: {why}"),
            some => format!("{some} of {count} could not be checked: {why}"),
        };
        report.skipped(finding, said);
    }
    if let Some(why) = failed.first() {
        report.fail(finding, why, "look again");
    }
}

fn some(rights: &[String]) -> String {
    let named: Vec<&str> = rights.iter().take(NAMED).map(String::as_str).collect();
    match rights.len().saturating_sub(NAMED) {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

fn lacks(report: &mut Report, finding: &str, release: Option<&str>, missing: &[String]) {
    let said = format!("it may not: {}", some(missing));
    let advice = "upgrade the chart mailbell, which has its role, to the release of the operator, with this installation in its `installations`";
    match release {
        None => report.fail(finding, said, advice),
        // Whether it needs them is known to its own release only.
        Some(release) => report.warn(
            finding,
            format!("{said}. It is {release}, and may need other rights"),
            "look with the command of the operator's release, or bring both to the same one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Verdict;

    fn questions() -> Vec<Asked> {
        let mailbells = ["main".to_owned()];
        let passwords = BTreeSet::from(["mail-passwords".to_owned()]);
        let needs = Needs {
            namespace: "mail",
            mailbells: &mailbells,
            passwords: Some(&passwords),
        };
        all("operators", &needs)
    }

    /// `answer` is given the place of each question, and its words.
    fn told_of(
        release: Option<&str>,
        answer: impl Fn(usize, &str) -> Seen<bool>,
    ) -> Vec<(Verdict, String)> {
        let mut report = Report::default();
        let answers = questions().into_iter().enumerate().map(|(place, asked)| {
            let answer = answer(place, &asked.words());
            (asked, answer)
        });
        tell(&mut report, "x", release, answers.collect());
        let findings = report.findings.into_iter();
        findings.map(|it| (it.verdict, it.said)).collect()
    }

    fn told(answer: impl Fn(usize, &str) -> Seen<bool>) -> (Verdict, String) {
        let [finding] = <[_; 1]>::try_from(told_of(None, answer)).unwrap();
        finding
    }

    #[test]
    fn rights_that_are_missing_are_named_as_kubectl_asks_for_them() {
        let (verdict, said) = told(|_, _| Seen::There(true));
        assert_eq!(verdict, Verdict::Ok);
        let all = questions().len();
        assert_eq!(said, format!("it has all {all} that it needs"));
        let lacks = [
            "patch mailaccounts.mailbell.dev --subresource=status",
            "update leases.coordination.k8s.io/mailbell-operator",
            "get secrets/main-operator-token",
        ];
        let (verdict, said) = told(|_, words| Seen::There(!lacks.contains(&words)));
        assert_eq!(verdict, Verdict::Fail);
        assert_eq!(said, format!("it may not: {}", lacks.join("; ")));
        let (_, said) = told(|place, _| Seen::There(place >= 7));
        assert!(said.ends_with("; and 2 more"), "{said}");
        let (verdict, said) = told(|_, _| Seen::Denied("no".to_owned()));
        assert_eq!(
            (verdict, said.as_str()),
            (Verdict::Skipped, "they could not be checked: no")
        );
        assert_eq!(told(|_, _| Seen::Missing).0, Verdict::Skipped);
        assert_eq!(told(|_, _| Seen::Failed("no".to_owned())).0, Verdict::Fail);
    }

    #[test]
    fn a_secret_of_some_mailboxes_is_no_fault_of_the_operator() {
        let password = "get secrets/mail-passwords";
        let (verdict, said) = told(|_, words| Seen::There(words != password));
        assert_eq!(verdict, Verdict::Warn);
        assert!(said.ends_with(password), "{said}");
        let token = "get secrets/main-operator-token";
        let found = told_of(None, |_, words| {
            Seen::There(![password, token].contains(&words))
        });
        let verdicts: Vec<Verdict> = found.iter().map(|(verdict, _)| *verdict).collect();
        assert_eq!(verdicts, [Verdict::Fail, Verdict::Warn]);
    }

    #[test]
    fn a_question_that_is_refused_hides_no_right_that_is_missing() {
        let token = "get secrets/main-operator-token";
        let found = told_of(None, |place, words| match place {
            0 => Seen::Denied("no".to_owned()),
            _ => Seen::There(words != token),
        });
        let [missing, refused] = <[_; 2]>::try_from(found).unwrap();
        assert_eq!(missing, (Verdict::Fail, format!("it may not: {token}")));
        assert_eq!(refused.0, Verdict::Skipped);
        let all = questions().len();
        let words = format!("1 of {all} could not be checked: no");
        assert_eq!(refused.1, words);
    }

    #[test]
    fn an_operator_of_another_release_is_not_said_to_fail() {
        let releases = "of release 1.0.0; this command is of 2.0.0";
        let found = told_of(Some(releases), |place, _| Seen::There(place > 0));
        let [(verdict, said)] = <[_; 1]>::try_from(found).unwrap();
        assert_eq!(verdict, Verdict::Warn);
        assert!(said.contains(releases), "{said}");
        let found = told_of(Some(releases), |_, _| Seen::There(true));
        assert_eq!(found[0].0, Verdict::Ok);
    }

    #[test]
    fn an_operator_acts_as_its_service_account() {
        let template = |spec| json!({ "spec": { "selector": {}, "template": { "spec": spec } } });
        let user_of = |spec| {
            let operator: Deployment = serde_json::from_value(template(spec)).unwrap();
            user(&operator, "mail").user.unwrap()
        };
        let named = json!({ "containers": [], "serviceAccountName": "keeper" });
        assert_eq!(user_of(named), "system:serviceaccount:mail:keeper");
        let none = json!({ "containers": [] });
        assert_eq!(user_of(none), "system:serviceaccount:mail:default");
    }
}
