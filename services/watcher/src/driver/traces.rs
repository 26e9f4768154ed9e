//! The trace of each message that is on its way from the mail server to the log.

use std::{collections::VecDeque, time::SystemTime};

use mailbell_core::{event::Event, session::Fetched};
use mailbell_proto::push::v1::Message;
use mailbell_runtime::trace::{TraceContext, record_root, record_span, record_span_as};

use super::context::time_of;

/// A page of messages may wait while another is fetched; what is dropped and fetched anew gets a new trace.
const MOST: usize = 128;

#[derive(Debug)]
struct Started {
    root: TraceContext,
    /// Of the append: what the event's header carries.
    append: TraceContext,
    fetch_began: SystemTime,
}

/// Only of messages whose trace is sampled; the contexts of the others are of no further use.
#[derive(Debug, Default)]
pub(super) struct Traces {
    started: VecDeque<Started>,
}

impl Traces {
    /// Gives each message a trace.
    pub(super) fn begin(
        &mut self,
        messages: Vec<Message>,
        fetch_began: SystemTime,
    ) -> Vec<Fetched> {
        messages
            .into_iter()
            .map(|message| {
                let root = TraceContext::root();
                let append = root.child();
                if root.is_sampled() {
                    if self.started.len() >= MOST {
                        self.started.pop_front();
                    }
                    self.started.push_back(Started {
                        root,
                        append,
                        fetch_began,
                    });
                }
                Fetched {
                    message,
                    traceparent: append.to_string(),
                }
            })
            .collect()
    }

    /// The log holds the event.
    pub(super) fn end(&mut self, event: &Event, sent_us: i64, acknowledged_us: i64) {
        if self.started.is_empty() {
            return;
        }
        let Some(append) = TraceContext::parse(&event.traceparent) else {
            return;
        };
        let Some(index) = self
            .started
            .iter()
            .position(|started| started.append == append)
        else {
            return;
        };
        let Some(started) = self.started.remove(index) else {
            return;
        };
        let [detected, fetched] = [time_of(event.detected_us), time_of(event.fetched_us)];
        let [sent, acknowledged] = [time_of(sent_us), time_of(acknowledged_us)];
        let root = &started.root;
        record_span("detect", root, detected, started.fetch_began, []);
        record_span("fetch", root, started.fetch_began, fetched, []);
        record_span_as("append", root, &started.append, sent, acknowledged, []);
        record_root("message", root, detected, acknowledged, []);
        if self.started.is_empty() {
            self.started = VecDeque::new();
        }
    }
}
