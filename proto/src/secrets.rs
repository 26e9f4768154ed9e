//! `Debug` of the messages that have a secret in them: what is derived would print it into whatever log they end up in.

use std::fmt;

use crate::{
    admin::v1::{CreateAccountRequest, MintTokenResponse, UpdateAccountRequest},
    push::v1::Reauthenticate,
};

/// In place of a secret.
struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

// Each takes its message apart by name: a new field must be thought of here.

impl fmt::Debug for CreateAccountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tenant,
            external_id,
            server,
            password: _,
            folders,
            no_check,
            paused,
            managed_by,
            content,
        } = self;
        f.debug_struct("CreateAccountRequest")
            .field("tenant", tenant)
            .field("external_id", external_id)
            .field("server", server)
            .field("password", &Hidden)
            .field("folders", folders)
            .field("no_check", no_check)
            .field("paused", paused)
            .field("managed_by", managed_by)
            .field("content", content)
            .finish()
    }
}

impl fmt::Debug for UpdateAccountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            server,
            password,
            folders,
            paused,
            no_check,
            revision,
            managed_by,
            content,
        } = self;
        f.debug_struct("UpdateAccountRequest")
            .field("id", id)
            .field("server", server)
            .field("password", &password.as_ref().map(|_| Hidden))
            .field("folders", folders)
            .field("paused", paused)
            .field("no_check", no_check)
            .field("revision", revision)
            .field("managed_by", managed_by)
            .field("content", content)
            .finish()
    }
}

impl fmt::Debug for MintTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, info } = self;
        f.debug_struct("MintTokenResponse")
            .field("token", &Hidden)
            .field("info", info)
            .finish()
    }
}

impl fmt::Debug for Reauthenticate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _ } = self;
        f.debug_struct("Reauthenticate")
            .field("token", &Hidden)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::v1::{ClientFrame, client_frame::Frame};

    #[test]
    fn no_secret_is_printed_and_all_else_is() {
        let secret = || "hunter2".to_owned();
        let create = CreateAccountRequest {
            tenant: "a".to_owned(),
            password: secret(),
            ..CreateAccountRequest::default()
        };
        let update = UpdateAccountRequest {
            id: "a.1".to_owned(),
            password: Some(secret()),
            ..UpdateAccountRequest::default()
        };
        let minted = MintTokenResponse {
            token: secret(),
            info: None,
        };
        let frame = ClientFrame {
            frame: Some(Frame::Reauthenticate(Reauthenticate { token: secret() })),
        };
        let said = format!("{create:?} {update:?} {minted:?} {frame:?}");
        assert!(!said.contains("hunter2"), "{said}");
        assert!(said.contains("tenant: \"a\"") && said.contains("id: \"a.1\""));
        assert_eq!(said.matches("(hidden)").count(), 4, "{said}");
    }
}
