//! A message of our own in somebody's mailbox, and its removal: to see whether what comes there is told, when a person asks for that.
//!
//! Nothing else of this crate changes a mailbox, and a watcher has no use for this.

use imap_proto::rfc4315::UidSetMember;
use imap_proto::{Response, ResponseCode};
use zeroize::Zeroizing;

use crate::capability::Capability;
use crate::command::Command;
use crate::connection::Connection;
use crate::error::Error;
use crate::guard::Limits;
use crate::login::refused;
use crate::mutf7;

/// Longest message, in bytes.
const MESSAGE_LIMIT: usize = 4096;

/// A connection by which one message is put into a mailbox and removed again.
///
/// As for [`Connection`], a dropped future leaves it of no more use.
#[derive(Debug)]
pub struct Canary(Connection);

/// Where a message was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The folder's UIDVALIDITY.
    pub uid_validity: u32,
    /// The message's UID.
    pub uid: u32,
    folder: String,
}

impl Canary {
    /// Over a connection to a server that can remove one message by its UID (UIDPLUS, RFC 4315). `None`: it cannot, and nothing
    /// should be put there.
    #[must_use]
    pub fn over(connection: Connection) -> Option<Self> {
        let can = connection.capabilities().has(Capability::UidPlus);
        can.then_some(Self(connection))
    }

    /// Puts a message into a folder, marked as read, so that no other program of its owner rings.
    ///
    /// # Errors
    /// [`Error::NoSuchFolder`], [`Error::Throttled`] (also where there is no room), and whatever ends a connection: then it may be
    /// there or not. [`Error::Protocol`] if it was put there and the server does not say where.
    pub async fn put(&mut self, folder: &str, message: &str) -> Result<Put, Error> {
        if message.len() > MESSAGE_LIMIT || message.contains('\0') {
            return Err(Error::InvalidInput("a message too long, or with NUL"));
        }
        let name = mutf7::encode(folder);
        let command = Command::new("APPEND")
            .string(name.as_bytes(), self.0.session.capabilities)?
            .text(&format!(" (\\Seen) {{{}}}", message.len()))
            .then(Zeroizing::new(message.as_bytes().to_vec()));
        let mut put = None;
        let mut is_missing = false;
        let ending = self
            .0
            .run(command, Limits::SMALL, &mut |response| {
                let Response::Done { outcome, .. } = response else {
                    return;
                };
                match &outcome.code {
                    Some(ResponseCode::AppendUid(uid_validity, uids)) => {
                        put = match uids.as_slice() {
                            [UidSetMember::Uid(uid)] => Some((*uid_validity, *uid)),
                            [UidSetMember::UidRange(uids)] => Some((*uid_validity, *uids.start())),
                            _ => None,
                        };
                    }
                    Some(ResponseCode::TryCreate) => is_missing = true,
                    _ => {}
                }
            })
            .await?;
        if !ending.ok {
            return Err(match is_missing || ending.code() == "NONEXISTENT" {
                true => Error::NoSuchFolder,
                false => refused(&ending).unwrap_or(Error::Protocol("APPEND refused")),
            });
        }
        let (uid_validity, uid) = put.ok_or(Error::Protocol("no APPENDUID"))?;
        Ok(Put {
            uid_validity,
            uid,
            folder: folder.to_owned(),
        })
    }

    /// Removes it, and no other message, for good; some servers keep it elsewhere all the same.
    ///
    /// # Errors
    /// When the server refuses, or the connection ends. [`Error::NoSuchFolder`] if the folder is another one by now.
    pub async fn remove(&mut self, put: &Put) -> Result<(), Error> {
        let name = mutf7::encode(&put.folder);
        let command =
            Command::new("SELECT").string(name.as_bytes(), self.0.session.capabilities)?;
        let mut generation = None;
        let ending = self
            .0
            .run_select(command, &mut |response| {
                if let Response::Data { outcome, .. } | Response::Done { outcome, .. } = response
                    && let Some(ResponseCode::UidValidity(number)) = outcome.code
                {
                    generation = Some(number);
                }
            })
            .await?;
        // A UID is that message in that generation only.
        if !ending.ok || generation != Some(put.uid_validity) {
            return Err(refused(&ending).unwrap_or(Error::NoSuchFolder));
        }
        let uid = put.uid;
        for command in [
            format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"),
            format!("UID EXPUNGE {uid}"),
        ] {
            let ending = self
                .0
                .run(Command::new(&command), Limits::SMALL, &mut |_| {})
                .await?;
            if !ending.ok {
                return Err(refused(&ending).unwrap_or(Error::Protocol("a removal refused")));
            }
        }
        Ok(())
    }

    /// As [`Connection::logout`].
    pub async fn logout(self) {
        self.0.logout().await;
    }
}
