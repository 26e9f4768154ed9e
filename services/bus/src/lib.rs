//! Mailbell on NATS: logs, state, claims, requests to an owner. The only crate that knows the NATS client.
//!
//! [`Bus::connect`] gives a handle that is cheap to clone. From it:
//!
//! * [`Bus::setup`] creates and verifies every stream and bucket of an installation, [`Bus::verify`] only looks;
//! * [`Bus::logs`]: append, read, follow, and the identity of each log's history ([`LogIds`]);
//! * [`Bus::accounts`] and its neighbours: typed records in buckets ([`state`]);
//! * [`Bus::share`]: which partitions this process owns, among all that share them; [`Bus::live`]: who lives and owns what, for
//!   who only looks on;
//! * [`Bus::serve`] and [`Bus::ask`]: requests to the owner of an account.
//!
//! [`permissions`] and [`server_config`] say what each role may do and write the configuration of a server of our own.
//!
//! # Who may be believed
//! A read may be answered by a replica that lags and does not say so. Whatever must know where things stand asks the leader:
//! `STREAM.INFO` and `STREAM.MSG.GET` are answered by it alone. See [`mailbell_core::read`].

mod api;
mod bus;
mod caught;
mod claims;
mod consumer;
mod error;
mod follow;
mod kv;
mod live;
mod log_ids;
mod logs;
mod membership;
pub mod metrics;
mod names;
mod options;
mod patience;
pub mod permissions;
mod pull;
mod reach;
mod read;
mod readiness;
mod requests;
mod server;
pub mod server_certificate;
pub mod server_config;
mod setup;
pub mod state;
mod upgrade;
mod wire;

pub use bus::{Bus, Link};
pub use caught::caught;
pub use claims::{Before, Shards, Share, ShareOptions};
pub use error::{BusError, Code};
pub use follow::{Followed, Follower};
pub use live::Live;
pub use log_ids::LogIds;
pub use logs::{AppendOutcome, Entry, LogTail, Logs, Refusal};
pub use metrics::Metrics;
pub use options::{Auth, BusOptions, Role, Secret, StorageLimits, TlsOptions};
pub use patience::{patience, patiently};
pub use read::{Filter, LogReader};
pub use requests::{AskError, OwnerService, ServeOptions, refuse};
pub use server::ServerStatus;
pub use setup::{Drift, SetupReport};
pub use upgrade::Upgrade;
