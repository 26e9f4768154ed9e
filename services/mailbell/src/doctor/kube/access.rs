//! What came of a question to the API server.

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
