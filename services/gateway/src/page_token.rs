//! Where the next page of a listing begins.
//!
//! A token grants nothing: whatever it says is judged like a request, and the account is judged against the caller's own
//! token. So it is checked against damage and against being used for another listing, but not signed.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use mailbell_core::{cursor::Cursor, ids::Uid};
use mailbell_proto::push::v1::{ListMessagesRequest, list_messages_request::Range};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

const VERSION: u32 = 1;
/// A token has some 600 bytes.
const MAX_TEXT: usize = 2048;
const SUM: usize = 8;

/// The token does not belong to this listing, or is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotThisListing;

/// See the module.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PageToken {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The listing: account, folder and range as they were asked for.
    #[prost(fixed64, tag = "2")]
    listing: u64,
    /// The folder's generation when the first page was read.
    #[prost(uint32, tag = "3")]
    pub(crate) generation: u32,
    /// Newest: the next page ends here. After a UID: it begins here.
    #[prost(uint32, tag = "4")]
    pub(crate) edge: Uid,
    /// Newest: how many messages are still asked for.
    #[prost(uint32, tag = "5")]
    pub(crate) remaining: u32,
    /// Taken before the first page.
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) cursor: Bytes,
}

/// What makes two requests pages of one listing.
fn listing(request: &ListMessagesRequest) -> u64 {
    let (range, value) = match request.range {
        Some(Range::Newest(count)) => ("newest", count),
        Some(Range::AfterUid(uid)) => ("after", uid),
        None => ("none", 0),
    };
    let (account, folder) = (&request.account, request.folder);
    xxh3_64(format!("{account}/{folder}/{range}/{value}").as_bytes())
}

impl PageToken {
    /// The token of the page after one of this request.
    pub(crate) fn new(
        request: &ListMessagesRequest,
        generation: u32,
        edge: Uid,
        remaining: u32,
        cursor: Bytes,
    ) -> Self {
        Self {
            version: VERSION,
            listing: listing(request),
            generation,
            edge,
            remaining,
            cursor,
        }
    }

    /// As text.
    pub(crate) fn to_text(&self) -> String {
        let mut bytes = self.encode_to_vec();
        bytes.extend(xxh3_64(&bytes).to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads the token of a request.
    pub(crate) fn of(request: &ListMessagesRequest) -> Result<Self, NotThisListing> {
        let text = &request.page_token;
        if text.len() > MAX_TEXT {
            return Err(NotThisListing);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| NotThisListing)?;
        let (body, sum) = bytes
            .len()
            .checked_sub(SUM)
            .and_then(|len| bytes.split_at_checked(len))
            .ok_or(NotThisListing)?;
        if xxh3_64(body).to_be_bytes() != sum {
            return Err(NotThisListing);
        }
        let token = Self::decode(body).map_err(|_| NotThisListing)?;
        let whole = token.version == VERSION
            && token.listing == listing(request)
            && token.generation > 0
            && token.edge > 0
            && Cursor::decode(&token.cursor).is_ok();
        whole.then_some(token).ok_or(NotThisListing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ListMessagesRequest {
        ListMessagesRequest {
            account: "a.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            folder: 1,
            range: Some(Range::Newest(500)),
            ..ListMessagesRequest::default()
        }
    }

    fn with(token: &str) -> ListMessagesRequest {
        ListMessagesRequest {
            page_token: token.to_owned(),
            ..request()
        }
    }

    fn token() -> PageToken {
        PageToken::new(&request(), 7, 42, 450, Cursor::default().encode())
    }

    #[test]
    fn a_token_serves_its_own_listing_only() {
        let text = token().to_text();
        assert_eq!(PageToken::of(&with(&text)), Ok(token()));
        assert!(text.len() < MAX_TEXT / 2);
        let wrong: [fn(&mut ListMessagesRequest); 4] = [
            |other| other.account = "a.01ARZ3NDEKTSV4RRFFQ69G5FAW".to_owned(),
            |other| other.folder = 2,
            |other| other.range = Some(Range::Newest(501)),
            |other| other.range = Some(Range::AfterUid(500)),
        ];
        for change in wrong {
            let mut other = with(&text);
            change(&mut other);
            assert_eq!(PageToken::of(&other), Err(NotThisListing));
        }
        // The size of a page may change from page to page.
        let mut other = with(&text);
        other.page_size = 9;
        assert!(PageToken::of(&other).is_ok());
    }

    #[test]
    fn damage_is_noticed() {
        let text = token().to_text();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(bytes).unwrap();
            // The last character's low bits carry nothing.
            if BASE64_URL_SAFE_NO_PAD.decode(&damaged).ok()
                != BASE64_URL_SAFE_NO_PAD.decode(&text).ok()
            {
                assert_eq!(PageToken::of(&with(&damaged)), Err(NotThisListing), "{at}");
            }
        }
        for bad in ["x", "AAAA", &"A".repeat(MAX_TEXT + 1)] {
            assert_eq!(PageToken::of(&with(bad)), Err(NotThisListing));
        }
        let zero = PageToken { edge: 0, ..token() };
        assert_eq!(PageToken::of(&with(&zero.to_text())), Err(NotThisListing));
    }
}
