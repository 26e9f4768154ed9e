//! The Rust client of Mailbell: a typed stream of what happens in mailboxes, without holes or repeats.
//!
//! ```no_run
//! use mailbell_client::{AppEvent, Client, FileState};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut events = Client::builder("https://push.example.org")
//!     .token(std::env::var("MAILBELL_TOKEN")?)
//!     .state(FileState::open("alerts.state")?)
//!     .build()?
//!     .into_stream();
//! while let Some(event) = events.recv().await {
//!     match event? {
//!         AppEvent::Arrived(arrived) if arrived.alert => { /* show it */ }
//!         AppEvent::ReplaceFolder(folder) => { /* replace what is held of this folder */ }
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What the app need not care about: connections, back-off, tokens that expire, replays, repeats, resyncs. What it must do:
//! * take every event in order, and replace what it holds of a folder when it is told to ([`ReplaceFolder`]);
//! * give each client a state of its own ([`FileState`]), if it wants to hear of what happened while it was not running;
//! * stop when the stream ends with an [`Error`]: those need a person.
//!
//! The rules are in [`session`], without any I/O; the rest of this crate drives them. The contract is docs/protocol.md.

mod client;
mod driver;
mod error;
pub mod event;
mod events;
pub mod session;
mod state;
mod status;
mod token;

pub use client::{Builder, Client, Timing};
pub use error::Error;
pub use event::{
    AppEvent, Arrived, Changed, Connected, DisconnectReason, Gone, Listed, ReplaceFolder,
    Unlistable, UnlistableReason,
};
pub use events::{Acker, Events};
pub use mailbell_proto::push::v1 as proto;
pub use session::StoredState;
pub use state::{FileState, MemoryState, StateError, StateStore};
pub use token::{Token, TokenError};
