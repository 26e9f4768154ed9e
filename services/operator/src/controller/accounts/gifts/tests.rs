use super::*;

const FIRST: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_nanos(1);
const HOUR: Duration = Duration::from_secs(3600);

/// After it was given now.
fn wait(gifts: &mut Gifts, now: Instant) -> Duration {
    assert!(gifts.may_give(now));
    gifts.given(now, FIRST);
    let next = gifts.next.unwrap();
    assert!(!gifts.may_give(next - MOMENT) && gifts.may_give(next));
    next - now
}

#[test]
fn where_it_does_not_help_each_wait_is_longer_up_to_an_hour() {
    let (mut gifts, mut now) = (Gifts::default(), Instant::now());
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().chain([60; 100]) {
        let waited = wait(&mut gifts, now);
        assert_eq!(waited.as_secs(), minutes * 60);
        now += waited;
    }
}

/// Whatever the state of its mailbox was between.
#[test]
fn only_an_hour_without_need_is_a_new_beginning() {
    let (mut gifts, mut now) = (Gifts::default(), Instant::now());
    for minutes in [1, 2, 4] {
        let waited = wait(&mut gifts, now);
        assert_eq!(waited.as_secs(), minutes * 60);
        now += waited + HOUR - MOMENT;
    }
    now += MOMENT;
    for minutes in [1, 2] {
        let waited = wait(&mut gifts, now);
        assert_eq!(waited.as_secs(), minutes * 60);
        now += waited;
    }
}
