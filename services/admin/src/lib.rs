//! The API that holds accounts and device tokens (`mailbell.admin.v1`): for operators, app back ends and the command line.
//!
//! [`Service::new`], then [`Service::run`]. What it answers stands in `proto/mailbell/admin/v1/admin.proto`; where things are
//! decided:
//!
//! * [`accounts`](mod@accounts): in which order an account is written, and why a crash in between does no harm;
//! * [`validate`](mod@validate): the bounds of every field, and which hosts may be named ([`Policy`]);
//! * `owner`: logins are tried by the watcher that owns the account. This crate opens no connection to a mail server;
//! * `shards`: how watchers share the mailboxes, and which nobody watches;
//! * [`signing`](mod@signing): device tokens, and who may verify them;
//! * [`auth`](mod@auth): who may call.
//!
//! A password is sealed for the watchers before anything else is done with it, and wiped.
#![cfg_attr(
    doc,
    expect(
        rustdoc::private_intra_doc_links,
        reason = "a map of the crate for who reads it"
    )
)]

mod accounts;
mod auth;
mod convert;
mod error;
mod gauges;
mod metrics;
mod mirror;
mod owner;
mod service;
mod shards;
mod signing;
mod sweep;
mod tokens;
mod validate;

pub use auth::{Callers, TOKEN_PREFIX, TokenHash, new_token};
pub use error::{CHECK_CODE, Error, PUSHBACK};
pub use gauges::{
    SHARDS_ACCOUNTS_UNOWNED, SHARDS_MEMBER_ACCOUNTS, SHARDS_MEMBER_PARTITIONS,
    SHARDS_MEMBER_WEIGHT, SHARDS_MEMBERS, SHARDS_PARTITIONS, SHARDS_STEADY, SHARDS_UNOWNED,
    SHARDS_WAITING_ACCOUNTS, SHARDS_WAITING_PARTITIONS,
};
pub use metrics::{ACCOUNTS, CALL, CALLS, CHECKS, REFUSED};
pub use service::{Options, Service};
pub use signing::SigningKey;
pub use validate::Policy;
