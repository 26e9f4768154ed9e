//! One listing: all its pages.

use std::time::Duration;

use mailbell_proto::push::v1::{
    ListMessagesRequest, list_messages_request, push_client::PushClient,
};
use tonic::{Code, Status, transport::Channel};

use super::connection::authorized;
use crate::{
    session::{ListFailure, ListRequest, Listing, Span},
    status,
    token::Token,
};

const PAGE: u32 = 100;
/// So often a listing begins anew at once when the folder's generation changes under it.
const RESTARTS: u32 = 3;

/// What came of a listing.
pub(super) struct Answer {
    pub(super) ticket: u64,
    pub(super) listing: Result<Listing, ListFailure>,
    /// The token was refused.
    pub(super) refused: bool,
}

pub(super) async fn list(
    mut client: PushClient<Channel>,
    token: Token,
    content: i32,
    request: ListRequest,
    patience: Duration,
) -> Answer {
    let mut restarts = 0;
    let result = loop {
        match pages(&mut client, &token, content, &request, patience).await {
            Err(status) if status.code() == Code::Aborted && restarts < RESTARTS => restarts += 1,
            result => break result,
        }
    };
    if let Err(status) = &result {
        tracing::debug!(code = ?status.code(), folder = request.folder, "a listing failed");
    }
    Answer {
        ticket: request.ticket,
        refused: matches!(&result, Err(status) if status.code() == Code::Unauthenticated),
        listing: result.map_err(|status| status::of_listing(&status)),
    }
}

async fn pages(
    client: &mut PushClient<Channel>,
    token: &Token,
    content: i32,
    request: &ListRequest,
    patience: Duration,
) -> Result<Listing, Status> {
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let (range, last) = match request.span {
        Span::Newest => (
            list_messages_request::Range::Newest(request.limit),
            u32::MAX,
        ),
        Span::Uids { first, last } => (
            list_messages_request::Range::AfterUid(first.saturating_sub(1)),
            last,
        ),
    };
    let mut page = ListMessagesRequest {
        account: request.account.clone(),
        folder: request.folder,
        page_size: PAGE,
        content,
        range: Some(range),
        page_token: String::new(),
    };
    let mut listing: Option<Listing> = None;
    // A server that gives a next page for ever is not listened to for ever.
    for _ in 0..=request.limit / PAGE * 4 + 8 {
        let call = client.list_messages(authorized(page.clone(), token)?);
        let answer = tokio::time::timeout(patience, call)
            .await
            .map_err(|_| Status::deadline_exceeded("no page in time"))??
            .into_inner();
        let listing = listing.get_or_insert_with(|| Listing {
            generation: answer.generation,
            folder_name: answer.folder_name,
            messages: Vec::new(),
            exists: answer.exists,
            folders: answer.folders,
            more: false,
        });
        if listing.generation != answer.generation {
            return Err(Status::aborted("the generation changed between pages"));
        }
        let highest = answer.messages.last().map_or(0, |message| message.uid);
        let room = limit.saturating_sub(listing.messages.len());
        let many = answer.messages.len();
        listing.messages.extend(
            answer
                .messages
                .into_iter()
                .filter(|message| message.uid <= last)
                .take(room),
        );
        let full = listing.messages.len() >= limit;
        let ended = answer.next_page_token.is_empty() || highest >= last;
        if full || ended {
            listing.more = match request.span {
                Span::Newest => full,
                Span::Uids { .. } => !ended || many > room,
            };
            return Ok(listing.clone());
        }
        page.page_token = answer.next_page_token;
    }
    Err(Status::resource_exhausted("too many pages"))
}
