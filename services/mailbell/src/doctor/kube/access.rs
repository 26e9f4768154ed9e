//! What came of a question to the API server.

use std::fmt::Debug;

use kube::{Api, api::ListParams};
use serde::de::DeserializeOwned;

use crate::doctor::Report;

/// An answer, or why there is none.
pub(super) enum Seen<T> {
    /// It is there.
    There(T),
    /// It is not.
    Missing,
    /// Whoever asks has no right to know.
    Denied(String),
    /// Something else.
    Failed(String),
}

pub(super) fn seen<T>(answer: Result<T, kube::Error>) -> Seen<T> {
    match answer {
        Ok(found) => Seen::There(found),
        Err(kube::Error::Api(status)) if status.code == 404 => Seen::Missing,
        Err(kube::Error::Api(status)) if [401, 403].contains(&status.code) => {
            Seen::Denied(status.message)
        }
        Err(error) => Seen::Failed(said(&error)),
    }
}

/// In the words of the API server, if they are its.
pub(super) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

/// All of a kind; `None`: they cannot be seen, which was reported.
pub(super) async fn listed<K>(
    report: &mut Report,
    finding: &str,
    api: &Api<K>,
    params: &ListParams,
) -> Option<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    match seen(api.list(params).await) {
        Seen::There(all) => return Some(all.items),
        Seen::Missing => return Some(Vec::new()),
        Seen::Denied(why) => report.skipped(finding, format!("you may not see them: {why}")),
        Seen::Failed(why) => report.fail(finding, why, "look again"),
    }
    None
}
