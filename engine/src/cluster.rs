//! Who belongs to a cluster: the nodes that formed it, and those that came later or took a lost node's place. Pure rules
//! and codec; `identity.rs` keeps it on disk, hellos carry it from node to node.
//!
//! ```text
//!   as formed, little-endian           later, only if there is any
//!   16  id           0: none           4   "JOIN"
//!   2   members                        2   places
//!   ..  each: node u64,                ..  each: node u64, incarnation u64 (0: nobody yet; all ones: lost),
//!       incarnation u64                    generation u32, by u64
//! ```
//!
//! A node's place is taken anew when it is given up (`give_up`): its generation rises, and the node that
//! does so waits for whoever comes next with that id and an empty directory. Of a node that was not there when the cluster was
//! formed the place is free from the start, and the lowest founder that still is one gives it away. A place can be taken from
//! a node without anybody getting it: then it is lost (`lose`), and `by` says who declared it so.
//!
//! Invariants: (1) of one place the higher rank holds, everywhere in the end; (2) who took a place later is no founder: it
//! begins as a member of nothing; (3) a place is given up, or a newer rank believed, only on a node none of whose groups has
//! the old directory as a member: an empty one votes for whoever asks, and must not be asked in its stead (`shard/places.rs`).
//! That no two directories are one member holds while the operator does what the refusals say: one node gives a place away
//! in each generation, and another one only by force.

use coracle_base::NodeId;
use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::MEMBERS_MAX;

const LATER: &[u8; 4] = b"JOIN";
/// The incarnation of a lost place: no directory draws it.
const LOST: u64 = u64::MAX;
/// Far more often than a place is ever given up.
const GENERATION_MAX: u32 = 1 << 30;

/// A formed cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id, drawn at random when it was formed.
    pub id: u128,
    /// The nodes that formed it with their incarnations, by id.
    pub members: Vec<(NodeId, u64)>,
    /// Who came later, or took the place of one of them, by id.
    pub places: Vec<Place>,
}

/// A place that was not taken when the cluster was formed, or was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub node: NodeId,
    /// The directory that has it; 0 while nobody has, all ones if nobody is to have it.
    pub incarnation: u64,
    /// How often it was taken from somebody.
    pub generation: u32,
    /// Who gives it away, or declared it lost.
    pub by: NodeId,
}

impl Cluster {
    /// A cluster as it is formed.
    pub fn new(id: u128, members: Vec<(NodeId, u64)>) -> Self {
        Self { id, members, places: Vec::new() }
    }

    fn place(&self, node: NodeId) -> Option<&Place> {
        self.places.iter().find(|place| place.node == node)
    }

    /// The incarnation that a node has to have; `None` if it has no place, or nobody has it.
    pub fn incarnation(&self, node: NodeId) -> Option<u64> {
        match self.place(node) {
            Some(place) => Some(place.incarnation).filter(|_| place.is_taken()),
            None => self.members.iter().find(|(id, _)| *id == node).map(|(_, incarnation)| *incarnation),
        }
    }

    /// The nodes that still are what they were when the cluster was formed: founders of groups that name none.
    pub(crate) fn founders(&self) -> Vec<NodeId> {
        let nodes = self.members.iter().map(|(node, _)| *node);
        nodes.filter(|node| self.place(*node).is_none()).collect()
    }

    /// All nodes that have a place, by id.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        let later = self.places.iter().map(|place| place.node);
        let mut nodes: Vec<NodeId> = self.members.iter().map(|(node, _)| *node).chain(later).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Whether all these places can be written down.
    pub(crate) fn has_room_for(&self, places: &[Place]) -> bool {
        let is_new = |place: &&Place| self.place(place.node).is_none();
        self.places.len() + places.iter().filter(is_new).count() <= MEMBERS_MAX
    }

    /// Who gives away the place of a node, if anybody does.
    pub(crate) fn giver(&self, node: NodeId) -> Option<NodeId> {
        match self.place(node) {
            Some(place) => Some(place.by).filter(|_| !place.is_lost()),
            None => self.founders().into_iter().find(|id| *id != node),
        }
    }

    /// Whether the node with this id and an empty directory may be given its place by `own`.
    pub(crate) fn is_free(&self, node: NodeId, own: NodeId) -> bool {
        let is_open = match self.place(node) {
            Some(place) => place.incarnation == 0,
            None => self.members.iter().all(|(id, _)| *id != node),
        };
        is_open && self.giver(node) == Some(own)
    }

    /// A node's place as it is given up, on the word of an operator at `own`.
    pub(crate) fn give_up(&self, node: NodeId, own: NodeId) -> Place {
        Place { node, incarnation: 0, generation: self.next_generation(node), by: own }
    }

    /// A node's place as it is lost, on the word of an operator at `own`.
    pub(crate) fn lose(&self, node: NodeId, own: NodeId) -> Place {
        Place { node, incarnation: LOST, generation: self.next_generation(node), by: own }
    }

    /// A free place as it is taken by whoever has this incarnation.
    pub(crate) fn take(&self, node: NodeId, incarnation: u64, own: NodeId) -> Place {
        let generation = self.place(node).map_or(0, |place| place.generation);
        Place { node, incarnation, generation, by: own }
    }

    fn next_generation(&self, node: NodeId) -> u32 {
        self.place(node).map_or(0, |place| place.generation).min(GENERATION_MAX - 1) + 1
    }

    /// Whether a place says more than what is known here, unless it is that of the node `own` itself: who sits there knows
    /// who it is.
    pub(crate) fn is_news(&self, place: &Place, own: NodeId) -> bool {
        place.node != own && self.place(place.node).is_none_or(|known| known.rank() < place.rank())
    }

    /// What another node of the cluster knows better.
    pub(crate) fn news_of(&self, theirs: &Self, own: NodeId) -> Vec<Place> {
        theirs.places.iter().filter(|place| self.is_news(place, own)).copied().collect()
    }

    /// With a place as it is said to be.
    pub(crate) fn with(&self, place: Place) -> Self {
        let mut cluster = self.clone();
        cluster.places.retain(|known| known.node != place.node);
        cluster.places.push(place);
        cluster.places.sort_unstable_by_key(|place| place.node);
        cluster
    }
}

impl Place {
    /// Some directory has it.
    pub(crate) fn is_taken(&self) -> bool {
        self.incarnation != 0 && !self.is_lost()
    }

    /// Nobody has it and nobody gets it. To believe that is safe, whoever is a member of what.
    pub(crate) fn is_lost(&self) -> bool {
        self.incarnation == LOST
    }

    /// The higher one holds. In one generation it is taken once; the last part is for operators who contradict each other.
    pub(crate) fn rank(&self) -> (u32, bool, NodeId) {
        (self.generation, self.incarnation != 0, self.by)
    }
}

/// Appends a cluster as it was formed, or none.
pub(crate) fn encode_formed(cluster: Option<&Cluster>, out: &mut Vec<u8>) {
    out.put_u128(cluster.map_or(0, |cluster| cluster.id));
    let members = cluster.map_or(&[][..], |cluster| &cluster.members);
    out.put_u16(members.len() as u16);
    for (node, incarnation) in members {
        out.put_u64(node.0);
        out.put_u64(*incarnation);
    }
}

/// Reads what [`encode_formed`] wrote.
pub(crate) fn decode_formed(reader: &mut Reader<'_>) -> Result<Option<Cluster>, Truncated> {
    let id = reader.u128()?;
    let count = count(reader)?;
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        members.push((NodeId(reader.u64()?), reader.u64()?));
    }
    Ok((id != 0).then(|| Cluster::new(id, members)))
}

/// Appends what has become of it since; nothing if nothing has.
pub(crate) fn encode_places(places: &[Place], out: &mut Vec<u8>) {
    if !places.is_empty() {
        encode_all_places(places, out);
    }
}

/// As [`encode_places`], also if there are none: something follows.
pub(crate) fn encode_all_places(places: &[Place], out: &mut Vec<u8>) {
    out.put(LATER);
    out.put_u16(places.len() as u16);
    for place in places {
        out.put_u64(place.node.0);
        out.put_u64(place.incarnation);
        out.put_u32(place.generation);
        out.put_u64(place.by.0);
    }
}

/// Reads what [`encode_places`] wrote, if it wrote anything: an older program did not.
pub(crate) fn decode_places(reader: &mut Reader<'_>) -> Result<Vec<Place>, Truncated> {
    if reader.rest().iter().all(|byte| *byte == 0) {
        return Ok(Vec::new());
    }
    if reader.bytes(4)? != LATER {
        return Err(Truncated { missing: 0 });
    }
    let count = count(reader)?;
    let mut places: Vec<Place> = Vec::with_capacity(count);
    for _ in 0..count {
        let (node, incarnation) = (NodeId(reader.u64()?), reader.u64()?);
        let (generation, by) = (reader.u32()?, NodeId(reader.u64()?));
        if generation > GENERATION_MAX || places.last().is_some_and(|last| last.node >= node) {
            return Err(Truncated { missing: 0 });
        }
        places.push(Place { node, incarnation, generation, by });
    }
    Ok(places)
}

fn count(reader: &mut Reader<'_>) -> Result<usize, Truncated> {
    let count = usize::from(reader.u16()?);
    if count > MEMBERS_MAX { Err(Truncated { missing: count }) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formed() -> Cluster {
        Cluster::new(9, vec![(NodeId(1), 11), (NodeId(2), 22), (NodeId(3), 33)])
    }

    #[test]
    fn a_place_is_given_away_by_one_node_once_a_generation() {
        let (one, two, three, four) = (NodeId(1), NodeId(2), NodeId(3), NodeId(4));
        let cluster = formed();
        assert!(!cluster.is_free(three, one), "somebody has it");
        assert!(cluster.is_free(four, one) && !cluster.is_free(four, two), "the lowest founder's to give");
        assert_eq!((cluster.giver(one), cluster.giver(two)), (Some(two), Some(one)));

        let given_up = cluster.with(cluster.give_up(three, two));
        assert_eq!(given_up.incarnation(three), None);
        assert!(given_up.is_free(three, two) && !given_up.is_free(three, one));
        let taken = given_up.with(given_up.take(three, 34, two));
        assert_eq!(taken.incarnation(three), Some(34));
        assert!(!taken.is_free(three, two));
        assert_eq!((taken.founders(), taken.nodes()), (vec![one, two], vec![one, two, three]));
        let again = taken.with(taken.give_up(three, one));
        assert!(again.is_free(three, one) && again.places[0].generation == 2);

        let lost = taken.with(taken.lose(one, two));
        assert!(!lost.is_free(one, two) && lost.giver(one).is_none() && lost.incarnation(one).is_none());
        assert_eq!(lost.giver(four), Some(two), "whoever is a founder still");
        let open = lost.with(lost.give_up(one, two));
        assert!(open.is_free(one, two), "on an operator's word it is given away all the same");

        let joined = taken.with(taken.take(four, 44, one));
        assert_eq!((joined.founders().len(), joined.nodes().len()), (2, 4));
    }

    #[test]
    fn the_higher_rank_holds_and_nobody_is_told_who_he_is() {
        let (one, three) = (NodeId(1), NodeId(3));
        let old = formed();
        let given_up = old.with(old.give_up(three, one));
        let taken = given_up.with(given_up.take(three, 34, one));
        let news = |known: &Cluster, told: &Cluster| known.news_of(told, one).len();
        assert_eq!([news(&old, &given_up), news(&old, &taken), news(&given_up, &taken)], [1, 1, 1]);
        assert_eq!([news(&taken, &given_up), news(&taken, &old), news(&taken, &taken)], [0, 0, 0]);
        assert_eq!(old.news_of(&taken, three), [], "node 3 itself");
        assert_eq!(old.with(old.news_of(&taken, one)[0]), taken);
        // Two operators declare it lost: one of them did.
        let lost = [one, NodeId(2)].map(|by| old.with(old.lose(three, by)));
        assert_eq!((news(&lost[0], &lost[1]), news(&lost[1], &lost[0])), (1, 0));
    }

    #[test]
    fn there_are_no_more_places_than_can_be_written_down() {
        let mut cluster = formed();
        for node in 4..4 + MEMBERS_MAX as u64 {
            let place = cluster.take(NodeId(node), node, NodeId(1));
            assert!(cluster.has_room_for(&[place]));
            cluster = cluster.with(place);
        }
        assert!(!cluster.has_room_for(&[cluster.take(NodeId(99), 99, NodeId(1))]));
        assert!(cluster.has_room_for(&[cluster.give_up(NodeId(4), NodeId(1))]), "it has one already");
    }

    #[test]
    fn places_come_back_and_what_is_cut_or_out_of_order_is_refused() {
        let cluster = formed();
        let cluster = cluster.with(cluster.lose(NodeId(3), NodeId(2)));
        let cluster = cluster.with(cluster.take(NodeId(7), 77, NodeId(1)));
        let mut bytes = Vec::new();
        encode_places(&cluster.places, &mut bytes);
        assert_eq!(decode_places(&mut Reader::new(&bytes)), Ok(cluster.places));
        for cut in 1..bytes.len() {
            assert!(decode_places(&mut Reader::new(&bytes[..cut])).is_err(), "cut at {cut}");
        }
        let (first, second) = (6..34, 34..62);
        let swapped = [&bytes[..6], &bytes[second], &bytes[first]].concat();
        assert!(decode_places(&mut Reader::new(&swapped)).is_err());
        assert_eq!(decode_places(&mut Reader::new(&[0; 40])), Ok(Vec::new()));
    }
}
