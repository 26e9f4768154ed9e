//! One mailbox, for installations whose accounts are kept in Git. Millions of accounts go through the admin API.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::Content;

/// What is wanted of a mailbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "mailbell.dev",
    version = "v1alpha1",
    kind = "MailAccount",
    namespaced,
    doc = "One mailbox that an installation of Mailbell watches. The admin API does not change what stands here.",
    status = "MailAccountStatus",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether it is watched"
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".status.mode",
        description = "How new mail is noticed"
    ),
    printcolumn(
        name = "Last Arrival",
        type_ = "date",
        json_path = ".status.lastArrival",
        description = "When the last message came"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What is going on, in words"
    ),
    printcolumn(
        name = "Account",
        type_ = "string",
        json_path = ".status.account",
        description = "Its id in Mailbell",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    validation = Rule::new("size(self.metadata.name) <= 180")
        .message("the name has at most 180 characters: with that of the namespace it is the account's id at the admin API")
)]
#[serde(rename_all = "camelCase")]
pub struct MailAccountSpec {
    /// The Mailbell of this namespace that watches it.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("an account cannot move to another installation: make a new one"))]
    pub mailbell: String,
    /// The tenant that owns it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9-]+$"))]
    #[serde(default = "default_tenant")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("an account cannot move to another tenant: make a new one"))]
    pub tenant: String,
    /// Where the mailbox is, and who logs in.
    pub server: ImapServer,
    /// The password. A change of the Secret is a change of the password; it is noticed within some minutes.
    #[serde(default)]
    pub password: SecretKey,
    /// The folders that are watched. The first is held open.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 255)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[serde(default = "inbox")]
    pub folders: Vec<String>,
    /// Not watched while true.
    #[serde(default)]
    pub paused: bool,
    /// The most of its messages that leaves the mailbox. The lower of this and of what the Mailbell says holds, whatever tokens allow.
    #[serde(default)]
    pub content: Content,
}

fn default_tenant() -> String {
    "default".to_owned()
}

fn inbox() -> Vec<String> {
    vec!["INBOX".to_owned()]
}

/// Where a mailbox is, and who logs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImapServer {
    /// Name or address of the server.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^\s/@]+$"))]
    pub host: String,
    /// Its port. Unset: 993 with TLS from the first byte, else 143. Where the cluster's network enforces policies, any other one needs a
    /// NetworkPolicy of your own that lets watchers reach it.
    #[schemars(range(min = 1, max = 65535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: TlsMode,
    /// Who logs in.
    #[schemars(length(min = 1, max = 255))]
    pub user: String,
}

/// How the connection to a mail server is protected.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum TlsMode {
    /// TLS from the first byte.
    #[default]
    Implicit,
    /// STARTTLS is demanded.
    StartTls,
    /// No TLS. Only where the Mailbell has `allowPlaintextImap`.
    Plaintext,
}

/// One key of a Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret, one of those that the operator may read: `mailAccounts.passwordSecrets` of the chart names them.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default = "mail_passwords")]
    pub secret_name: String,
    /// Its key. Unset: the name of this object, so that one Secret has the passwords of many.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Default for SecretKey {
    fn default() -> Self {
        Self {
            secret_name: mail_passwords(),
            key: None,
        }
    }
}

fn mail_passwords() -> String {
    "mail-passwords".to_owned()
}

/// How the mailbox is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailAccountStatus {
    /// The generation of the spec that was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its id in Mailbell: what tokens and devices name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// How new mail is noticed now. Unset: not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AccountMode>,
    /// When the last message came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_arrival: Option<Time>,
    /// The version of the Secret, and its key, of which the password in force is. It says nothing of the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_version: Option<String>,
    /// Ready, with a sentence: what is wrong, and what to do.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// How new mail is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum AccountMode {
    /// The mail server says so at once.
    Idle,
    /// Mailbell asks again and again.
    Poll,
}
