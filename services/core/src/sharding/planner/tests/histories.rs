//! What happens to members, and what becomes of what they write and hear: drawn at random.

use proptest::prelude::*;

use super::NAMES;

/// What mail hosts let in a second, if that is known: from next to nothing to more than is ever given.
pub(super) fn budgets() -> impl Strategy<Value = Option<f64>> {
    // Each order of magnitude as often as any other.
    let budget = (0.0..=1.0_f64).prop_map(|part| 0.2 * 1000_f64.powf(part));
    proptest::option::of(budget)
}

/// How much a member takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) weight: u32,
    /// At most so many of all partitions; 0: any number.
    pub(super) most: u32,
}

/// What happens to a member.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    Nothing,
    /// It starts under its name, if nothing runs under it.
    Start(usize, Size),
    /// It has room for so many from now on.
    Limit(usize, u32),
    Kill(usize),
    /// It is cut off from the bucket, or no longer.
    Cut(usize, bool),
    Drain(usize, bool),
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    Answered,
    /// It is stored, and the answer is lost.
    Unanswered,
    /// The same, and it is stored a step later.
    Late,
    Lost,
}

/// What a member notices in a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// It hears nothing.
    pub(super) late: bool,
    /// It hears first what came last.
    pub(super) backwards: bool,
    pub(super) fate: Fate,
}

impl View {
    /// All of it, in order.
    pub(super) const WHOLE: Self = Self {
        late: false,
        backwards: false,
        fate: Fate::Answered,
    };
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) event: Event,
    pub(super) views: [View; NAMES.len()],
}

/// Hard caps, of which those of four often do not suffice.
fn limits() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(0),
        2 => 1..300_u32,
        1 => 300..=1024_u32,
    ]
}

pub(super) fn sizes() -> impl Strategy<Value = Size> {
    (1..=10_u32, limits()).prop_map(|(weight, most)| Size { weight, most })
}

fn events() -> impl Strategy<Value = Event> {
    let who = || 0..NAMES.len();
    prop_oneof![
        8 => Just(Event::Nothing),
        3 => (who(), sizes()).prop_map(|(who, size)| Event::Start(who, size)),
        1 => (who(), limits()).prop_map(|(who, most)| Event::Limit(who, most)),
        2 => who().prop_map(Event::Kill),
        4 => (who(), any::<bool>()).prop_map(|(who, cut)| Event::Cut(who, cut)),
        2 => (who(), any::<bool>()).prop_map(|(who, drain)| Event::Drain(who, drain)),
    ]
}

pub(super) fn views() -> impl Strategy<Value = [View; NAMES.len()]> {
    let fate = prop_oneof![
        9 => Just(Fate::Answered),
        1 => Just(Fate::Unanswered),
        1 => Just(Fate::Late),
        1 => Just(Fate::Lost),
    ];
    let view = (proptest::bool::weighted(0.4), any::<bool>(), fate);
    let view = view.prop_map(|(late, backwards, fate)| View {
        late,
        backwards,
        fate,
    });
    proptest::array::uniform4(view)
}

pub(super) fn steps(many: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (events(), views()).prop_map(|(event, views)| Step { event, views });
    proptest::collection::vec(step, 0..many)
}
