//! The custom resources of `mailbell.dev/v1alpha1`. The first sentence of each field's comment is what `kubectl explain` shows.
#![expect(
    unreachable_pub,
    reason = "the derived schemas have copies of these types that nobody can reach"
)]

mod content;
mod mail_account;
mod mail_provider;
mod mailbell;
mod nats;
mod pods;

#[cfg(test)]
pub(crate) use self::pods::{VARIABLES, VOLUMES};
pub use self::{
    content::Content,
    mail_account::{
        AccountMode, ImapServer, MailAccount, MailAccountSpec, MailAccountStatus, SecretKey,
        TlsMode,
    },
    mail_provider::{
        MailProvider, MailProviderSpec, MailProviderStatus, ProviderLimits, ProviderQuirks,
    },
    mailbell::{
        Admin, Counts, GatewayApi, Gateways, LeftAccounts, ListenerTls, Mailbell, MailbellSpec,
        MailbellStatus, ParentRef, Service, ServiceType, Telemetry, Versions, Watchers,
    },
    nats::{ExternalNats, ManagedNats, Nats, NatsTls, Storage},
    pods::{EnvVar, Pods, Scale, Volume, VolumeMount},
};

/// The group of all of them.
pub const GROUP: &str = "mailbell.dev";
