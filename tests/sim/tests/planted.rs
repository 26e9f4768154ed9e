//! Bugs that are planted must be found, and the same histories must be sound without them: else the simulation proves nothing.
#![expect(
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says why it fails, and what was found is for people to read"
)]

use mailbell_core::plant::{self, Bug};
use mailbell_sim::{Breach, run};

/// The bug is found within so many histories, as one of `expected`: the rules that it breaks by itself.
///
/// The first history that fails with the bug decides. If it breaks another rule, the test fails rather than looks on: either the bug
/// can show like that, which is then understood and added here, or something else is wrong that the bug brings to light.
fn found_within(bug: Bug, seeds: u64, expected: &[Breach]) {
    plant::set(Some(bug));
    let found = (0..seeds).find_map(|seed| run(seed, 0).err());
    plant::set(None);
    let found = found.unwrap_or_else(|| panic!("{bug:?} is not found within {seeds} histories"));
    // Seen with `--nocapture`: how it shows.
    println!(
        "{bug:?}: seed {}, {:?} {}",
        found.seed, found.breach, found.what
    );
    assert!(
        expected.contains(&found.breach),
        "{bug:?} is to show as one of {expected:?}:\n{found}"
    );
    if let Err(without) = run(found.seed, 100) {
        panic!("without {bug:?}:\n{without}");
    }
}

#[test]
fn a_checkpoint_before_its_ack_is_found() {
    found_within(Bug::CheckpointBeforeAck, 50, &[Breach::NotTheFold]);
}

#[test]
fn a_follower_that_is_trusted_is_found() {
    // A take-over, or a device that resumes.
    found_within(
        Bug::TrustLaggingFollower,
        300,
        &[Breach::NotWhole, Breach::CursorOvertakes],
    );
}

#[test]
fn a_bulk_after_its_newest_is_found() {
    found_within(Bug::BulkAfterNewest, 500, &[Breach::NeverTold]);
}

#[test]
fn a_cursor_that_overtakes_is_found() {
    found_within(Bug::CursorOvertakesEvent, 300, &[Breach::CursorOvertakes]);
}

#[test]
fn a_log_id_that_is_ignored_is_found() {
    found_within(Bug::ResumeIgnoresLogId, 500, &[Breach::MessageLacks]);
}

#[test]
fn a_stale_claim_is_found() {
    found_within(Bug::StaleClaimAccepted, 1000, &[Breach::StopsItsOwn]);
}

#[test]
fn a_release_before_the_flush_is_found() {
    found_within(Bug::ReleaseBeforeFlush, 1000, &[Breach::ReleasedInUse]);
}

#[test]
fn an_observer_that_judges_unacknowledged_is_found() {
    found_within(
        Bug::JudgesWhileRenewalsFail,
        1000,
        &[Breach::TakenFromTheLiving],
    );
}

#[test]
fn a_take_over_without_a_fold_is_found() {
    // At the take-over, or, of what had been acknowledged to nobody, at the end.
    found_within(
        Bug::TakeOverWithoutFold,
        1000,
        &[Breach::Forgotten, Breach::NotTheFold],
    );
}

#[test]
fn an_epoch_that_is_reused_is_found() {
    found_within(Bug::EpochReused, 1000, &[Breach::EpochNotAbove]);
}

#[test]
fn a_checkpoint_that_overwrites_is_found() {
    // When an old owner stores it, or at the take-over that loads it.
    found_within(
        Bug::CheckpointOverwrites,
        1000,
        &[Breach::GoesBack, Breach::Forgotten],
    );
}
