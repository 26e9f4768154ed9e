//! The trace of one message, from its detection to the written frame, apart from the spans of `tracing`.
//!
//! A message crosses tasks, a log and processes, and lies still in between; a span that follows a scope fits none of it. So a
//! hop is recorded when it is over, with its own start and end, under the [`TraceContext`] that travels beside the message
//! (in the event's routing header, as a W3C `traceparent`). Every message makes ONE trace:
//!
//! ```text
//! message   root, detection -> append acknowledged             watcher   record_root
//!   detect    EXISTS read -> the fetch begins                            record_span
//!   fetch     the fetch -> its answer parsed                             record_span
//!   append    sent to the log -> acknowledged                            record_span_as, with the context drawn before:
//!     receive   appended -> in the gateway's hands             gateway   it is the `traceparent` of the event's header
//!     queue     put into the device's queue -> taken out       gateway
//!     write     taken out -> handed to the stream              gateway
//! ```
//!
//! Without OTLP nothing is recorded and a call costs a load and a branch; contexts are made all the same.

mod record;

use std::{fmt, str::FromStr};

pub use opentelemetry::KeyValue;

pub(crate) use record::{Ids, Sampling, install};
pub use record::{is_enabled, record_root, record_span, record_span_as};

/// Where in which trace something happens: the W3C trace context, without `tracestate` (we have nothing to say in it).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// Never 0.
    trace_id: u128,
    /// Never 0.
    span_id: u64,
    sampled: bool,
}

/// A text that is no `traceparent`. It is not shown: it came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct NotATraceparent;

/// Length of a `traceparent` of version 00: `00-<32>-<16>-<2>`.
const LEN: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

impl TraceContext {
    /// A new trace. Sampled as `--otlp-sample` says, never without OTLP: the flag tells everyone downstream whether to record.
    #[must_use]
    pub fn root() -> Self {
        Self::root_with(record::sample_root())
    }

    /// A new trace whose flag is given.
    #[must_use]
    pub fn root_with(sampled: bool) -> Self {
        // `| 1` keeps 0, which means "none", out; one bit of 128 (of 64) is not missed.
        Self {
            trace_id: rand::random::<u128>() | 1,
            span_id: rand::random::<u64>() | 1,
            sampled,
        }
    }

    /// A new place in the same trace.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span_id: rand::random::<u64>() | 1,
            ..*self
        }
    }

    /// Reads a `traceparent`; `None` for anything the standard calls invalid, where a receiver starts a trace of its own or none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // Bounded before it is split: the text came over a network.
        let known = text.get(..LEN)?;
        let mut parts = known.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = hex(parts.next()?, 2)?;
        let rest = text.get(LEN..)?;
        let longer_is_fine = version > 0 && rest.starts_with('-');
        if parts.next().is_some()
            || version == 0xff
            || !(rest.is_empty() || longer_is_fine)
            || trace_id == 0
            || span_id == 0
        {
            return None;
        }
        Some(Self {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
        })
    }

    /// The trace's id as 32 hexadecimal digits, as shown by every tool.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The span's id as 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }
}

/// The `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id,
            self.span_id,
            u8::from(self.sampled)
        )
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

impl FromStr for TraceContext {
    type Err = NotATraceparent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or(NotATraceparent)
    }
}

/// Lower-case only, as the standard demands; `from_str_radix` alone would let `+` and upper case through.
fn hex(digits: &str, len: usize) -> Option<u128> {
    let valid = digits.len() == len
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if valid {
        u128::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_standards_example_survives_a_round_trip() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id(), "00f067aa0ba902b7");
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(EXAMPLE.parse(), Ok(context));
    }

    #[test]
    fn invalid_ones_are_refused() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736x00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0é",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NotATraceparent), "{bad}");
        }
    }

    #[test]
    fn a_later_version_may_be_longer() {
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        let context = TraceContext::parse(later).unwrap();
        // Written as the version that we know, with the flags that we know.
        assert_eq!(context.to_string(), EXAMPLE);
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        let root = TraceContext::root_with(true);
        let child = root.child();
        assert_eq!(child.trace_id(), root.trace_id());
        assert_ne!(child.span_id(), root.span_id());
        assert!(child.is_sampled());
        assert_ne!(TraceContext::root_with(true).trace_id(), root.trace_id());
        assert_eq!(format!("{root:?}"), format!("TraceContext({root})"));
    }

    #[test]
    fn without_otlp_nothing_is_sampled_and_recording_is_harmless() {
        assert!(!is_enabled());
        let root = TraceContext::root();
        assert!(!root.is_sampled());
        let now = std::time::SystemTime::now();
        record_root("message", &root, now, now, []);
        let child = record_span("detect", &root, now, now, [KeyValue::new("kind", "test")]);
        assert_eq!(child.trace_id(), root.trace_id());
    }
}
