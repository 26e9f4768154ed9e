//! Spans with given ids and times, through the installed tracer provider.

use std::{cell::Cell, sync::OnceLock, time::SystemTime};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt as _,
        TraceFlags, TraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, SamplingResult, SdkTracer,
    ShouldSample,
};

use super::TraceContext;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

#[derive(Debug)]
struct Recorder {
    tracer: SdkTracer,
    sample: f64,
}

thread_local! {
    /// The ids of the span that is being built on this thread. The SDK draws every id itself; a context that has
    /// already left in a message's header must become exactly that span, so our generator hands it out.
    static GIVEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Makes this tracer the one that messages are recorded with. Only the first call of a process counts.
pub(crate) fn install(tracer: SdkTracer, sample: f64) {
    let _ = RECORDER.set(Recorder { tracer, sample });
}

/// Whether recording goes anywhere.
#[must_use]
pub fn is_enabled() -> bool {
    RECORDER.get().is_some()
}

pub(super) fn sample_root() -> bool {
    // Strictly less: 0 samples nothing, 1 all.
    RECORDER
        .get()
        .is_some_and(|recorder| rand::random::<f64>() < recorder.sample)
}

/// Records the root of a trace; `own` is the context that its children were recorded under.
pub fn record_root(
    name: &'static str,
    own: &TraceContext,
    start: SystemTime,
    end: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
) {
    record(name, None, own, start, end, attributes);
}

/// Records a hop under `parent`, and returns the hop's own context.
pub fn record_span(
    name: &'static str,
    parent: &TraceContext,
    start: SystemTime,
    end: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
) -> TraceContext {
    let own = parent.child();
    record(name, Some(parent), &own, start, end, attributes);
    own
}

/// Records a hop whose own context (`parent.child()`) was given away before the hop was over.
pub fn record_span_as(
    name: &'static str,
    parent: &TraceContext,
    own: &TraceContext,
    start: SystemTime,
    end: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
) {
    record(name, Some(parent), own, start, end, attributes);
}

fn record(
    name: &'static str,
    parent: Option<&TraceContext>,
    own: &TraceContext,
    start: SystemTime,
    end: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
) {
    let Some(recorder) = RECORDER.get() else {
        return;
    };
    if !own.sampled {
        return;
    }
    // `Context::new`, not the current one: whatever `tracing` span is open here has nothing to do with the message.
    let parent = parent.map_or_else(Context::new, |parent| {
        Context::new().with_remote_span_context(span_context(parent))
    });
    let builder = SpanBuilder::from_name(name)
        .with_start_time(start)
        .with_attributes(attributes);
    GIVEN.set(Some((
        TraceId::from(own.trace_id),
        SpanId::from(own.span_id),
    )));
    let mut span = recorder.tracer.build_with_context(builder, &parent);
    GIVEN.set(None);
    // The clock may have been set back in between; a span that ends before it starts is refused by collectors.
    span.end_with_timestamp(end.max(start));
}

fn span_context(context: &TraceContext) -> SpanContext {
    let flags = if context.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::NOT_SAMPLED
    };
    SpanContext::new(
        TraceId::from(context.trace_id),
        SpanId::from(context.span_id),
        flags,
        true,
        TraceState::NONE,
    )
}

/// Random ids, but the given ones for a message's span.
#[derive(Debug, Default)]
pub(crate) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        GIVEN
            .get()
            .map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        GIVEN
            .get()
            .map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// What carries a context of ours has been sampled already, when its trace began; all else by ratio.
#[derive(Debug, Clone)]
pub(crate) struct Sampling(Sampler);

impl Sampling {
    pub(crate) fn new(ratio: f64) -> Self {
        Self(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            ratio,
        ))))
    }
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if GIVEN.get().is_some() {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::NONE,
            };
        }
        self.0
            .should_sample(parent, trace_id, name, kind, attributes, links)
    }
}
