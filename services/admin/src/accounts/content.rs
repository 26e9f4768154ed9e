//! The content policy of an account.

use mailbell_core::schema::WriteVersion;
use mailbell_proto::push::v1::ContentLevel;

use crate::Error;

/// What is stored if this is asked for and that was stored before. A record without a policy is one that every release reads.
pub(super) fn policy(asked: i32, before: i32, version: WriteVersion) -> Result<i32, Error> {
    match ContentLevel::try_from(asked) {
        Err(_) => Err(Error::Invalid(
            "content: this content level is not known here.".to_owned(),
        )),
        Ok(ContentLevel::Unspecified) => Ok(before),
        Ok(ContentLevel::Preview) => Ok(ContentLevel::Unspecified.into()),
        Ok(_) if !version.has_content() => Err(Error::Managed(
            "an account with a content policy needs the upgrade of this installation to be finished (`mailbell setup --finish-upgrade`, \
             or finishUpgrade: true of the Mailbell): older watchers would store more of its mail"
                .to_owned(),
        )),
        Ok(level) => Ok(level.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSET: i32 = ContentLevel::Unspecified as i32;
    const KEY: i32 = ContentLevel::Key as i32;
    const HEADERS: i32 = ContentLevel::Headers as i32;
    const PREVIEW: i32 = ContentLevel::Preview as i32;

    #[test]
    fn an_upgrade_has_to_be_finished_before_there_is_less() {
        for level in [KEY, HEADERS] {
            let refused = policy(level, UNSET, WriteVersion::FIRST).unwrap_err();
            assert!(
                refused.to_string().contains("--finish-upgrade"),
                "{refused}"
            );
        }
        for none in [UNSET, PREVIEW] {
            assert_eq!(policy(none, UNSET, WriteVersion::FIRST).unwrap(), UNSET);
        }
    }

    #[test]
    fn what_is_not_asked_for_stays_and_a_preview_is_no_policy() {
        if !WriteVersion::NEWEST.has_content() {
            return;
        }
        let stored = |asked, before| policy(asked, before, WriteVersion::NEWEST).unwrap();
        assert_eq!(stored(KEY, HEADERS), KEY);
        assert_eq!(stored(UNSET, HEADERS), HEADERS);
        assert_eq!(stored(PREVIEW, HEADERS), UNSET);
        assert!(policy(9, UNSET, WriteVersion::NEWEST).is_err());
    }
}
