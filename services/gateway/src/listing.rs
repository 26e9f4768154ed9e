//! `ListMessages`: what lies in a folder, asked of the watcher that owns the account.

use std::time::Duration;

use mailbell_bus::AskError;
use mailbell_core::{
    content::strip,
    ids::{AccountId, INBOX},
    token::Grant,
};
use mailbell_proto::{
    bus::v1::{
        ListPage, OwnerError, OwnerRequest, PageResult, owner_request::Request,
        owner_response::Response,
    },
    push::v1::{
        ContentLevel, ListMessagesRequest, ListMessagesResponse, list_messages_request::Range,
    },
};
use tonic::Status;

use crate::{
    attach,
    dispatcher::Command,
    metrics::Outcome,
    narrow::level,
    page_token::PageToken,
    shared::{Shared, status_word, unavailable, unjoined},
};

/// The most messages of one listing of the newest.
const MAX_NEWEST: u32 = 10_000;
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 100;

/// Answers, and counts how.
pub(crate) async fn list(
    shared: &Shared,
    grant: &Grant,
    request: ListMessagesRequest,
) -> Result<ListMessagesResponse, Status> {
    let answer = page(shared, grant, request).await;
    let outcome = match &answer {
        Ok(_) => "ok",
        Err(status) => status_word(status.code()),
    };
    let listings = &shared.metrics.listings;
    listings.get_or_create(&Outcome { outcome }).inc();
    answer
}

async fn page(
    shared: &Shared,
    grant: &Grant,
    mut request: ListMessagesRequest,
) -> Result<ListMessagesResponse, Status> {
    let account: AccountId = request
        .account
        .parse()
        .map_err(|_| Status::invalid_argument("not an account id"))?;
    if !grant.subject.covers(&account) {
        return Err(Status::permission_denied(
            "the token does not name this account",
        ));
    }
    let level = level(request.content, grant.content)?;
    if request.folder == 0 {
        request.folder = INBOX;
    }
    let listing = Listing::of(&request)?;
    let _permit = shared
        .listings
        .try_acquire()
        .map_err(|_| unavailable("too many listings at once", Duration::from_secs(1)))?;
    let cursor = match &listing.token {
        Some(token) => token.cursor.clone(),
        // Before the mailbox is read: whatever the pages lack comes after it.
        None => {
            let group = account.group();
            let cursor = shared.command(|reply| Command::CursorNow(group, reply));
            cursor.await?.ok_or_else(unjoined)?
        }
    };
    let page = ask(shared, &account, &listing).await?;
    Ok(listing.answer(&request, page, cursor, level))
}

/// One page as it was asked for, judged.
#[derive(Debug)]
struct Listing {
    token: Option<PageToken>,
    range: Range,
    /// Newest: how many messages are still to come, this page included.
    remaining: u32,
    ask: ListPage,
}

impl Listing {
    fn of(request: &ListMessagesRequest) -> Result<Self, Status> {
        let token = match request.page_token.as_str() {
            "" => None,
            _ => Some(PageToken::of(request).map_err(|_| {
                Status::invalid_argument("the page token is not one of this listing")
            })?),
        };
        let size = match request.page_size {
            0 => PAGE,
            size => size.min(MAX_PAGE),
        };
        let range = request.range.unwrap_or(Range::Newest(PAGE));
        let generation = token.as_ref().map_or(0, |token| token.generation);
        let edge = token.as_ref().map(|token| token.edge);
        let (remaining, first_uid, last_uid, newest) = match range {
            Range::Newest(count) if count == 0 || count > MAX_NEWEST => {
                return Err(Status::invalid_argument("`newest` is 1 to 10,000"));
            }
            Range::Newest(count) => {
                let remaining = token.as_ref().map_or(count, |token| token.remaining);
                (remaining.min(count), 0, edge.unwrap_or(0), true)
            }
            Range::AfterUid(u32::MAX) => {
                return Err(Status::invalid_argument("no UID is greater than that"));
            }
            Range::AfterUid(uid) => (u32::MAX, edge.unwrap_or(uid + 1), 0, false),
        };
        let limit = size.min(remaining);
        if limit == 0 {
            return Err(Status::invalid_argument("the page token asks for nothing"));
        }
        Ok(Self {
            token,
            range,
            remaining,
            ask: ListPage {
                folder: request.folder,
                first_uid,
                last_uid,
                limit,
                newest,
                generation,
            },
        })
    }

    fn answer(
        &self,
        request: &ListMessagesRequest,
        page: PageResult,
        cursor: bytes::Bytes,
        level: ContentLevel,
    ) -> ListMessagesResponse {
        let mut messages = page.messages;
        // The owner keeps to it; a page is bounded here whatever it does.
        messages.truncate(self.ask.limit as usize);
        messages.sort_unstable_by_key(|message| message.uid);
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let next = match self.range {
            Range::Newest(_) => {
                let edge = messages
                    .first()
                    .map_or(0, |oldest| oldest.uid.saturating_sub(1));
                (edge, self.remaining.saturating_sub(count))
            }
            Range::AfterUid(_) => {
                let edge = messages.last().and_then(|newest| newest.uid.checked_add(1));
                (edge.unwrap_or(0), u32::MAX)
            }
        };
        let next_page_token = match next {
            (edge, remaining) if page.more && edge > 0 && remaining > 0 => {
                let cursor = cursor.clone();
                PageToken::new(request, page.generation, edge, remaining, cursor).to_text()
            }
            _ => String::new(),
        };
        ListMessagesResponse {
            messages: messages
                .into_iter()
                .map(|message| strip(message, level))
                .collect(),
            next_page_token,
            generation: page.generation,
            uid_next: page.uid_next,
            folder_name: match level {
                ContentLevel::Key => String::new(),
                _ => page.folder_name,
            },
            cursor,
            exists: page.exists,
            folders: page.folders,
        }
    }
}

async fn ask(
    shared: &Shared,
    account: &AccountId,
    listing: &Listing,
) -> Result<PageResult, Status> {
    let request = OwnerRequest {
        request: Some(Request::List(listing.ask)),
        ..OwnerRequest::default()
    };
    let timeout = shared.options.list_timeout;
    let second = Duration::from_secs(1);
    let response = match shared.source.ask(account, request, timeout).await {
        Ok(answer) => answer.response,
        Err(AskError::NoOwner) => {
            // Nobody owns what does not exist, and nobody owns it for a moment in a hand-over.
            return match attach::state(shared, account).await {
                Some(state) if state.health() == mailbell_proto::push::v1::Health::Removed => {
                    Err(Status::not_found("this account does not exist"))
                }
                _ => Err(unavailable("the account changes hands", second)),
            };
        }
        Err(AskError::Timeout | AskError::Disconnected) => {
            return Err(unavailable("the account's owner does not answer", second));
        }
        Err(error) => {
            tracing::warn!(%error, "an owner cannot be asked");
            return Err(unavailable(
                "the account's owner cannot be asked",
                second * 5,
            ));
        }
    };
    match response {
        Some(Response::Page(page)) => Ok(page),
        Some(Response::Error(error)) => Err(refusal(&error)),
        Some(Response::Check(_) | Response::Login(_)) | None => {
            tracing::warn!("an owner answered something else than it was asked");
            Err(unavailable("the account's owner answered nonsense", second))
        }
    }
}

/// What the owner's refusal means to a device. Its sentence is for whoever runs the account and is not passed on.
fn refusal(error: &OwnerError) -> Status {
    match error.code.as_str() {
        "generation-changed" => {
            Status::aborted("the folder was made anew: begin with the first page")
        }
        "no-such-account" => Status::not_found("this account does not exist"),
        "no-such-folder" => Status::not_found("this folder does not exist"),
        "busy" => unavailable("the account's owner is busy", Duration::from_secs(2)),
        _ if error.retry => unavailable("the mailbox cannot be read now", Duration::from_secs(2)),
        // Until a person acts, which AccountState tells. It is tried again all the same, only not soon.
        _ => unavailable("the mailbox cannot be read now", Duration::from_secs(60)),
    }
}

#[cfg(test)]
mod tests {
    use mailbell_core::cursor::Cursor;
    use mailbell_proto::push::v1::Message;
    use tonic::Code;

    use super::*;

    fn request(range: Range) -> ListMessagesRequest {
        ListMessagesRequest {
            account: "a.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            folder: 1,
            range: Some(range),
            page_size: 4,
            ..ListMessagesRequest::default()
        }
    }

    /// An owner with messages 1 to `count`.
    fn owner(ask: &ListPage, count: u32) -> PageResult {
        let first = ask.first_uid.max(1);
        let last = match ask.last_uid {
            0 => count,
            last => last.min(count),
        };
        let all: Vec<u32> = (first..=last).collect();
        let size = all.len().min(ask.limit as usize);
        let uids = match ask.newest {
            true => &all[all.len() - size..],
            false => &all[..size],
        };
        let message = |uid: &u32| Message {
            uid: *uid,
            preview: "text".to_owned(),
            ..Message::default()
        };
        PageResult {
            messages: uids.iter().map(message).collect(),
            generation: 7,
            uid_next: count + 1,
            exists: count,
            folder_name: "INBOX".to_owned(),
            more: size < all.len(),
            folders: vec![1, 2],
        }
    }

    fn pages(range: Range, count: u32) -> Vec<Vec<u32>> {
        let mut request = request(range);
        let cursor = Cursor::default().encode();
        let mut pages = Vec::new();
        loop {
            let listing = Listing::of(&request).unwrap();
            let page = owner(&listing.ask, count);
            let answer = listing.answer(&request, page, cursor.clone(), ContentLevel::Headers);
            assert!(answer.messages.iter().all(|m| m.preview.is_empty()));
            assert_eq!(
                (answer.cursor.clone(), answer.folders.len()),
                (cursor.clone(), 2)
            );
            pages.push(answer.messages.iter().map(|m| m.uid).collect());
            if answer.next_page_token.is_empty() {
                return pages;
            }
            request.page_token = answer.next_page_token;
        }
    }

    #[test]
    fn newest_goes_from_the_newest_to_the_oldest() {
        assert_eq!(
            pages(Range::Newest(10), 20),
            [vec![17, 18, 19, 20], vec![13, 14, 15, 16], vec![11, 12]]
        );
        assert_eq!(pages(Range::Newest(10), 3), [vec![1, 2, 3]]);
        assert_eq!(pages(Range::Newest(8), 4), [vec![1, 2, 3, 4]]);
        assert_eq!(pages(Range::Newest(1), 0), [Vec::<u32>::new()]);
    }

    #[test]
    fn after_a_uid_goes_from_the_oldest_to_the_newest() {
        assert_eq!(pages(Range::AfterUid(0), 6), [vec![1, 2, 3, 4], vec![5, 6]]);
        assert_eq!(pages(Range::AfterUid(4), 6), [vec![5, 6]]);
        assert_eq!(pages(Range::AfterUid(9), 6), [Vec::<u32>::new()]);
    }

    #[test]
    fn bounds_are_kept() {
        let mut large = request(Range::Newest(10_000));
        large.page_size = 5000;
        assert_eq!(Listing::of(&large).unwrap().ask.limit, MAX_PAGE);
        large.page_size = 0;
        assert_eq!(Listing::of(&large).unwrap().ask.limit, PAGE);
        for bad in [
            Range::Newest(0),
            Range::Newest(10_001),
            Range::AfterUid(u32::MAX),
        ] {
            let status = Listing::of(&request(bad)).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
        }
        let unset = ListMessagesRequest {
            range: None,
            ..large
        };
        assert_eq!(Listing::of(&unset).unwrap().remaining, PAGE);
    }

    #[test]
    fn an_owners_refusal_is_one_of_the_documented_statuses() {
        let status = |code: &str, retry| {
            let error = OwnerError {
                code: code.to_owned(),
                sentence: "secret words".to_owned(),
                retry,
            };
            let status = refusal(&error);
            assert!(!status.message().contains("secret"));
            status.code()
        };
        assert_eq!(status("generation-changed", false), Code::Aborted);
        assert_eq!(status("no-such-account", false), Code::NotFound);
        assert_eq!(status("no-such-folder", false), Code::NotFound);
        assert_eq!(status("busy", true), Code::Unavailable);
        assert_eq!(status("not-owner", true), Code::Unavailable);
        assert_eq!(status("bad-credentials", false), Code::Unavailable);
    }
}
