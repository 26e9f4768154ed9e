//! Whether an operator may what it has to: what a release needs may be more than what the chart of the one before has given.

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
use mailbell_operator::rights::{LEASE, RIGHTS, Right};

use super::access::{Seen, seen};
use crate::doctor::Report;

/// So many questions are on their way at a time, of about eighty.
const AT_ONCE: usize = 8;
/// So many rights that are missing are named.
const NAMED: usize = 5;

/// Of each operator that looks after this namespace, with these installations.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    operators: &[Deployment],
    mailbells: &[String],
) {
    for operator in operators {
        let finding = format!("rights of {}", operator.name_any());
        let own = operator.namespace().unwrap_or_default();
        let user = user(operator, &own);
        let asked = all(namespace, &own, mailbells);
        let count = asked.len();
        let answers = stream::iter(asked)
            .map(|asked| ask(client, &user, asked))
            .buffered(AT_ONCE);
        let answers = answers.collect::<Vec<_>>().await;
        tell(report, &finding, count, answers);
    }
}

/// One thing that has to be allowed.
#[derive(Debug, Clone)]
struct Asked {
    namespace: String,
    attributes: ResourceAttributes,
}

impl Asked {
    fn of(namespace: &str, right: &Right, verb: &str) -> Self {
        let (resource, subresource) = match right.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (right.resource, None),
        };
        Self::one(
            namespace,
            ResourceAttributes {
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                name: right.name.map(str::to_owned),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            },
        )
    }

    /// The token by which it calls the admin API.
    fn token(namespace: &str, mailbell: &str) -> Self {
        Self::one(
            namespace,
            ResourceAttributes {
                resource: Some("secrets".to_owned()),
                name: Some(format!("{mailbell}-operator-token")),
                verb: Some("get".to_owned()),
                ..ResourceAttributes::default()
            },
        )
    }

    fn one(namespace: &str, mut attributes: ResourceAttributes) -> Self {
        attributes.namespace = Some(namespace.to_owned());
        Self {
            namespace: namespace.to_owned(),
            attributes,
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

fn all(namespace: &str, own: &str, mailbells: &[String]) -> Vec<Asked> {
    let each = |namespace: &str, rights: &[Right]| -> Vec<Asked> {
        let asked = rights.iter().flat_map(|right| {
            let verbs = right.verbs.iter();
            verbs.map(|verb| Asked::of(namespace, right, verb))
        });
        asked.collect()
    };
    let mut all = each(namespace, &RIGHTS);
    all.extend(each(own, &LEASE));
    let tokens = mailbells.iter();
    all.extend(tokens.map(|mailbell| Asked::token(namespace, mailbell)));
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

fn tell(report: &mut Report, finding: &str, count: usize, answers: Vec<(Asked, Seen<bool>)>) {
    let mut missing = Vec::new();
    for (asked, answer) in answers {
        match answer {
            Seen::There(true) => {}
            Seen::There(false) => missing.push(asked.words()),
            Seen::Denied(why) => {
                let said = format!("they could not be checked: {why}");
                return report.skipped(finding, said);
            }
            Seen::Missing => {
                let said = "they could not be checked: the cluster has no access reviews";
                return report.skipped(finding, said);
            }
            Seen::Failed(why) => return report.fail(finding, why, "look again"),
        }
    }
    if missing.is_empty() {
        return report.ok(finding, format!("it has all {count} that it needs"));
    }
    let named: Vec<&str> = missing.iter().take(NAMED).map(String::as_str).collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    report.fail(
        finding,
        format!("it may not: {}{more}", named.join("; ")),
        "upgrade the chart mailbell, which has its role, to the release of the operator, with this installation in its `installations`",
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Verdict;

    /// `answer` is given the place of each question, and its words.
    fn told(answer: impl Fn(usize, &str) -> Seen<bool>) -> (Verdict, String) {
        let mut report = Report::default();
        let asked = all("mail", "operators", &["main".to_owned()]);
        let count = asked.len();
        let answers = asked.into_iter().enumerate().map(|(place, asked)| {
            let answer = answer(place, &asked.words());
            (asked, answer)
        });
        tell(&mut report, "x", count, answers.collect());
        let [finding] = <[_; 1]>::try_from(report.findings).unwrap();
        (finding.verdict, finding.said)
    }

    #[test]
    fn rights_that_are_missing_are_named_as_kubectl_asks_for_them() {
        let (verdict, said) = told(|_, _| Seen::There(true));
        assert_eq!(verdict, Verdict::Ok);
        assert!(said.contains("all 7"), "{said}");
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
