//! Who belongs to a group, and which sets of members decide. Pure values and arithmetic.
//!
//! ```text
//!   roles of a member       voter    outgoing   learner
//!   decides now and after     x          x                 joint configuration: both sets must agree
//!   decides from now on       x                            (outgoing is empty outside of a joint one)
//!   decides until left                   x         (x)     and stays as a learner, if it is one
//!   only receives                                   x      promotable: is made a voter once it holds its target
//!
//!   as bytes (payload of an entry of kind `Config`, little-endian):
//!   version u8 = 1, count u8, members ascending by id: id u64, roles u8 (1 voter, 2 outgoing, 4 learner, 8 promotable),
//!   target u64 if promotable
//! ```
//!
//! A change of at most one voter is made in one step: any majority of the old voters meets any majority of the new ones.
//! Every other change passes through a joint configuration (Raft thesis 4.3). So does every change from two voters: then both of
//! them have it, and one that forgets it is told by the other (`recall.rs`).
//!
//! Invariants: (1) members ascend by id and each has a role; (2) nobody is voter and learner; (3) a configuration that
//! is not empty has a voter, an empty one decides nothing.

use alloc::boxed::Box;

use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::MEMBERS_MAX;
use coracle_base::{Index, NodeId};
use smallvec::SmallVec;

use crate::message::{DecodeError, NUMBER_MAX};
use crate::quorum::{committed, majority};

const VERSION: u8 = 1;
pub(crate) const VOTER: u8 = 1;
pub(crate) const OUTGOING: u8 = 2;
pub(crate) const LEARNER: u8 = 4;
pub(crate) const PROMOTABLE: u8 = 8;

/// One member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its node.
    pub id: NodeId,
    pub(crate) roles: u8,
    /// It is made a voter when it holds this entry; only if it is promotable.
    pub(crate) target: Index,
}

/// What a member is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// Votes, and counts for commit.
    Voter,
    /// A voter until the change under way is done, then no member or a learner.
    Leaving,
    /// Receives entries and decides nothing.
    Learner,
    /// A learner that the leader makes a voter once it holds everything up to `target`.
    Promotable {
        /// The leader's last entry when it joined.
        target: Index,
    },
}

impl Member {
    /// What it is.
    pub fn membership(&self) -> Membership {
        match self.roles {
            roles if roles & VOTER != 0 => Membership::Voter,
            roles if roles & OUTGOING != 0 => Membership::Leaving,
            roles if roles & PROMOTABLE != 0 => Membership::Promotable { target: self.target },
            _ => Membership::Learner,
        }
    }

    fn has(&self, role: u8) -> bool {
        self.roles & role != 0
    }
}

/// A wish to change one member's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Makes it a voter at once, whatever it holds.
    Voter(NodeId),
    /// Makes it a learner, which receives and does not decide; a voter is demoted.
    Learner(NodeId),
    /// Takes it up as a learner that becomes a voter by itself once it has caught up.
    Promotable(NodeId),
    /// It is no member any more.
    Remove(NodeId),
}

impl Change {
    /// Whom it concerns.
    pub fn node(self) -> NodeId {
        match self {
            Self::Voter(node) | Self::Learner(node) | Self::Promotable(node) | Self::Remove(node) => node,
        }
    }
}

/// Why a set of changes makes no configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChange {
    /// The members would be what they are.
    #[error("it changes nothing")]
    Nothing,
    /// A node is named twice, or is no possible one.
    #[error("node {0} is named twice, or cannot be a member")]
    Twice(NodeId),
    /// It is not a member.
    #[error("node {0} is not a member")]
    NotAMember(NodeId),
    /// Nobody would decide.
    #[error("no voter would be left")]
    NoVoter,
    /// More members than a group may have.
    #[error("too many members")]
    TooMany,
}

/// The members of a group, ascending by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    list: SmallVec<[Member; 3]>,
}

/// Members, and the entry that made them so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configured {
    /// That entry; 0 for what the group was made with.
    pub index: Index,
    /// The members from it on.
    pub members: Members,
}

/// The members of the group before those in force, while these may yet be undone.
pub type Previous = Option<Box<Configured>>;

impl Members {
    /// A group of these voters.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        let mut list: SmallVec<[Member; 3]> =
            voters.into_iter().map(|id| Member { id, roles: VOTER, target: Index::ZERO }).collect();
        list.sort_unstable_by_key(|member| member.id);
        list.dedup_by_key(|member| member.id);
        Self { list }
    }

    /// Every member, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is nobody: this node is no member, as far as it knows.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether two sets of voters have to agree.
    pub fn is_joint(&self) -> bool {
        self.list.iter().any(|member| member.has(OUTGOING))
    }

    /// The member that runs on `node`.
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.list.iter().find(|member| member.id == node)
    }

    /// Whether it has any place here.
    pub fn contains(&self, node: NodeId) -> bool {
        self.get(node).is_some()
    }

    /// Whether it decides, now or from now on.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|member| member.has(VOTER | OUTGOING))
    }

    /// How many voters there are; in a joint phase, those of the set that is to be left.
    pub(crate) fn deciding(&self) -> usize {
        self.list.iter().filter(|member| member.has(VOTER)).count()
    }

    /// Whether nobody but `node` decides.
    pub fn is_alone(&self, node: NodeId) -> bool {
        self.is_voter(node)
            && self.list.iter().all(|member| member.id == node || !member.has(VOTER | OUTGOING))
    }

    /// Whether there is something that a leader has to do of its own accord: leave a joint phase, or promote.
    pub(crate) fn is_passing(&self) -> bool {
        self.list.iter().any(|member| member.has(OUTGOING | PROMOTABLE))
    }

    fn set(&self, role: u8) -> impl Iterator<Item = NodeId> {
        self.list.iter().filter(move |member| member.has(role)).map(|member| member.id)
    }

    /// Whether a majority of each set of voters says yes.
    pub fn quorum(&self, yes: impl Fn(NodeId) -> bool) -> bool {
        let has = |role| {
            let (all, agree) =
                self.set(role).fold((0, 0), |(all, agree), id| (all + 1, agree + usize::from(yes(id))));
            (all, agree)
        };
        let ((voters, agree), (outgoing, also)) = (has(VOTER), has(OUTGOING));
        voters > 0 && agree >= majority(voters) && (outgoing == 0 || also >= majority(outgoing))
    }

    /// The greatest index that a majority of each set of voters has reached.
    pub fn committed(&self, reached: impl Fn(NodeId) -> Index) -> Index {
        let of = |role| {
            let mut indexes: SmallVec<[Index; 8]> = self.set(role).map(&reached).collect();
            if indexes.is_empty() { None } else { Some(committed(&mut indexes)) }
        };
        let Some(incoming) = of(VOTER) else { return Index::ZERO };
        of(OUTGOING).map_or(incoming, |outgoing| incoming.min(outgoing))
    }

    /// What the members are once a change has begun: a joint configuration, if voters change by more than one, or from two. What
    /// joins as promotable is to hold `target` first.
    ///
    /// # Errors
    /// [`BadChange`]: nothing can come of it.
    pub fn changed(&self, changes: &[Change], target: Index) -> Result<Self, BadChange> {
        let mut list: SmallVec<[Member; 3]> = self.list.clone();
        for (at, change) in changes.iter().enumerate() {
            let node = change.node();
            if node == NodeId::NONE || changes[..at].iter().any(|earlier| earlier.node() == node) {
                return Err(BadChange::Twice(node));
            }
            let found = list.iter().position(|member| member.id == node);
            let (roles, target) = match change {
                Change::Voter(_) => (VOTER, Index::ZERO),
                Change::Learner(_) => (LEARNER, Index::ZERO),
                Change::Promotable(_) => (LEARNER | PROMOTABLE, target),
                Change::Remove(_) => {
                    list.remove(found.ok_or(BadChange::NotAMember(node))?);
                    continue;
                }
            };
            match found.map(|at| &mut list[at]) {
                // It is on its way already, or there: its target stays, or it would run after it for ever.
                Some(member) if member.roles == roles || roles & PROMOTABLE != 0 && member.has(VOTER) => {}
                Some(member) => (member.roles, member.target) = (roles, target),
                None => list.push(Member { id: node, roles, target }),
            }
        }
        list.sort_unstable_by_key(|member| member.id);
        let mut next = Self { list };
        if next == *self {
            return Err(BadChange::Nothing);
        }
        if next.set(VOTER).next().is_none() {
            return Err(BadChange::NoVoter);
        }
        let gone = self.set(VOTER).filter(|id| next.set(VOTER).all(|other| other != *id)).count();
        let come = next.set(VOTER).filter(|id| self.set(VOTER).all(|other| other != *id)).count();
        if gone + come > 1 || gone + come > 0 && self.deciding() == 2 {
            next.join(self);
        }
        if next.list.len() > MEMBERS_MAX { Err(BadChange::TooMany) } else { Ok(next) }
    }

    /// The voters of `old` have to agree, too.
    fn join(&mut self, old: &Self) {
        for id in old.set(VOTER) {
            match self.list.iter_mut().find(|member| member.id == id) {
                Some(member) => member.roles |= OUTGOING,
                None => self.list.push(Member { id, roles: OUTGOING, target: Index::ZERO }),
            }
        }
        self.list.sort_unstable_by_key(|member| member.id);
    }

    /// What the members are once a joint phase is over.
    pub(crate) fn left(&self) -> Self {
        let mut next = self.clone();
        next.list.iter_mut().for_each(|member| member.roles &= !OUTGOING);
        next.list.retain(|member| member.roles != 0);
        next
    }

    /// Appends the bytes of an entry of kind `Config`.
    pub fn encode(&self, out: &mut impl Sink) {
        out.put_u8(VERSION);
        out.put_u8(self.list.len() as u8);
        for member in &self.list {
            out.put_u64(member.id.0);
            out.put_u8(member.roles);
            if member.has(PROMOTABLE) {
                out.put_u64(member.target.0);
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote, and nothing after it.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no configuration, or one of a newer version.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { found: version, known: VERSION });
        }
        let mut members = Self::default();
        for _ in 0..reader.u8()? {
            let (id, roles) = (NodeId(reader.u64()?), reader.u8()?);
            let target = if roles & PROMOTABLE != 0 { Index(reader.u64()?) } else { Index::ZERO };
            members.push(Member { id, roles, target })?;
        }
        match members.is_sound() && !members.is_empty() {
            true => Ok(members),
            false => Err(DecodeError::Field { field: "voters" }),
        }
    }

    /// Adds the next member that was read.
    pub(crate) fn push(&mut self, member: Member) -> Result<(), DecodeError> {
        let last = self.list.last().map_or(NodeId::NONE, |last| last.id);
        if member.id <= last || self.list.len() == MEMBERS_MAX || member.target.0 > NUMBER_MAX {
            return Err(DecodeError::Field { field: "member" });
        }
        if !matches!(member.roles, 1..=4 | 6 | 12 | 14) {
            return Err(DecodeError::Field { field: "member's role" });
        }
        self.list.push(member);
        Ok(())
    }

    /// There is a voter, or nobody.
    pub(crate) fn is_sound(&self) -> bool {
        self.is_empty() || self.set(VOTER).next().is_some()
    }

    /// Plain voters and nothing else.
    pub(crate) fn is_plain(&self) -> bool {
        !self.is_empty() && self.list.iter().all(|member| member.roles == VOTER)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    fn members() -> impl Strategy<Value = Members> {
        let role = prop_oneof![4 => Just(1u8), 1 => Just(2), 1 => Just(3), 1 => Just(4), 1 => Just(6), 1 => Just(12), 1 => Just(14)];
        let one = (role, 0u64..50);
        prop::collection::btree_map(1u64..9, one, 1..8)
            .prop_map(|map| {
                let mut members = Members::default();
                for (id, (roles, target)) in map {
                    let target = if roles & PROMOTABLE != 0 { Index(target) } else { Index::ZERO };
                    members.push(Member { id: NodeId(id), roles, target }).unwrap();
                }
                members
            })
            .prop_filter("a voter", Members::is_sound)
    }

    fn sets(members: &Members) -> [Vec<u64>; 2] {
        [VOTER, OUTGOING].map(|role| members.set(role).map(|id| id.0).collect())
    }

    fn change() -> impl Strategy<Value = Change> {
        (0u8..4, 1u64..9).prop_map(|(kind, node)| match kind {
            0 => Change::Voter(NodeId(node)),
            1 => Change::Learner(NodeId(node)),
            2 => Change::Promotable(NodeId(node)),
            _ => Change::Remove(NodeId(node)),
        })
    }

    /// More than half of each set that has anybody, tried one by one.
    fn brute_quorum(members: &Members, yes: &[u64]) -> bool {
        let [incoming, outgoing] = sets(members);
        let half = |set: &[u64]| 2 * set.iter().filter(|id| yes.contains(id)).count() > set.len();
        half(&incoming) && (outgoing.is_empty() || half(&outgoing))
    }

    proptest! {
        #[test]
        fn a_quorum_is_more_than_half_of_each_set(members in members(), yes in prop::collection::vec(1u64..9, 0..9)) {
            prop_assert_eq!(members.quorum(|id| yes.contains(&id.0)), brute_quorum(&members, &yes));
        }

        /// The definition, tried for every index.
        #[test]
        fn committed_is_what_both_majorities_reached(members in members(), reached in prop::collection::vec(0u64..12, 9)) {
            let at_least = |at: u64| (1..9).filter(|id| reached[*id as usize] >= at).collect::<Vec<u64>>();
            let by_definition = (0..12).filter(|&at| brute_quorum(&members, &at_least(at))).max().unwrap_or(0);
            prop_assert_eq!(members.committed(|id| Index(reached[id.0 as usize])), Index(by_definition));
        }

        /// Whatever is asked: any two quorums of configurations that follow each other meet (tried with every set of eight).
        #[test]
        fn quorums_of_neighbours_meet(members in members(), changes in prop::collection::vec(change(), 1..5)) {
            let base = members.left();
            let Ok(next) = base.changed(&changes, Index(9)) else { return Ok(()) };
            let after = next.left();
            for (a, b) in [(&base, &next), (&next, &after)] {
                let wins = |of: &Members, set: u32| of.quorum(|id| set >> id.0 & 1 != 0);
                for set in (0..512u32).step_by(2).filter(|set| wins(a, *set)) {
                    prop_assert!(!wins(b, !set & 0x1fe), "{:?} and {:?} decide apart", a, b);
                }
            }
            prop_assert!(!after.is_joint() && after.is_sound());
            for change in &changes {
                let member = after.get(change.node()).map(Member::membership);
                let fits = match change {
                    Change::Voter(_) => member == Some(Membership::Voter),
                    Change::Learner(_) => member == Some(Membership::Learner),
                    Change::Promotable(_) => matches!(member, Some(Membership::Promotable { .. } | Membership::Voter)),
                    Change::Remove(_) => member.is_none(),
                };
                prop_assert!(fits, "{:?} gave {:?}", change, member);
            }
        }

        #[test]
        fn members_come_back(members in members()) {
            let mut bytes = Vec::new();
            members.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Members::decode(&mut reader), Ok(members));
            prop_assert!(reader.is_empty());
            for cut in 0..bytes.len() {
                prop_assert!(Members::decode(&mut Reader::new(&bytes[..cut])).is_err());
            }
        }
    }

    #[test]
    fn what_makes_no_configuration_is_refused() {
        let three = Members::of_voters([1, 2, 3].map(NodeId));
        let change = |changes: &[Change]| three.changed(changes, Index(7)).map(|next| next.is_joint());
        let (one, four) = (NodeId(1), NodeId(4));
        assert_eq!(change(&[]), Err(BadChange::Nothing));
        assert_eq!(change(&[Change::Voter(one)]), Err(BadChange::Nothing));
        assert_eq!(change(&[Change::Promotable(one)]), Err(BadChange::Nothing));
        assert_eq!(change(&[Change::Remove(four)]), Err(BadChange::NotAMember(four)));
        assert_eq!(change(&[Change::Remove(one), Change::Voter(one)]), Err(BadChange::Twice(one)));
        let all = [1, 2, 3].map(|id| Change::Remove(NodeId(id)));
        assert_eq!(change(&all), Err(BadChange::NoVoter));
        assert_eq!(change(&[Change::Remove(one)]), Ok(false));
        assert_eq!(change(&[Change::Promotable(four)]), Ok(false));
        assert_eq!(change(&[Change::Remove(one), Change::Voter(four)]), Ok(true));
        let many: Vec<Change> = (4..20).map(|id| Change::Learner(NodeId(id))).collect();
        assert_eq!(change(&many), Err(BadChange::TooMany));
    }
}
