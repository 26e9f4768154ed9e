//! What can go wrong between the operator and the API server.

use super::cluster::Key;

/// Why an installation could not be looked after, or an operator not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused something of an object, or did not answer.
    #[error("{kind} {name}: {}", said(.source))]
    Object {
        /// Of which kind.
        kind: String,
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// An object of this name is there, and is not of this installation.
    #[error(
        "{kind} {name}: it is there already, and was not made for this installation: remove it, or have a Mailbell of another name"
    )]
    Foreign {
        /// Of which kind.
        kind: String,
        /// Which.
        name: String,
    },
    /// What it answered is no object.
    #[error("the API server's answer cannot be read: {0}")]
    Json(serde_json::Error),
    /// The cluster does not know our kinds.
    #[error(
        "the cluster does not know the custom resources of Mailbell: install the chart mailbell-crds, or \
         `mailbell crds | kubectl apply --server-side -f -`"
    )]
    NoDefinitions,
    /// A right is missing.
    #[error("the operator may not do its work: {0}; the chart mailbell makes its role")]
    Denied(String),
    /// The API server cannot be reached.
    #[error("the API server does not answer: {}", said(.0))]
    Unreachable(Box<kube::Error>),
    /// Nobody can say which of them are the oldest.
    #[error("there are more than 10000 MailProviders in this namespace")]
    TooManyProviders,
    /// A look took too long.
    #[error("the API server took too long to answer")]
    TooLong,
}

impl Error {
    pub(super) fn of(key: &Key, source: kube::Error) -> Self {
        Self::Object {
            kind: key.kind.clone(),
            name: key.name.clone(),
            source: Box::new(source),
        }
    }

    /// What [`Error::class`] answers.
    pub(super) const CLASSES: [&str; 7] = [
        "refused",
        "unavailable",
        "unreachable",
        "too-long",
        "unreadable",
        "denied",
        "no-definitions",
    ];

    /// Its class, for a metric.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Object { source, .. } => match &**source {
                // Not now: it has too much to do, or something that it needs fails, such as its store or a webhook.
                kube::Error::Api(status) if status.code == 429 || status.code >= 500 => {
                    "unavailable"
                }
                kube::Error::Api(_) => "refused",
                kube::Error::SerdeError(_) => "unreadable",
                _ => "unreachable",
            },
            Self::Foreign { .. } => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::TooLong => "too-long",
            Self::Json(_) | Self::TooManyProviders => "unreadable",
            Self::Denied(_) => "denied",
            Self::NoDefinitions => "no-definitions",
        }
    }

    /// The API server has answered, and not what was hoped for.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Object { source, .. } => matches!(**source, kube::Error::Api(_)),
            Self::Foreign { .. } => true,
            _ => false,
        }
    }

    /// It does not know such objects at all.
    pub(super) fn is_missing_kind(&self) -> bool {
        matches!(self, Self::Object { source, .. }
            if matches!(&**source, kube::Error::Api(status) if status.code == 404))
    }

    /// Of the first question that is asked.
    pub(super) fn of_start(source: kube::Error) -> Self {
        match source {
            kube::Error::Api(status) if status.code == 404 => Self::NoDefinitions,
            kube::Error::Api(status) if [401, 403].contains(&status.code) => {
                Self::Denied(status.message.clone())
            }
            source => Self::Unreachable(Box::new(source)),
        }
    }
}

/// In the words of the API server, if they are its.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}
