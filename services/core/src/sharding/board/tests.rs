use super::*;
use crate::sharding::WEIGHT;

const S: Duration = Duration::from_secs(1);

fn member(id: &str) -> Member {
    Member {
        id: id.to_owned(),
        incarnation: "1".to_owned(),
        weight: WEIGHT,
        ..Member::default()
    }
}

fn partition(number: u16) -> Partition {
    Partition::new(number).unwrap()
}

fn claim(id: &str) -> Claim {
    Claim {
        member: id.to_owned(),
        incarnation: "1".to_owned(),
        ..Claim::default()
    }
}

/// A bucket, read every three seconds.
struct World {
    now: Duration,
    revision: u64,
    boards: Boards,
    members: BTreeMap<String, (Member, u64)>,
    claims: BTreeMap<Partition, (Claim, u64)>,
    accounts: Vec<u32>,
}

impl World {
    /// These share all, each by the assignment; every partition has two accounts.
    fn sharing(ids: &[&str]) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            revision: 0,
            boards: Boards::new(&Timing::default()),
            members: BTreeMap::new(),
            claims: BTreeMap::new(),
            accounts: vec![2; usize::from(PARTITIONS)],
        };
        for id in ids {
            world.put(member(id));
        }
        world.read();
        for partition in Partition::all() {
            let owner = world.boards.shares.assignment().owner(partition);
            if let Some(owner) = owner.map(ToOwned::to_owned) {
                world.hold(partition, claim(&owner));
            }
        }
        world.read();
        world
    }

    fn put(&mut self, member: Member) {
        self.revision += 1;
        let revision = self.revision;
        self.members.insert(member.id.clone(), (member, revision));
    }

    fn hold(&mut self, partition: Partition, claim: Claim) {
        self.revision += 1;
        self.claims.insert(partition, (claim, self.revision));
    }

    fn read(&mut self) {
        self.boards
            .read_members(self.now, self.now, self.members.values().cloned().collect());
        let claims = self.claims.iter();
        let claims = claims.map(|(partition, (claim, at))| (*partition, claim.clone(), *at));
        self.boards.read_claims(self.now, claims.collect());
    }

    /// So many reads later, while these renew.
    fn pass(&mut self, reads: u32, alive: &[&str]) {
        for _ in 0..reads {
            self.now += S * 3;
            for id in alive {
                let (member, _) = self.members[*id].clone();
                self.put(member);
            }
            self.read();
        }
    }

    fn board(&self) -> Board {
        self.boards.board(self.now, &self.accounts)
    }

    fn why(&self) -> Vec<Waiting> {
        self.board().waiting.iter().map(|wait| wait.why).collect()
    }

    fn state(&self, id: &str) -> MemberState {
        let board = self.board();
        let row = board.members.iter().find(|row| row.record.id == id);
        row.unwrap().state
    }
}

#[test]
fn all_is_well() {
    let mut world = World::sharing(&["a", "b"]);
    world.pass(2, &["a", "b"]);
    let board = world.board();
    assert!(board.steady && board.waiting.is_empty());
    assert_eq!((board.totals.owned, board.totals.accounts), (1024, 2048));
    for row in &board.members {
        assert_eq!((row.state, row.owned), (MemberState::Live, row.wanted));
        assert_eq!(row.accounts, row.owned as u64 * 2);
    }
}

#[test]
fn nothing_was_read_and_nothing_is_there() {
    let boards = Boards::new(&Timing::default());
    let board = boards.board(S, &[]);
    assert!(!board.steady && board.members.is_empty());
    assert_eq!(boards.unowned_for(partition(1)), None);
    let mut world = World::sharing(&[]);
    world.pass(5, &[]);
    let totals = world.board().totals;
    assert_eq!((totals.unowned, totals.accounts_unowned), (1024, 2048));
    assert_eq!(totals.unowned_for, Some(S * 15));
    assert_eq!(world.why(), [Waiting::NoRoom]);
    world.accounts.clear();
    assert_eq!(world.board().totals.unowned_for, None);
}

#[test]
fn the_dead_own_nothing_since_they_were_last_heard_of() {
    let mut world = World::sharing(&["a", "b"]);
    let of_b = world.board().members[1].owned;
    world.pass(3, &["a"]);
    assert_eq!(world.state("b"), MemberState::Quiet { dead_in: S * 3 });
    assert_eq!(world.board().totals.unowned, 0);
    assert_eq!(world.why(), [Waiting::Detection]);
    world.pass(2, &["a"]);
    assert_eq!(world.state("b"), MemberState::Dead);
    let totals = world.board().totals;
    assert_eq!(totals.unowned, of_b);
    assert_eq!(totals.unowned_for, Some(S * 15));
    assert_eq!(world.why(), [Waiting::Taking]);
    // Its successor takes them.
    let claims: Vec<Partition> = world.claims.keys().copied().collect();
    for partition in claims {
        world.hold(partition, claim("a"));
    }
    world.pass(1, &["a"]);
    assert_eq!(world.board().totals.owned, 1024);
    assert_eq!(world.board().totals.unowned_for, None);
}

#[test]
fn reads_that_fail_bring_nobody_back_to_life() {
    let mut world = World::sharing(&["a"]);
    world.pass(4, &[]);
    assert_eq!(world.board().totals.unowned, 1024);
    world.boards.read_failed();
    world.now += S * 30;
    assert!(!world.board().steady);
    world.read();
    let totals = world.board().totals;
    assert_eq!((totals.unowned, totals.unowned_for), (1024, Some(S * 42)));
    assert_eq!(world.state("a"), MemberState::Dead);
    let board = world.board();
    assert!(board.steady && board.members[0].still == S * 42);
    // But a renewal does.
    world.pass(1, &["a"]);
    assert_eq!(world.board().totals.owned, 1024);
    assert_eq!(world.state("a"), MemberState::Live);
}

#[test]
fn one_read_does_not_tell_who_has_died() {
    let mut world = World::sharing(&["a", "b"]);
    world.put(Member {
        left: true,
        ..member("c")
    });
    // What was read first may be long since true.
    world.boards = Boards::new(&Timing::default());
    world.read();
    assert!(!world.board().steady);
    world.pass(3, &["a"]);
    assert!(!world.board().steady, "b is dead, or about to be heard");
    world.pass(1, &["a"]);
    assert!(world.board().steady);
    assert_eq!(world.state("b"), MemberState::Dead);
}

#[test]
fn whoever_is_heard_lives() {
    let mut world = World::sharing(&["a", "b"]);
    assert!(!world.board().steady);
    world.pass(1, &["a", "b"]);
    assert!(world.board().steady);
    // After reads that failed they are to be heard anew: what is read first may be from meanwhile.
    world.boards.read_failed();
    world.pass(1, &["a", "b"]);
    assert!(!world.board().steady);
    world.pass(1, &["a", "b"]);
    assert!(world.board().steady);
    world.pass(1, &["a"]);
    assert!(world.board().steady, "whose silence has begun since");
    // Nor does it tell who died in a pause without reads.
    world.now += S * 60;
    assert!(!world.board().steady);
    world.read();
    assert!(!world.board().steady);
}

#[test]
fn who_fails_to_read_judges_nobody() {
    let mut world = World::sharing(&["a"]);
    for _ in 0..10 {
        world.now += S * 3;
        world.boards.read_failed();
    }
    world.read();
    assert_eq!(world.board().totals.owned, 1024);
    assert_eq!(world.state("a"), MemberState::Live);
}

#[test]
fn what_moves_is_counted_apart() {
    let mut world = World::sharing(&["a"]);
    world.put(member("b"));
    world.pass(1, &["a", "b"]);
    let board = world.board();
    let wanted = board.members[1].wanted;
    assert_eq!(board.totals.handing_over, wanted);
    assert_eq!(board.totals.owned + wanted, 1024);
    assert_eq!(world.why(), [Waiting::HandOver]);
    // Let go for one that does not take it.
    let moving = Partition::all()
        .find(|partition| world.boards.shares.assignment().owner(*partition) == Some("b"));
    let released = Claim {
        released: true,
        successor: "b".to_owned(),
        ..claim("a")
    };
    world.hold(moving.unwrap(), released);
    world.pass(1, &["a", "b"]);
    assert_eq!(world.board().totals.handing_over, wanted);
    world.pass(4, &["a", "b"]);
    assert_eq!(world.board().totals.unowned, 1);
    assert_eq!(world.board().totals.accounts_unowned, 2);
    assert_eq!(world.board().totals.unowned_for, Some(S * 12));
}

#[test]
fn the_last_one_cannot_drain() {
    let mut world = World::sharing(&["a"]);
    world.put(Member {
        draining: true,
        ..member("a")
    });
    world.pass(1, &["a"]);
    assert_eq!(world.state("a"), MemberState::Draining);
    assert_eq!(world.board().totals.owned, 1024);
    assert_eq!(world.why(), [Waiting::NoRoom]);
}

#[test]
fn what_a_member_says_of_itself_counts_at_once() {
    let mut world = World::sharing(&["a", "b", "c"]);
    world.put(Member {
        left: true,
        ..member("a")
    });
    world.put(Member {
        stalled: true,
        ..member("b")
    });
    // Another incarnation: the claims of the one before are nobody's, once a read came after they were seen.
    world.put(Member {
        incarnation: "2".to_owned(),
        ..member("c")
    });
    world.pass(1, &["b", "c"]);
    assert_eq!(world.state("a"), MemberState::Left);
    assert_eq!(world.state("b"), MemberState::Stalled);
    let board = world.board();
    assert!(board.totals.unowned > 0);
    assert_eq!(board.totals.unowned_for, Some(Duration::ZERO));
    world.pass(1, &["b", "c"]);
    let board = world.board();
    assert_eq!(board.totals.unowned, 1024);
    assert_eq!((board.members[2].owned, board.members[2].wanted), (0, 1024));
}

#[test]
fn what_is_not_looked_at_again_is_not_unowned_for_longer() {
    let mut world = World::sharing(&[]);
    world.pass(1, &[]);
    let members: Vec<_> = world.members.values().cloned().collect();
    for at in (6..30).step_by(3) {
        let at = S * at;
        world.boards.read_members(at, at, members.clone());
    }
    assert_eq!(world.boards.unowned_for(partition(1)), Some(S * 3));
}

#[test]
fn one_that_announces_nothing_lives_by_its_claims() {
    let mut world = World::sharing(&[]);
    world.hold(partition(1), claim("old"));
    world.hold(partition(2), claim("old"));
    for _ in 0..4 {
        world.pass(10, &[]);
        assert_eq!(world.state("old"), MemberState::Unannounced);
        assert_eq!(world.board().totals.owned, 2);
        world.hold(partition(2), claim("old"));
    }
    world.pass(21, &[]);
    let board = world.board();
    assert!(board.members.is_empty());
    assert_eq!(board.totals.unowned, 1024);
}
