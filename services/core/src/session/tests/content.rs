//! How much events say of messages.

use super::*;

impl Bench {
    /// Another policy.
    fn limit(&mut self, content: ContentLevel) {
        let config = Config {
            content,
            ..self.session.config.clone()
        };
        self.give(Input::Reconfigure {
            config: Box::new(config),
        });
    }
}

#[test]
fn an_event_says_no_more_than_the_policy() {
    let told = |content| {
        let mut bench = Bench::watching();
        bench.limit(content);
        bench.look(look(&[10]));
        bench.fetch();
        bench.append().1
    };
    let whole = told(ContentLevel::Preview);
    let message = Message::decode(whole.content.clone()).unwrap();
    assert_eq!(
        (message.subject.as_str(), message.preview.as_str()),
        ("message 10", "text")
    );
    let headers = told(ContentLevel::Headers);
    let message = Message::decode(headers.content.clone()).unwrap();
    assert_eq!(
        (message.subject.as_str(), message.preview.as_str()),
        ("message 10", "")
    );
    let key = told(ContentLevel::Key);
    assert!(key.content.is_empty());
    // It is one fact, and alerts all the same.
    for event in [headers, key] {
        assert_eq!((&event.fact, event.alert), (&whole.fact, true));
    }
}

#[test]
fn what_waits_is_fetched_anew_when_the_policy_gets_stricter() {
    let mut bench = Bench::watching();
    bench.look(look(&[10, 11]));
    bench.fetch();
    let (op, first) = bench.append();
    assert!(!first.content.is_empty());
    bench.limit(ContentLevel::Key);
    assert_eq!(bench.session.content(), ContentLevel::Key);
    bench.stored(op);
    bench.look(look(&[11]));
    assert_eq!(bench.fetch(), [11]);
    let (_, second) = bench.append();
    assert!(matches!(second.fact, Fact::Arrived { uid: 11, .. }));
    assert!(second.content.is_empty());
}

/// Whichever way it takes to its next try.
#[test]
fn what_is_in_flight_goes_out_again_with_no_more_than_the_policy() {
    let in_flight = || {
        let mut bench = Bench::watching();
        bench.look(look(&[10]));
        bench.fetch();
        let (op, first) = bench.append();
        assert!(!first.content.is_empty());
        (bench, op, first)
    };
    let fails = |bench: &mut Bench, op, outcome| {
        bench.give(Input::Appended { op, outcome });
    };
    let later = |bench: &mut Bench| {
        bench.now.mono += Duration::from_secs(20);
        bench.give(Input::Tick);
    };
    let reading = |bench: &mut Bench| {
        bench.take(|effect| match effect {
            Effect::ReadTail { op, .. } => Some(*op),
            _ => None,
        })
    };
    let empty = || {
        let events = Vec::new();
        Some(Tail {
            log_id: LOG,
            events,
            read_to: 0,
        })
    };
    let expect = |bench: &mut Bench, first: &Event| {
        let (op, again) = bench.append();
        assert!(again.content.is_empty());
        let same = (again.key(), again.message_id(), again.alert);
        assert_eq!(same, (first.key(), first.message_id(), first.alert));
        bench.stored(op);
        let checkpoint = bench.session.checkpoint();
        assert_eq!(checkpoint.folder(INBOX).unwrap().uid_next, 11);
    };

    // It was sent, and is not answered.
    let (mut bench, op, first) = in_flight();
    bench.limit(ContentLevel::Key);
    fails(&mut bench, op, Outcome::NoAnswer);
    later(&mut bench);
    expect(&mut bench, &first);
    // It waits.
    let (mut bench, op, first) = in_flight();
    fails(&mut bench, op, Outcome::NoAnswer);
    bench.limit(ContentLevel::Key);
    later(&mut bench);
    expect(&mut bench, &first);
    // The tail is read, which does not have it.
    let (mut bench, op, first) = in_flight();
    fails(&mut bench, op, Outcome::Disconnected);
    later(&mut bench);
    let op = reading(&mut bench);
    bench.limit(ContentLevel::Key);
    let tail = empty();
    bench.give(Input::TailRead { op, tail });
    expect(&mut bench, &first);
    // The tail has it as it was.
    let (mut bench, op, first) = in_flight();
    fails(&mut bench, op, Outcome::Disconnected);
    later(&mut bench);
    let op = reading(&mut bench);
    bench.limit(ContentLevel::Key);
    let tail = empty().map(|tail| Tail {
        events: vec![(1, first)],
        read_to: 1,
        ..tail
    });
    bench.give(Input::TailRead { op, tail });
    assert!(!bench.has(|effect| matches!(effect, Effect::Append { .. })));
}
