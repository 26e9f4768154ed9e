//! What a stream is about: what was asked for, within what the token allows.

use mailbell_core::{
    cursor::Subject,
    delivery::{ALL_KINDS, Subscription},
    ids::AccountId,
    token::{Grant, MAX_ACCOUNTS},
};
use mailbell_proto::push::v1::{ContentLevel, EventKind, SubscribeRequest};
use tonic::Status;

use crate::device::covers;

/// What a client may name itself.
const MAX_CLIENT: usize = 128;

/// A request within its token.
#[derive(Debug)]
pub(crate) struct Narrowed {
    pub(crate) subscription: Subscription,
    pub(crate) level: ContentLevel,
    /// The request named its accounts: one that does not exist is an error then.
    pub(crate) named: bool,
}

/// The smaller of what is asked for and what is allowed.
pub(crate) fn level(asked: i32, most: ContentLevel) -> Result<ContentLevel, Status> {
    let asked = ContentLevel::try_from(asked)
        .map_err(|_| Status::invalid_argument("no such content level"))?;
    Ok(match asked {
        ContentLevel::Unspecified => most,
        asked => asked.min(most),
    })
}

/// Judges a request.
pub(crate) fn narrow(request: &SubscribeRequest, grant: &Grant) -> Result<Narrowed, Status> {
    if request.client.len() > MAX_CLIENT {
        return Err(Status::invalid_argument("`client` is at most 128 bytes"));
    }
    let subject = subject(request, grant)?;
    Ok(Narrowed {
        subscription: Subscription {
            subject,
            kinds: kinds(&request.kinds)?,
        },
        level: level(request.content, grant.content)?,
        named: !request.accounts.is_empty(),
    })
}

fn subject(request: &SubscribeRequest, grant: &Grant) -> Result<Subject, Status> {
    if request.whole_tenant {
        if !request.accounts.is_empty() {
            return Err(Status::invalid_argument(
                "either `accounts` or `whole_tenant`",
            ));
        }
        return match &grant.subject {
            Subject::Tenant(_) => Ok(grant.subject.clone()),
            Subject::Accounts(_) => Err(Status::permission_denied(
                "the token does not name the whole tenant",
            )),
        };
    }
    if request.accounts.is_empty() {
        return Ok(grant.subject.clone());
    }
    if request.accounts.len() > MAX_ACCOUNTS {
        return Err(Status::invalid_argument(
            "at most 256 accounts; a tenant's token can name them all",
        ));
    }
    let accounts: Vec<AccountId> = request
        .accounts
        .iter()
        .map(|account| account.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| Status::invalid_argument("not an account id"))?;
    let subject = Subject::accounts(accounts);
    if !covers(&grant.subject, &subject) {
        return Err(Status::permission_denied(
            "the token does not name one of these accounts",
        ));
    }
    Ok(subject)
}

fn kinds(asked: &[i32]) -> Result<u32, Status> {
    if asked.is_empty() {
        return Ok(ALL_KINDS);
    }
    let mut kinds = 0;
    for kind in asked {
        match EventKind::try_from(*kind) {
            Ok(EventKind::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument("no such kind of event"));
            }
            Ok(kind) => kinds |= 1 << kind as u32,
        }
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const ONE: &str = "a.01ARZ3NDEKTSV4RRFFQ69G5FAV";
    const TWO: &str = "a.01ARZ3NDEKTSV4RRFFQ69G5FAW";
    const OTHER: &str = "b.01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn grant(subject: Subject) -> Grant {
        Grant {
            token_id: "1".to_owned(),
            tenant: "a".parse().unwrap(),
            subject,
            content: ContentLevel::Headers,
            expires: 0,
        }
    }

    fn accounts(ids: &[&str]) -> Subject {
        Subject::accounts(ids.iter().map(|id| id.parse().unwrap()))
    }

    fn asked(ids: &[&str]) -> SubscribeRequest {
        SubscribeRequest {
            accounts: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..SubscribeRequest::default()
        }
    }

    fn refused(request: &SubscribeRequest, grant: &Grant) -> Code {
        narrow(request, grant).unwrap_err().code()
    }

    #[test]
    fn never_beyond_the_token() {
        let some = grant(accounts(&[ONE, TWO]));
        let all = narrow(&asked(&[]), &some).unwrap();
        assert_eq!(all.subscription.subject, accounts(&[ONE, TWO]));
        assert!(!all.named && all.level == ContentLevel::Headers);
        let one = narrow(&asked(&[ONE, ONE]), &some).unwrap();
        assert_eq!(one.subscription.subject, accounts(&[ONE]));
        assert!(one.named);
        assert_eq!(refused(&asked(&[OTHER]), &some), Code::PermissionDenied);
        assert_eq!(
            refused(&asked(&[ONE, OTHER]), &some),
            Code::PermissionDenied
        );
        let whole = SubscribeRequest {
            whole_tenant: true,
            ..asked(&[])
        };
        assert_eq!(refused(&whole, &some), Code::PermissionDenied);
        let tenant = grant(Subject::Tenant("a".parse().unwrap()));
        let all = narrow(&whole, &tenant).unwrap();
        assert_eq!(all.subscription.subject, tenant.subject);
        assert!(narrow(&asked(&[TWO]), &tenant).is_ok());
        assert_eq!(refused(&asked(&[OTHER]), &tenant), Code::PermissionDenied);
    }

    #[test]
    fn levels_and_kinds() {
        let some = grant(accounts(&[ONE]));
        let with = |content: ContentLevel| SubscribeRequest {
            content: content.into(),
            ..asked(&[])
        };
        let level = |content| narrow(&with(content), &some).unwrap().level;
        assert_eq!(level(ContentLevel::Key), ContentLevel::Key);
        assert_eq!(level(ContentLevel::Preview), ContentLevel::Headers);
        let kinds = |kinds: &[i32]| SubscribeRequest {
            kinds: kinds.to_vec(),
            ..asked(&[])
        };
        let mask = |list: &[i32]| narrow(&kinds(list), &some).unwrap().subscription.kinds;
        assert_eq!(mask(&[]), ALL_KINDS);
        assert_eq!(mask(&[1, 3, 3]), 0b1010);
        for bad in [&[0][..], &[7], &[-1], &[1, 99]] {
            assert_eq!(refused(&kinds(bad), &some), Code::InvalidArgument);
        }
    }

    #[test]
    fn nonsense_is_an_invalid_argument() {
        let some = grant(accounts(&[ONE]));
        let both = SubscribeRequest {
            whole_tenant: true,
            ..asked(&[ONE])
        };
        let long = SubscribeRequest {
            client: "x".repeat(129),
            ..asked(&[])
        };
        let level = SubscribeRequest {
            content: 9,
            ..asked(&[])
        };
        for bad in [both, long, level, asked(&["x"]), asked(&[ONE; 257])] {
            assert_eq!(refused(&bad, &some), Code::InvalidArgument);
        }
    }
}
