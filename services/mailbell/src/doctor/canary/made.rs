//! What there is only for the canary, and goes with it.

use std::time::Duration;

use jiff::{Timestamp, Zoned, fmt::rfc2822, tz::TimeZone};
use mailbell_client::{Client, Events};
use mailbell_core::host::is_loopback;
use mailbell_imap::{
    Canary, Connection, Endpoint, Error as ImapError, Login, Put, Settings, TlsMode, TlsSettings,
};
use mailbell_proto::{
    admin::v1::{Account, MintTokenRequest, RevokeTokenRequest, TlsMode as WireTls},
    push::v1::ContentLevel,
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{CanaryArgs, Fault, NAME, STEP};
use crate::{admin_client::AdminClient, doctor::Report};

/// The token ends by itself then: if this command is killed nobody else revokes it.
const TOKEN_S: u64 = 3600;
/// The stream of the device may take so long to close.
const CLOSE: Duration = Duration::from_secs(5);

/// How the mailbox is reached.
pub(super) struct Mailbox {
    endpoint: Endpoint,
    login: Login,
    settings: Settings,
}

impl Mailbox {
    pub(super) fn of(
        account: &Account,
        secret: Zeroizing<Vec<u8>>,
        args: &CanaryArgs,
    ) -> Result<Self, Fault> {
        let server = account.server.clone().unwrap_or_default();
        let tls = match server.tls() {
            WireTls::Starttls => TlsMode::StartTls,
            WireTls::Plaintext => TlsMode::Plain,
            WireTls::Implicit | WireTls::Unspecified => TlsMode::Implicit,
        };
        let unreadable =
            |why: String| Fault::new(why, "name a file of certificates in PEM with --imap-ca");
        let extra =
            match &args.imap_ca {
                None => None,
                Some(file) => Some(std::fs::read(file).map_err(|error| {
                    unreadable(format!("cannot read {}: {error}", file.display()))
                })?),
            };
        let trust =
            TlsSettings::system(extra.as_deref()).map_err(|error| unreadable(error.to_string()))?;
        let mut settings = Settings::new(trust);
        // The watchers may send it in plain text within their network; this machine is elsewhere.
        settings.allow_plaintext = is_loopback(&server.host);
        settings.timeouts.command = STEP;
        Ok(Self {
            endpoint: Endpoint {
                port: u16::try_from(server.port).unwrap_or_default(),
                host: server.host,
                tls,
            },
            login: Login {
                user: server.user,
                secret,
            },
            settings,
        })
    }

    pub(super) async fn open(&self) -> Result<Connection, ImapError> {
        Connection::open(&self.endpoint, &self.login, &self.settings).await
    }
}

/// What there is only for this, and goes with it.
#[derive(Default)]
pub(super) struct Made {
    token: Option<(AdminClient, String)>,
    pub(super) events: Option<Events>,
    message: Option<(Mailbox, Canary, Put)>,
}

impl Made {
    /// Not to be ended in the middle: else nobody knew of the token.
    pub(super) async fn device(
        &mut self,
        mut client: AdminClient,
        account: &Account,
        url: String,
        args: &CanaryArgs,
    ) -> Result<Events, Fault> {
        let request = MintTokenRequest {
            tenant: account.id.split('.').next().unwrap_or_default().to_owned(),
            accounts: vec![account.id.clone()],
            // It need not see what is in a message.
            content: ContentLevel::Key.into(),
            ttl_seconds: TOKEN_S,
            label: "mailbell doctor".to_owned(),
            ..MintTokenRequest::default()
        };
        let late = || {
            Fault::new(
                "no token could be had in time",
                "one labelled `mailbell doctor` may be there all the same, for an hour: mailbell token list",
            )
        };
        let minted = timeout(STEP, client.tokens.mint_token(request)).await;
        let minted = minted.map_err(|_elapsed| late())?;
        let minted = minted.map_err(|status| Fault::of_admin(status.into()))?;
        let minted = minted.into_inner();
        let id = minted.info.unwrap_or_default().id;
        self.token = Some((client, id));
        let advice = "--url says where devices connect";
        let mut builder = Client::builder(url)
            .token(minted.token)
            .accounts([account.id.as_str()])
            .content(ContentLevel::Key)
            .client_name(concat!("mailbell-doctor/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &args.ca {
            let pem = std::fs::read(file).map_err(|error| {
                Fault::new(format!("cannot read {}: {error}", file.display()), "--ca")
            })?;
            builder = builder.tls(pem);
        }
        if args.allow_plaintext {
            builder = builder.allow_plaintext();
        }
        let client = builder.build();
        let client = client.map_err(|error| Fault::new(format!("the device: {error}"), advice))?;
        Ok(client.into_stream())
    }

    /// Not to be ended in the middle: else nobody knew of the message.
    pub(super) async fn message(
        &mut self,
        mailbox: Mailbox,
        mut canary: Canary,
        folder: &str,
    ) -> Result<Put, Fault> {
        let now = Timestamp::now();
        let put = timeout(STEP, canary.put(folder, &text(now))).await;
        let put = put.unwrap_or(Err(ImapError::Timeout("APPEND")));
        match put {
            Ok(put) => {
                self.message = Some((mailbox, canary, put.clone()));
                Ok(put)
            }
            Err(error) => Err(Fault::new(
                format!(
                    "no message could be put into {folder}: {}",
                    error.user_sentence()
                ),
                format!(
                    "if one is there all the same, remove it: its subject is {}",
                    subject(now)
                ),
            )),
        }
    }

    pub(super) async fn undo(self, report: &mut Report) {
        if let Some((mailbox, canary, put)) = self.message
            && let Err(error) = remove(&mailbox, canary, &put).await
        {
            report.warn(
                NAME,
                format!(
                    "its message could not be removed: {}",
                    error.user_sentence()
                ),
                "remove it: its subject begins with Mailbell doctor",
            );
        }
        if let Some(events) = self.events {
            // Whether it says good-bye matters to nobody.
            let _ = timeout(CLOSE, events.close()).await;
        }
        if let Some((mut client, id)) = self.token {
            let request = RevokeTokenRequest { id: id.clone() };
            let revoked = timeout(STEP, client.tokens.revoke_token(request)).await;
            if !matches!(revoked, Ok(Ok(_))) {
                report.warn(
                    NAME,
                    format!(
                        "its token {id} could not be revoked; it ends by itself within an hour"
                    ),
                    format!("mailbell token revoke {id}"),
                );
            }
        }
    }
}

async fn remove(mailbox: &Mailbox, mut canary: Canary, put: &Put) -> Result<(), ImapError> {
    let late = Err(ImapError::Timeout("a removal"));
    let removed = timeout(STEP, canary.remove(put)).await.unwrap_or(late);
    if removed.is_ok() {
        canary.logout().await;
        return Ok(());
    }
    // It waited for a while, and servers end connections that do.
    let again = async {
        let again = Canary::over(mailbox.open().await?);
        let mut again = again.ok_or(ImapError::Protocol("no UIDPLUS any more"))?;
        again.remove(put).await?;
        again.logout().await;
        Ok(())
    };
    timeout(STEP, again).await.unwrap_or(removed)
}

fn subject(now: Timestamp) -> String {
    format!("Mailbell doctor: canary {}", now.as_millisecond())
}

/// Says what it is to whoever finds it.
fn text(now: Timestamp) -> String {
    let date = rfc2822::to_string(&Zoned::new(now, TimeZone::UTC)).unwrap_or_default();
    let subject = subject(now);
    let id = now.as_nanosecond();
    format!(
        "From: Mailbell doctor <doctor@mailbell.invalid>\r\n\
         Subject: {subject}\r\n\
         Date: {date}\r\n\
         Message-ID: <{id}@mailbell.invalid>\r\n\
         \r\n\
         `mailbell doctor --canary` has put this message here, to see whether it is pushed, and removes it.\r\n\
         If it is still here, remove it: nothing needs it.\r\n"
    )
}
