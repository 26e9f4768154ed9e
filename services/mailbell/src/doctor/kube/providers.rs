//! MailProviders that cannot be read. Of the others their own status tells.

use kube::{Api, Client, api::ListParams, core::DeserializeGuard};
use mailbell_operator::api::MailProvider;

use super::{
    MOST, NAMED, Unread,
    access::{Seen, seen},
    some,
};
use crate::doctor::Report;

const FINDING: &str = "providers";

pub(super) async fn examine(report: &mut Report, client: &Client, unread: &Unread<'_>) {
    let api: Api<DeserializeGuard<MailProvider>> =
        Api::namespaced(client.clone(), unread.namespace);
    let found = match seen(api.list(&ListParams::default().limit(MOST)).await) {
        Seen::There(found) => found,
        // Of a release before.
        Seen::Missing => return,
        Seen::Denied(why) => {
            return report.skipped(FINDING, format!("you may not see them: {why}"));
        }
        Seen::Failed(why) => return report.fail(FINDING, why, "look again"),
    };
    let bad: Vec<_> = found
        .items
        .iter()
        .filter_map(|it| it.0.as_ref().err())
        .collect();
    for bad in bad.iter().take(NAMED) {
        let (name, said, advice) = unread.told(bad, "mailprovider");
        report.warn(&format!("provider {name}"), said, advice);
    }
    if bad.len() > NAMED {
        let names = bad
            .iter()
            .skip(NAMED)
            .filter_map(|it| it.metadata.name.clone());
        let names: Vec<String> = names.collect();
        report.warn(
            FINDING,
            format!("{} more cannot be read: {}", names.len(), some(&names)),
            "as the others",
        );
    }
    if found
        .metadata
        .continue_
        .is_some_and(|more| !more.is_empty())
    {
        report.skipped(FINDING, format!("only the first {MOST} were looked at"));
    }
}
