//! Frames as they lie on the wire: encoded once, with the prefix of a gRPC message, and then only passed on.

use bytes::{BufMut as _, Bytes, BytesMut};
use mailbell_core::delivery::Concerned;
use mailbell_proto::push::v1::{
    Cursor, GoAway, Hello, Live, Resync, ResyncReason, ServerFrame, resync::Scope,
    server_frame::Frame,
};

/// A gRPC message begins with a flag (0: not compressed) and its length in 4 bytes.
const PREFIX: usize = 5;

/// A frame with the prefix of a gRPC message.
pub(crate) fn encode(frame: Frame) -> Bytes {
    message(&ServerFrame { frame: Some(frame) })
}

/// Any message with the prefix of a gRPC message.
pub(crate) fn message(message: &impl prost::Message) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    // Every message is made here, and bounded by far less.
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The resume point.
pub(crate) fn cursor(token: Bytes, log_silent_since_ms: i64) -> Bytes {
    encode(Frame::Cursor(Cursor {
        token,
        log_silent_since_ms,
    }))
}

/// The replay is over. One constant of a few bytes, but made by the encoder.
pub(crate) fn live() -> Bytes {
    encode(Frame::Live(Live {}))
}

/// The first frame.
pub(crate) fn hello(hello: Hello) -> Bytes {
    encode(Frame::Hello(hello))
}

/// This stream ends soon.
pub(crate) fn go_away(reconnect_after_ms: u32, reason: &str) -> Bytes {
    encode(Frame::GoAway(GoAway {
        reconnect_after_ms,
        reason: reason.to_owned(),
    }))
}

/// List what is concerned, because of something that concerns this stream alone.
pub(crate) fn resync(concerned: &Concerned, reason: ResyncReason, retry_after_ms: u32) -> Bytes {
    let scope = match concerned {
        Concerned::Everything => Scope {
            everything: true,
            ..Scope::default()
        },
        Concerned::Account(account) => Scope {
            account: account.to_string(),
            ..Scope::default()
        },
    };
    encode(Frame::Resync(Resync {
        scope: Some(scope),
        reason: reason.into(),
        retry_after_ms,
        ..Resync::default()
    }))
}

#[cfg(test)]
pub(crate) fn decode(bytes: &Bytes) -> Frame {
    use prost::Message as _;

    assert_eq!(bytes[0], 0);
    let len = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    assert_eq!(len as usize, bytes.len() - PREFIX);
    ServerFrame::decode(bytes.slice(PREFIX..))
        .unwrap()
        .frame
        .unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_prefix_of_a_grpc_message() {
        let token = Bytes::from_static(b"opaque");
        let Frame::Cursor(read) = decode(&cursor(token.clone(), 7)) else {
            panic!("no cursor");
        };
        assert_eq!((read.token, read.log_silent_since_ms), (token, 7));
        assert_eq!(decode(&live()), Frame::Live(Live {}));
        let Frame::Resync(read) =
            decode(&resync(&Concerned::Everything, ResyncReason::BadCursor, 3))
        else {
            panic!("no resync");
        };
        assert!(read.scope.unwrap().everything && read.key.is_none());
        assert_eq!(read.retry_after_ms, 3);
    }
}
