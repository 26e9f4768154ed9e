//! The IMAP adapter: a guarded connection, its commands, parsed answers.
//!
//! The way of one account: [`Connection::open`] logs in; [`Connection::look`] opens a folder read-only and finds what
//! is new; [`Connection::fetch`] reads it; [`Connection::park`] turns the connection into a [`Parked`], which is
//! nothing but the stream; [`Parked::wait`] sleeps until there is news and gives the connection back:
//!
//! ```no_run
//! # use mailbell_imap::*;
//! # async fn watch(endpoint: &Endpoint, login: &Login, settings: &Settings) -> Result<(), Error> {
//! let mut connection = Connection::open(endpoint, login, settings).await?;
//! let mut next = 1;
//! loop {
//!     let look = connection.look("INBOX", next, 64, false).await?;
//!     for message in connection.fetch(&look.uids).await? {
//!         println!("{}", message.uid);
//!     }
//!     next = look.uid_next;
//!     let parked = connection.park().await?;
//!     let patience = Patience {
//!         until: tokio::time::Instant::now() + std::time::Duration::from_secs(28 * 60),
//!         quiet: std::time::Duration::from_secs(10 * 60),
//!     };
//!     connection = parked.wait(patience, std::future::pending()).await?.0;
//! }
//! # }
//! ```
//!
//! The user's mailbox is never changed: EXAMINE and PEEK only. (But by [`Canary`], which a person asks for.) Nothing that a server sends reaches the parser before
//! the guard (`guard`) has bounded and rewritten it. Nothing here logs an address, a secret or mail, and no `Debug`
//! shows them. (async-imap writes what it parses to the `log` facade at TRACE: don't bridge that.)

mod canary;
mod capability;
mod channel;
mod command;
mod connection;
mod error;
mod fetch;
mod folder;
mod guard;
mod items;
mod login;
mod message;
mod mutf7;
mod park;
mod settings;
mod tls;
mod transport;

pub use canary::{Canary, Put};
pub use capability::{Capabilities, Capability};
pub use connection::Connection;
pub use error::{Class, Error, LoginFault, TlsFault};
pub use fetch::{ListQuery, PAGE_LIMIT, Page};
pub use folder::{Folder, Look, SpecialUse};
pub use guard::GuardError;
pub use message::{Address, Content, Message};
pub use park::{Parked, Patience, Wake};
pub use settings::{Endpoint, Login, Settings, Timeouts, TlsMode};
pub use tls::{TlsSettings, TlsSettingsError};
pub use transport::{Stream, Transport};
