//! What the first shard tells the others, with a second shard that only has an inbox.

use coracle_io::fake::{FakeClock, FakeDisk, FakeNet, FakeNetwork};

use super::*;
use crate::boot::{Parts, Server};
use crate::shard::inbox::Inbox;
use crate::transport::hello::PROTOCOL;
use crate::{Config, Created, NodeId, Peer};

type OtherInbox = Arc<Inbox<<FakeNet as Net>::Socket>>;

struct World {
    server: Server<FakeDisk, FakeNet, FakeClock>,
    inbox: OtherInbox,
    other: OtherInbox,
    disk: FakeDisk,
    clock: FakeClock,
    network: FakeNetwork,
}

impl World {
    fn new() -> Self {
        let address = FakeNetwork::address(1, 7101);
        let mut config = Config::new(1, vec![Peer { id: NodeId(1), address }], "/unused");
        config.shards = 2;
        let (disk, clock, network) = (FakeDisk::new(1), FakeClock::new(), FakeNetwork::new(1));
        let [inbox, other] = [(); 2].map(|()| Arc::new(Inbox::new(Box::new(|| {}))));
        let machines: Machines = Arc::new(|_, _| None);
        let parts = Parts {
            disk: disk.clone(),
            net: network.driver(1),
            clock: clock.clone(),
            inbox: inbox.clone(),
            siblings: vec![inbox.clone(), other.clone()],
            seed: 1,
            machines: Some(machines),
            protocol: PROTOCOL,
            #[cfg(feature = "breaks")]
            breaks: Default::default(),
        };
        let server = Server::open(&config, address, parts).unwrap();
        Self { server, inbox, other, disk, clock, network }
    }

    fn turn(&mut self) {
        self.clock.advance(500);
        let now_us = self.clock.true_us();
        self.network.advance(now_us);
        self.disk.advance(now_us);
        self.server.turn().unwrap();
    }

    /// Wishes, until it is done.
    fn wish<R: Wire>(&mut self, wish: impl Fn() -> Wish) -> R {
        for _ in 0..1000 {
            let answer = Arc::new(Answer::default());
            let asked = Command::Wish { wish: wish(), origin: Origin::Slot(answer.clone()) };
            assert!(self.inbox.push(asked).is_ok());
            let outcome = (0..10_000).find_map(|_| {
                self.turn();
                answer.get()
            });
            if let Some(Outcome::Done(done)) = outcome.map(crate::api::typed::decoded) {
                return done.reply;
            }
        }
        panic!("it is never done");
    }

    fn create(&mut self, name: &str) -> NamedGroup {
        let wish = || Wish::Create { name: name.to_owned(), argument: Vec::new(), members: Vec::new() };
        match self.wish(wish) {
            Created::New(group) => group,
            other => panic!("{other:?}"),
        }
    }

    /// What was put into the other shard's inbox about names.
    fn words(&mut self) -> Vec<Word> {
        self.turn();
        let all = std::iter::from_fn(|| self.other.pop());
        all.filter_map(|command| if let Command::Names(word) = command { Some(word) } else { None }).collect()
    }
}

/// However much happens meanwhile, nothing is kept for a shard that has no room: then it is told how everything is.
#[test]
fn a_shard_without_room_is_told_everything_once_when_it_has() {
    let mut world = World::new();
    world.create("first");
    assert!(!world.words().is_empty());
    while world.other.push(Command::Stop).is_ok() {}
    for round in 0..40 {
        world.create(&format!("name {round}"));
        if round % 2 == 1 {
            let name = format!("name {round}");
            let _: crate::Deleted = world.wish(|| Wish::Delete { name: name.clone(), id: None });
        }
    }
    let told = world.words();
    assert!(told.is_empty(), "{} words were put into a full inbox", told.len());
    let told = world.words();
    let [Word::All { groups, next, is_confirmed: true }] = &told[..] else { panic!("{} words", told.len()) };
    assert_eq!((groups.len(), next.0 - FIRST_DRAWN.0), (21, 41));
    // From then on it hears of each again.
    let groups = [world.create("odd"), world.create("even")];
    let told = world.words();
    let [Word::Exists(group)] = &told[..] else { panic!("{} words", told.len()) };
    assert!(groups.contains(group));
}
