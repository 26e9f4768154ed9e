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
