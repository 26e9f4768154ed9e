//! A deterministic simulation of Mailbell.
//!
//! The real rules (the account session, the fold-in at a take-over, the hub, the client) run against models of all that is
//! around them: mailboxes, connections, logs with lagging replicas, buckets, processes that die between any two steps. One seed
//! is one history: no thread, no clock, no await. A seed that fails is run again with a trace, and says how to repeat it.
//!
//! * [`run`] plays one seed: a time of faults, then everything is healed, and what must be true at the end is waited for.
//! * What must be true always is checked where it could break: `owner` and `session` (checkpoint = fold(log)), `gateway` (no
//!   cursor that claims what was not queued), `app` (nothing twice, nothing out of order, nothing of others), `check`
//!   (everything arrived).
//! * Bugs are planted by [`mailbell_core::plant`], to prove that they are found.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a simulation stops at the first surprise"
)]

mod app;
mod audit;
mod breach;
mod bus;
mod check;
mod device;
mod drive;
mod faults;
mod frames;
mod gateway;
mod live;
mod mailbox;
mod owner;
mod process;
mod read;
mod record;
mod scenario;
mod session;
mod watcher;
mod world;

use std::{collections::BTreeMap, fmt};

pub use breach::Breach;
use world::World;

/// How often each kind of thing happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(pub BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn add(&mut self, what: &'static str, many: u64) {
        *self.0.entry(what).or_default() += many;
    }

    /// Adds up.
    pub fn merge(&mut self, other: &Self) {
        for (what, many) in &other.0 {
            self.add(what, *many);
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, many)) in self.0.iter().enumerate() {
            let end = if index % 4 == 3 { "\n" } else { "" };
            write!(f, "{what:>26} {many:<9}{end}")?;
        }
        writeln!(f)
    }
}

/// What went wrong, and how to see it again.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Of the history.
    pub seed: u64,
    /// Which rule was broken.
    pub breach: Breach,
    /// What happened.
    pub what: String,
    /// The last steps before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "\nseed {}: {:?}, {}", self.seed, self.breach, self.what)?;
        write!(
            f,
            "again: MAILBELL_SIM_SEED={} cargo test -p mailbell-sim --test simulation -- --nocapture",
            self.seed
        )
    }
}

impl std::error::Error for Failure {}

/// Plays one history.
///
/// # Errors
/// The first rule that was broken, with the trace of the last `trace_lines` steps.
pub fn run(seed: u64, trace_lines: usize) -> Result<Coverage, Failure> {
    let mut world = World::new(seed, trace_lines);
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.play()));
    let (breach, what) = match (played, world.failure.take()) {
        (Ok(()), None) => return Ok(std::mem::take(&mut world.coverage)),
        (_, Some(failure)) => failure,
        (Err(panic), None) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (Breach::Panic, text.unwrap_or_default())
        }
    };
    Err(Failure {
        seed,
        breach,
        what: format!("at {:.3} s: {what}", world.now.as_secs_f64()),
        trace: world.trace.map(Vec::from).unwrap_or_default(),
    })
}
