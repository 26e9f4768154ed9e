//! Bugs that are planted must be found, and the same histories must be sound without them: else the simulation proves nothing.
#![expect(
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says why it fails, and what was found is for people to read"
)]

use mailbell_core::plant::{self, Bug};
use mailbell_sim::run;

/// The first of these seeds that finds the bug.
fn found_within(bug: Bug, seeds: u64) {
    plant::set(Some(bug));
    let found = (0..seeds).find_map(|seed| run(seed, 0).err());
    plant::set(None);
    let found = found.unwrap_or_else(|| panic!("{bug:?} is not found within {seeds} histories"));
    if let Err(without) = run(found.seed, 100) {
        panic!("without {bug:?}:\n{without}");
    }
    // Seen with `--nocapture`: how it shows.
    println!("{bug:?}: seed {}, {}", found.seed, found.what);
}

#[test]
fn a_checkpoint_before_its_ack_is_found() {
    found_within(Bug::CheckpointBeforeAck, 50);
}

#[test]
fn a_follower_that_is_trusted_is_found() {
    found_within(Bug::TrustLaggingFollower, 300);
}

#[test]
fn a_bulk_after_its_newest_is_found() {
    found_within(Bug::BulkAfterNewest, 500);
}

#[test]
fn a_cursor_that_overtakes_is_found() {
    found_within(Bug::CursorOvertakesEvent, 300);
}

#[test]
fn a_log_id_that_is_ignored_is_found() {
    found_within(Bug::ResumeIgnoresLogId, 500);
}

#[test]
fn a_stale_claim_is_found() {
    found_within(Bug::StaleClaimAccepted, 1000);
}

#[test]
fn a_release_before_the_flush_is_found() {
    found_within(Bug::ReleaseBeforeFlush, 1000);
}

#[test]
fn an_observer_that_judges_unacknowledged_is_found() {
    found_within(Bug::JudgesWhileRenewalsFail, 1000);
}

#[test]
fn a_take_over_without_a_fold_is_found() {
    found_within(Bug::TakeOverWithoutFold, 1000);
}

#[test]
fn an_epoch_that_is_reused_is_found() {
    found_within(Bug::EpochReused, 1000);
}

#[test]
fn a_checkpoint_that_overwrites_is_found() {
    found_within(Bug::CheckpointOverwrites, 1000);
}
