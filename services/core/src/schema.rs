//! Which schemas this release knows, and which one an installation may be written in.
//!
//! Two releases, N and N-1, work on one installation while it is upgraded, and one may go back from N to N-1. So what only N
//! understands is written only once nobody wants to go back: the record `meta` names the newest schema that may be written.
//!
//! | what | rule |
//! | --- | --- |
//! | a record | says the lowest schema that knows all that it says; nobody rewrites one that is newer than what it knows |
//! | a field of schema N | written once the write version is N; who does not know it passes it over |
//! | a kind of schema N | the same; who does not know a kind of event moves on behind it, and refuses a kind of request |
//! | the write version | only grows, by a person's word; who does not know it does not run |
//!
//! What came with schema 2: `Checkpoint.last_arrival_us`, the request `LoginNow`, `OwnerRequest.signs`, `AccountRecord.managed_by` and
//! `AccountRecord.content`.

use mailbell_proto::bus::v1::{self as bus, owner_request::Request};

/// The newest schema that this release knows. With the feature `schema-prev`, a test builds the release before it.
pub const NEWEST: u32 = if cfg!(feature = "schema-prev") { 1 } else { 2 };

/// The first schema of which a checkpoint has the time of the last arrival.
pub(crate) const LAST_ARRIVAL: WriteVersion = WriteVersion(2);
/// The first schema that has [`Request::Login`].
const LOGIN_NOW: WriteVersion = WriteVersion(2);
/// The first schema whose owners say that they work on a request.
const SIGNS: WriteVersion = WriteVersion(2);
/// The first schema of which an account says who manages it.
const MANAGERS: WriteVersion = WriteVersion(2);

/// The first schema of which an account has a content policy.
const CONTENT: WriteVersion = WriteVersion(2);

/// The newest schema that may be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteVersion(u32);

/// An installation that this release is too old for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the installation is written in schema {written}, and this release knows {newest} at most: its upgrade was finished, so run \
     that release (or a newer one) here too"
)]
pub struct TooOld {
    /// What may be written there.
    pub written: u32,
    /// What this release knows.
    pub newest: u32,
}

impl WriteVersion {
    /// What every release reads.
    pub const FIRST: Self = Self(1);
    /// The newest that this release knows.
    pub const NEWEST: Self = Self(NEWEST);

    /// What the record `meta` says.
    ///
    /// # Errors
    /// [`TooOld`]: this release must not run.
    pub fn of(meta: &bus::Meta) -> Result<Self, TooOld> {
        Self::from_number(meta.write_version)
    }

    /// From its number; 0 is the first.
    ///
    /// # Errors
    /// [`TooOld`]: this release must not run.
    pub fn from_number(written: u32) -> Result<Self, TooOld> {
        if written > NEWEST {
            let newest = NEWEST;
            return Err(TooOld { written, newest });
        }
        Ok(Self(written).max(Self::FIRST))
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether [`Request::Login`] may be asked.
    #[must_use]
    pub fn has_login_now(self) -> bool {
        self >= LOGIN_NOW
    }

    /// Whether every owner says again and again that it works on a request, if it is asked to.
    #[must_use]
    pub fn has_signs(self) -> bool {
        self >= SIGNS
    }

    /// Whether an account may say who manages it. Who does not know that would drop it with the next change of the account.
    #[must_use]
    pub fn has_managers(self) -> bool {
        self >= MANAGERS
    }

    /// Whether an account may have a content policy. A watcher that does not know it would read and store more.
    #[must_use]
    pub fn has_content(self) -> bool {
        self >= CONTENT
    }
}

/// The lowest schema that knows all that an account's record says.
#[must_use]
pub fn of_account(record: &bus::AccountRecord) -> u32 {
    let needs = [
        (!record.managed_by.is_empty(), MANAGERS),
        (record.content != 0, CONTENT),
    ];
    let needed = needs.into_iter().filter(|(says, _)| *says);
    let versions = needed.map(|(_, version)| version);
    versions.max().unwrap_or(WriteVersion::FIRST).number()
}

/// A request as this release knows it; `None` for a kind that came later.
#[must_use]
pub fn known_request(request: Option<Request>) -> Option<Request> {
    request.filter(|request| {
        !matches!(request, Request::Login(_)) || WriteVersion::NEWEST.has_login_now()
    })
}

/// Whether this release may rewrite a record of this schema.
#[must_use]
pub const fn may_rewrite(schema: u32) -> bool {
    schema <= NEWEST
}

#[cfg(test)]
mod tests {
    use mailbell_proto::push::v1::ContentLevel;

    use super::*;

    #[test]
    fn a_release_does_not_run_on_what_it_does_not_know() {
        let meta = |write_version| bus::Meta {
            write_version,
            ..bus::Meta::default()
        };
        assert_eq!(WriteVersion::of(&meta(0)), Ok(WriteVersion::FIRST));
        assert_eq!(WriteVersion::of(&meta(NEWEST)), Ok(WriteVersion::NEWEST));
        let refused = WriteVersion::of(&meta(NEWEST + 1)).unwrap_err();
        assert_eq!((refused.written, refused.newest), (NEWEST + 1, NEWEST));
        assert!(may_rewrite(NEWEST) && !may_rewrite(NEWEST + 1));
    }

    #[test]
    fn a_kind_is_known_by_the_release_that_brought_it() {
        let login = Some(Request::Login(bus::LoginNow {}));
        assert_eq!(known_request(login).is_some(), NEWEST >= 2);
        let list = Some(Request::List(bus::ListPage::default()));
        assert_eq!(known_request(list.clone()), list);
        assert!(!WriteVersion::FIRST.has_login_now());
    }

    #[test]
    fn an_account_says_the_lowest_schema_that_knows_it_whole() {
        let mut record = bus::AccountRecord::default();
        assert_eq!(of_account(&record), WriteVersion::FIRST.number());
        record.managed_by = "mailaccount/mail/alice".to_owned();
        assert_eq!(of_account(&record), 2);
        record = bus::AccountRecord {
            content: ContentLevel::Headers.into(),
            ..bus::AccountRecord::default()
        };
        assert_eq!(of_account(&record), 2);
        assert!(!WriteVersion::FIRST.has_managers() && !WriteVersion::FIRST.has_content());
    }
}
