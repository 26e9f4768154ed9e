//! Logs in once on a connection of its own and looks at the folders, so that whoever adds an account hears at once what is wrong.

use mailbell_core::{ids::AccountId, session::Failure};
use mailbell_imap::{self as imap, Capability};
use mailbell_proto::bus::v1::{
    AccountRecord, CheckLogin, CheckResult, FolderResult, OwnerError, SealedCredential,
};

use crate::{
    driver::{Context, connect},
    failure,
};

/// Folders that are looked at.
const MAX_FOLDERS: usize = 64;

/// What people ask about, by the names of the RFCs.
const CAPABILITIES: [(&str, Capability); 8] = [
    ("IDLE", Capability::Idle),
    ("NOTIFY", Capability::Notify),
    ("CONDSTORE", Capability::CondStore),
    ("QRESYNC", Capability::QResync),
    ("OBJECTID", Capability::ObjectId),
    ("X-GM-EXT-1", Capability::Gmail),
    ("SPECIAL-USE", Capability::SpecialUse),
    ("UIDPLUS", Capability::UidPlus),
];

/// Checks the given settings, or what is stored.
pub(super) async fn check(
    context: &Context,
    account: &AccountId,
    request: CheckLogin,
) -> Result<CheckResult, OwnerError> {
    let (record, sealed) = match stored(context, account, request).await? {
        Ok(found) => found,
        Err(failure) => return Ok(not_ok(&failure)),
    };
    let mut connection = match connect(context, account, &record, &sealed).await {
        Ok(connection) => connection,
        Err(failure) => return Ok(not_ok(&failure)),
    };
    let capabilities = connection.capabilities();
    let mut result = CheckResult {
        ok: true,
        code: "ok".to_owned(),
        sentence: "The login works.".to_owned(),
        handshake_ms: u32::try_from(connection.handshake().as_millis()).unwrap_or(u32::MAX),
        capabilities: CAPABILITIES
            .iter()
            .filter(|(_, capability)| capabilities.has(*capability))
            .map(|(name, _)| (*name).to_owned())
            .collect(),
        folders: Vec::new(),
    };
    let inbox = ["INBOX".to_owned()];
    let folders: &[String] = match record.folders.get(..MAX_FOLDERS) {
        Some(first) => first,
        None if record.folders.is_empty() => &inbox,
        None => &record.folders,
    };
    for folder in folders {
        // As a session would: what can be opened is what can be watched. No message is as high as this UID.
        let looked = connection.look(folder, u32::MAX, 1, true).await;
        let looked = looked.map_err(|error| (failure::of_mail(&error, folder), error));
        let (look, exists) = match looked {
            Ok(look) => (Some(look), true),
            Err((failure, imap::Error::NoSuchFolder)) => {
                if result.ok {
                    fail(&mut result, &failure);
                }
                (None, false)
            }
            Err((failure, _)) => {
                fail(&mut result, &failure);
                return Ok(result);
            }
        };
        result.folders.push(FolderResult {
            name: folder.clone(),
            exists,
            messages: look.as_ref().map_or(0, |look| look.exists),
            generation: look.as_ref().map_or(0, |look| look.uid_validity),
            uid_next: look.as_ref().map_or(0, |look| look.uid_next),
        });
    }
    connection.logout().await;
    Ok(result)
}

type Settings = (AccountRecord, SealedCredential);

/// The settings to be checked: each half that the request does not give is the stored one.
async fn stored(
    context: &Context,
    account: &AccountId,
    request: CheckLogin,
) -> Result<Result<Settings, Failure>, OwnerError> {
    let ledger = &context.ledger;
    let record = match request.account {
        Some(record) => record,
        None => match ledger.record(account.clone()).await {
            Ok(Some(record)) if record.removed_at_ms == 0 => record,
            Ok(_) => return Err(failure::refused(failure::NO_SUCH_ACCOUNT)),
            Err(_) => return Err(failure::refuse(&failure::credential_unavailable())),
        },
    };
    let sealed = match request.credential {
        Some(sealed) => sealed,
        None => match ledger.credential(account.clone()).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Ok(Err(failure::no_credential())),
            Err(_) => return Err(failure::refuse(&failure::credential_unavailable())),
        },
    };
    Ok(Ok((record, sealed)))
}

fn fail(result: &mut CheckResult, failure: &Failure) {
    result.ok = false;
    result.code = failure.code.to_owned();
    result.sentence.clone_from(&failure.sentence);
}

fn not_ok(failure: &Failure) -> CheckResult {
    let mut result = CheckResult::default();
    fail(&mut result, failure);
    result
}
