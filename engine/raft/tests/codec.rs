//! Messages and hard states as bytes: what is written can be read, in one spelling only; anything else is an error, and
//! never a panic, not even in a group that is fed with it.
#![allow(clippy::unwrap_used)]

use coracle_base::codec::Reader;
use coracle_base::limits::{MEMBERS_MAX, STATE_BYTES_MAX};
use coracle_base::{Index, NodeId, Term};
use coracle_raft::{
    Change, Config, Configured, DecodeError, Fit, Group, HardState, Input, Members, Message, Output,
    PersistSeq, Restored, Sizes,
};
use proptest::prelude::*;

fn decode(bytes: &[u8]) -> Result<(Message, usize), DecodeError> {
    let mut reader = Reader::new(bytes);
    Message::decode(&mut reader).map(|message| (message, bytes.len() - reader.rest().len()))
}

/// A number as the codec spells it.
fn spell(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..6, 2 => 0u64..300, 1 => 0..=1u64 << 62, 1 => any::<u64>()]
}

/// Bytes of the right shape: a kind, numbers, flags where flags belong. Most of them are messages.
fn shaped() -> impl Strategy<Value = Vec<u8>> {
    let spans = prop::collection::vec((0u64..4, 1u64..5), 0..4);
    (1u8..18, prop::collection::vec(number(), 8), 0u8..4, spans).prop_map(|(kind, numbers, flags, spans)| {
        let mut bytes = vec![1, kind];
        let (before, after) = match kind {
            2 => (1, 1),
            4 | 8 | 9 => (2, 0),
            5 => (5, 0),
            6 => (4, 3),
            10 | 14 | 16 => (1, 0),
            17 => (4, 0),
            11 => (4, 0),
            _ => (3, 0),
        };
        let mut numbers = numbers;
        if kind == 6 && numbers[1] > numbers[2] {
            numbers.swap(1, 2);
        }
        if kind == 5 {
            // Terms that rise from prev_term to the leader's, so that most of these are messages.
            numbers[0] = numbers[2].saturating_add(spans.iter().map(|(step, _)| step + 1).sum());
        }
        numbers[..before].iter().for_each(|&n| spell(&mut bytes, n));
        match kind {
            2 => bytes.push(flags & 1),
            5 => {
                bytes.push(flags);
                spell(&mut bytes, spans.len() as u64);
                let mut term = numbers[2];
                for (step, count) in spans {
                    term = term.saturating_add(step + 1);
                    spell(&mut bytes, term);
                    spell(&mut bytes, count);
                }
            }
            6 => bytes.push(flags),
            17 => {
                bytes.push(flags | 4);
                for index in 0..=flags >> 1 {
                    bytes.extend([index, 1, 1, 1 + flags, 0, 0, 0, 0, 0, 0, 0, 1]);
                }
            }
            11 => {
                bytes.extend([1, 1, 1 + flags, 0, 0, 0, 0, 0, 0, 0, 1 + 2 * (flags & 1)]);
            }
            _ => {}
        }
        if kind != 6 || flags & 2 != 0 {
            numbers[before..before + after].iter().for_each(|&n| spell(&mut bytes, n));
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever decodes, encodes to the very same bytes: nothing is lost, and there is one spelling.
    #[test]
    fn a_message_has_one_spelling(bytes in shaped()) {
        if let Ok((message, read)) = decode(&bytes) {
            let mut again = Vec::new();
            message.encode(&mut again);
            prop_assert_eq!(&again[..], &bytes[..read]);
        }
    }

    #[test]
    fn no_message_can_be_cut_short(bytes in shaped()) {
        if let Ok((_, read)) = decode(&bytes) {
            for cut in 0..read {
                prop_assert!(matches!(decode(&bytes[..cut]), Err(DecodeError::Truncated(_))), "cut at {}", cut);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), version in any::<bool>(), kind in 0u8..19) {
        if version && bytes.len() > 1 {
            (bytes[0], bytes[1]) = (1, kind);
        }
        let _ = decode(&bytes);
        let _ = HardState::decode(&bytes);
    }

    #[test]
    fn a_hard_state_comes_back(term in 0..=1u64 << 62, vote in any::<u64>(), recovery_epoch in any::<u32>(), is_unsaid in any::<bool>(),
                               voters in prop::collection::btree_set(1..=u64::MAX, 1..=MEMBERS_MAX)) {
        let members = Members::of_voters(voters.into_iter().map(NodeId));
        let state =
            HardState { term: Term(term), vote: NodeId(vote), recovery_epoch, is_unsaid, ..HardState::new(members) };
        let bytes = state.encode();
        prop_assert!(bytes.len() <= STATE_BYTES_MAX);
        prop_assert_eq!(HardState::decode(&bytes), Ok(state));
        for cut in 0..bytes.len() {
            prop_assert!(HardState::decode(&bytes[..cut]).is_err());
        }
    }

    /// With every kind of member, before and after a change: written as version 2, and read again.
    #[test]
    fn changed_members_come_back(founders in prop::collection::btree_set(1u64..9, 1..5), index in 1u64..100,
                                 changes in prop::collection::vec((0u8..4, 1u64..9), 1..4), has_previous in any::<bool>()) {
        let first = Members::of_voters(founders.into_iter().map(NodeId));
        let changes: Vec<Change> = changes.into_iter().map(|(kind, node)| match kind {
            0 => Change::Voter(NodeId(node)),
            1 => Change::Learner(NodeId(node)),
            2 => Change::Promotable(NodeId(node)),
            _ => Change::Remove(NodeId(node)),
        }).collect();
        let Ok(next) = first.changed(&changes, Index(77)) else { return Ok(()) };
        let mut state = HardState::new(first.clone());
        state.current = Configured { index: Index(index), members: next };
        state.previous = has_previous.then(|| Box::new(Configured { index: Index(index - 1), members: first }));
        let bytes = state.encode();
        prop_assert!(bytes.len() <= STATE_BYTES_MAX && bytes[0] == 2);
        prop_assert_eq!(HardState::decode(&bytes), Ok(state));
        for cut in 0..bytes.len() {
            prop_assert!(HardState::decode(&bytes[..cut]).is_err());
        }
    }

    /// A group of three that is told anything, by members and strangers, in any order: it neither panics nor breaks its
    /// own invariants (it checks them itself), and believes no claim beyond its log.
    #[test]
    fn a_group_survives_lies(seed in any::<u64>(), events in prop::collection::vec((0u8..14, 0u64..5, shaped(), 0u64..6), 1..120)) {
        let mut config = Config::new(NodeId(1), (1..=3).map(NodeId));
        config.seed = seed;
        // One in two has forgotten something.
        let restored = Restored { suspect: seed % 4 == 1, votes_lost: seed % 4 == 3, ..Restored::default() };
        let mut group = Group::new(config, restored, 0);
        let (mut out, mut now_us, mut persisted) = (Vec::new(), 0, 0);
        for (event, from, bytes, number) in events {
            let input = match event {
                0 => { now_us = group.deadline_us().unwrap_or(now_us).max(now_us); Input::Tick }
                1 => Input::LinkUp(NodeId(from)),
                2 => Input::LinkDown(NodeId(from)),
                3 | 4 => Input::Persisted(PersistSeq(persisted)),
                5 => Input::Fetched { to: NodeId(from), first: Index(number), count: number as u32, bytes: 1 },
                6 => Input::FetchFailed { to: NodeId(from) },
                7 => {
                    let _ = group.propose(number as u32);
                    let _ = group.read(number);
                    let _ = group.transfer(now_us, (number < 4).then_some(NodeId(number)));
                    let change = if number < 3 { Change::Remove(NodeId(number)) } else { Change::Voter(NodeId(number)) };
                    let _ = group.change(now_us, &[change], from == 0, &mut out);
                    Input::Persisted(PersistSeq(0))
                }
                8 if number == 5 => Input::VotesLost,
                _ => match decode(&bytes) {
                    Ok((message, _)) => Input::Receive { from: NodeId(from), message },
                    Err(_) => continue,
                },
            };
            out.clear();
            group.step(now_us, input, &mut out);
            group.drain(now_us, &InMemory, &mut out);
            for output in &out {
                if let Output::Persist { seq, .. } = output {
                    persisted = seq.0;
                }
            }
        }
    }
}

struct InMemory;

impl Sizes for InMemory {
    fn fit(&self, first: Index, last: Index, _: u32) -> Fit {
        if first.0.is_multiple_of(3) { Fit::OnDisk } else { Fit::Resident { last, bytes: 10 } }
    }
}

/// The format on the wire, byte for byte: a change here needs a new version.
#[test]
fn golden_messages() {
    let golden: [(&[u8], &str); 12] = [
        (&[1, 1, 7, 0xac, 2, 6], "PreVote { term: 7, last_index: 300, last_term: 6, forced: false }"),
        (&[1, 13, 7, 9, 6], "Vote { term: Durable(7), last_index: 9, last_term: 6, forced: true }"),
        (&[1, 14, 9], "TimeoutNow { term: 9 }"),
        (&[1, 15, 12, 14, 3], "Removed { index: 12, commit: 14, term: 3 }"),
        (
            &[1, 11, 9, 8, 6, 7, 1, 1, 3, 0, 0, 0, 0, 0, 0, 0, 1],
            "Snapshot { term: 9, index: 8, snap_term: 6, configured: Some(Configured { index: 7, members: Members { \
             list: [Member { id: 3, roles: 1, target: 0 }] } }) }",
        ),
        (&[1, 4, 5, 3], "VoteReply { ballot: Durable(Ballot { term: 5, vote: 3 }) }"),
        (
            &[1, 5, 9, 10, 6, 8, 0xe8, 7, 1, 2, 6, 2, 9, 1],
            "Append { term: 9, prev_index: 10, prev_term: 6, spans: [(6, 2), (9, 1)], bytes: 1000, commit: 8, \
             answer: true, trusted: false, held: false, changes: [] }",
        ),
        (
            &[1, 5, 9, 10, 6, 8, 0, 5, 0],
            "Append { term: 9, prev_index: 10, prev_term: 6, spans: [], bytes: 0, commit: 8, answer: true, trusted: \
             false, held: true, changes: [] }",
        ),
        (
            &[1, 6, 9, 4, 5, 3, 2, 12, 5, 2],
            "AppendReply(AppendReply { term: Durable(9), durable: Durable(4), matched: 5, commit: 3, suspect: false, \
             rejected: Some(Rejected { prev_index: 12, hint_index: 5, hint_term: 2 }) })",
        ),
        (&[1, 10, 9], "LeaderGone { term: 9 }"),
        (&[1, 16, 2], "Recall { round: 2 }"),
        (
            &[1, 17, 2, 9, 12, 8, 7, 0, 1, 1, 3, 0, 0, 0, 0, 0, 0, 0, 1, 11, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 1],
            "RecallReply(RecallReply { round: 2, term: Durable(9), last_index: Durable(12), last_term: 8, suspect: true, \
             committed: Some(Configured { index: 0, members: Members { list: [Member { id: 3, roles: 1, target: 0 }] } }), \
             pending: Some(Configured { index: 11, members: Members { list: [Member { id: 4, roles: 1, target: 0 }] } }) })",
        ),
    ];
    for (bytes, text) in golden {
        let (message, read) = decode(bytes).unwrap();
        assert_eq!((format!("{message:?}").as_str(), read), (text, bytes.len()));
    }
}

#[test]
fn golden_hard_state() {
    let mut bytes = vec![1, 2, 0, 0, 7, 0, 0, 0];
    for number in [5u64, 2, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    for voter in [2u64, 300] {
        bytes.extend(voter.to_le_bytes());
        bytes.push(1);
    }
    let members = Members::of_voters([NodeId(2), NodeId(300)]);
    let mut state =
        HardState { term: Term(5), vote: NodeId(2), recovery_epoch: 7, ..HardState::new(members.clone()) };
    assert_eq!(state.encode().to_vec(), bytes);

    // Node 300 makes room for 4, and 5 is to follow: version 2, with both configurations.
    let change = [Change::Remove(NodeId(300)), Change::Voter(NodeId(4)), Change::Promotable(NodeId(5))];
    let next = members.changed(&change, Index(40)).unwrap();
    state.current = Configured { index: Index(41), members: next };
    state.previous = Some(Box::new(Configured { index: Index(9), members }));
    let mut bytes = vec![2, 4, 1, 0, 7, 0, 0, 0];
    for number in [5u64, 2, 41, 9] {
        bytes.extend(number.to_le_bytes());
    }
    for (node, roles) in [(2u64, 0x13), (4, 0x01), (5, 0x0c), (300, 0x12)] {
        bytes.extend(node.to_le_bytes());
        bytes.push(roles);
    }
    bytes.extend(40u64.to_le_bytes());
    assert_eq!(state.encode().to_vec(), bytes);
}

/// Seven members give way to seven others, each of which waits to be promoted first: the largest state.
#[test]
fn seven_for_seven_fit() {
    let old = Members::of_voters((1..=7).map(NodeId));
    let join: Vec<Change> = (8..=14).map(|node| Change::Promotable(NodeId(node))).collect();
    let both = old.changed(&join, Index(1 << 40)).unwrap();
    let swap: Vec<Change> = (1..=14)
        .map(|node| if node <= 7 { Change::Remove(NodeId(node)) } else { Change::Voter(NodeId(node)) })
        .collect();
    let joint = both.changed(&swap, Index(1 << 40)).unwrap();
    assert!(joint.is_joint() && joint.len() == 14);
    let mut state = HardState::new(old);
    state.previous = Some(Box::new(Configured { index: Index(1), members: both }));
    state.current = Configured { index: Index(2), members: joint };
    assert_eq!((state.encode().len(), STATE_BYTES_MAX), (222, 256));
    assert_eq!(HardState::decode(&state.encode()), Ok(state));
}

#[test]
fn what_is_impossible_is_refused() {
    let wrong: [(&[u8], DecodeError); 8] = [
        (&[2, 10, 9], DecodeError::Version { found: 2, known: 1 }),
        (&[1, 18, 9], DecodeError::Kind { found: 18 }),
        (&[1, 10, 0x89, 0], DecodeError::Field { field: "number" }),
        (&[1, 10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], DecodeError::Field { field: "term" }),
        (&[1, 2, 1, 2, 1], DecodeError::Field { field: "flags" }),
        // Terms that fall, or exceed the leader's.
        (&[1, 5, 9, 10, 6, 8, 1, 0, 1, 5, 2], DecodeError::Field { field: "term of an entry" }),
        (&[1, 5, 9, 10, 6, 8, 1, 0, 1, 10, 2], DecodeError::Field { field: "term of an entry" }),
        // Durable beyond what matches.
        (&[1, 6, 9, 6, 5, 3, 0], DecodeError::Field { field: "durable index" }),
    ];
    for (bytes, error) in wrong {
        assert_eq!(decode(bytes), Err(error));
    }
}

/// Members that go with a snapshot become part of a hard state: more than that has room for is refused, not written.
#[test]
fn members_that_no_hard_state_holds_are_refused() {
    let encoded = |promotable: u8| {
        let mut bytes = vec![7, 1, 3 + promotable];
        for id in 1..=3 + promotable {
            bytes.extend(u64::from(id).to_le_bytes());
            bytes.push(if id <= 3 { 1 } else { 4 | 8 });
            if id > 3 {
                bytes.extend(90u64.to_le_bytes());
            }
        }
        bytes
    };
    assert_eq!(Configured::decode(&mut Reader::new(&encoded(4))).unwrap().index, Index(7));
    assert_eq!(
        Configured::decode(&mut Reader::new(&encoded(13))),
        Err(DecodeError::Field { field: "configuration" })
    );
}
