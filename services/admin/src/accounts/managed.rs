//! Who changes an account: one writer each.
//!
//! What is declared elsewhere is changed there, else each would undo what the other has done. The operator writes nothing but what it
//! declares, and takes no account over but one that carries its own external id, which it gives to nothing else: an account of that
//! kind that nobody manages was left by a release that did not know managers, or was made by hand to be taken over.

use mailbell_bus::Bus;
use mailbell_core::schema::WriteVersion;
use mailbell_proto::bus::v1::AccountRecord;

use crate::{Error, auth::Caller, validate::MailAccount};

/// What somebody is about to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    /// With this as `managed_by`; empty: it stays.
    Change(&'a str),
    Delete,
}

/// Whether the account may be made with this as `managed_by`.
pub(super) fn may_create(
    caller: Caller,
    bus: &Bus,
    managed_by: &str,
    external_id: &str,
) -> Result<(), Error> {
    may_set(caller, bus, managed_by)?;
    if caller == Caller::Operator && (managed_by.is_empty() || managed_by != external_id) {
        return Err(Error::Invalid(
            "managed_by: an account of the operator's has it, and the same as external_id."
                .to_owned(),
        ));
    }
    Ok(())
}

/// Whether the account that there is may be changed so.
pub(super) fn may_step(
    caller: Caller,
    bus: &Bus,
    record: &AccountRecord,
    step: Step<'_>,
) -> Result<(), Error> {
    let wanted = match step {
        Step::Change(wanted) => wanted,
        Step::Delete => "",
    };
    may_set(caller, bus, wanted)?;
    let manager = record.managed_by.as_str();
    match caller {
        Caller::Admin if manager.is_empty() => Ok(()),
        Caller::Admin => Err(Error::Managed(elsewhere(manager, step))),
        Caller::Operator if manager.is_empty() => {
            let is_meant = !wanted.is_empty() && wanted == record.external_id;
            is_meant.then_some(()).ok_or_else(|| {
                Error::Managed(
                    "nobody has declared this account elsewhere, so it is not the operator's to change; use an admin token"
                        .to_owned(),
                )
            })
        }
        Caller::Operator if wanted.is_empty() || wanted == manager => Ok(()),
        Caller::Operator => Err(Error::Managed(elsewhere(manager, step))),
    }
}

/// Whether this caller says who manages an account, and this installation can keep it.
fn may_set(caller: Caller, bus: &Bus, managed_by: &str) -> Result<(), Error> {
    if managed_by.is_empty() {
        return Ok(());
    }
    if caller != Caller::Operator {
        return Err(Error::Denied(
            "managed_by: it is set with the operator's token only".to_owned(),
        ));
    }
    if MailAccount::parse(managed_by).is_none() {
        return Err(Error::Invalid(format!(
            "managed_by: {}.",
            MailAccount::FORM
        )));
    }
    can_keep(bus.write_version())
}

/// An older process would drop what it does not know with its next change.
fn can_keep(version: WriteVersion) -> Result<(), Error> {
    if version.has_managers() {
        return Ok(());
    }
    Err(Error::Managed(
        "accounts that are declared elsewhere need the upgrade of this installation to be finished (`mailbell setup \
         --finish-upgrade`, or finishUpgrade: true of the Mailbell)"
            .to_owned(),
    ))
}

/// Where to go instead.
fn elsewhere(manager: &str, step: Step<'_>) -> String {
    let Some(MailAccount { namespace, name }) = MailAccount::parse(manager) else {
        return format!("this account is managed by {manager}: change it there");
    };
    let (verb, command) = match step {
        Step::Change(_) => ("change", "edit"),
        Step::Delete => ("delete", "delete"),
    };
    format!(
        "this account is declared by the MailAccount {name} in the namespace {namespace}: {verb} that (`kubectl {command} mailaccount \
         {name} -n {namespace}`); if it is there no longer, make it again under this name first"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_has_to_be_finished_first() {
        let refused = can_keep(WriteVersion::FIRST).unwrap_err();
        assert!(
            refused.to_string().contains("--finish-upgrade"),
            "{refused}"
        );
        assert_eq!(
            can_keep(WriteVersion::NEWEST).is_ok(),
            WriteVersion::NEWEST.number() >= 2
        );
    }

    #[test]
    fn the_sentence_says_where_to_go() {
        let text = elsewhere("mailaccount/mail/alice", Step::Change(""));
        assert!(
            text.contains("`kubectl edit mailaccount alice -n mail`"),
            "{text}"
        );
        let text = elsewhere("mailaccount/mail/alice", Step::Delete);
        assert!(
            text.contains("`kubectl delete mailaccount alice -n mail`"),
            "{text}"
        );
        // Of a release to come.
        let text = elsewhere("something/else", Step::Delete);
        assert!(text.contains("managed by something/else"), "{text}");
    }
}
