//! The handshake: who is at the other end, and whether we belong together. Pure.
//!
//! ```text
//!   hello and welcome, the head of their frames (little-endian)
//!   2   version_min, 2 version_max     protocol versions spoken
//!   8   node, 8 incarnation, 8 boot_epoch
//!   2   shard, 2 shards, 1 lane        lane 0: control and appends; 1, since version 2: bulk
//!   18+ cluster                        as formed, and then who came later, if anybody did: both as in `cluster.rs`
//!   8   boot                           since version 4: the name of the sender's boot (then who came later is always there)
//!   1   heard                          1: then 8 incarnation, 8 epoch, 8 boot, 8 seq: how far the receiver said to be durable
//!   refuse: UTF-8 text of at most 300 bytes
//! ```

use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::{NodeId, ShardId};

use crate::cluster::{
    Cluster, Place, decode_formed, decode_places, encode_all_places, encode_formed, encode_places,
};
use crate::identity::Identity;
use crate::lineage::Mark;

/// The protocol version that this build speaks, and the oldest one that it still does.
pub(crate) const PROTOCOL: u16 = 4;
/// From this one on nodes say how far they are durable, and ask one another what they have forgotten.
pub(crate) const PROTOCOL_MARKS: u16 = 4;
pub(crate) const PROTOCOL_MIN: u16 = 1;
/// Longest text of a refusal.
pub(crate) const REFUSAL_BYTES_MAX: usize = 300;

/// Which of a link's two connections it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Beats, votes, appends, commands: everything that is small, or must not wait.
    Control = 0,
    /// What is large and may wait.
    Bulk = 1,
}

/// What each side says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) boot_epoch: u64,
    pub(crate) shard: ShardId,
    pub(crate) shards: u16,
    pub(crate) lane: Lane,
    pub(crate) cluster: Option<Cluster>,
    /// The name of the sender's boot; 0 if it has none.
    pub(crate) boot: u64,
    /// What the sender has heard of the receiver.
    pub(crate) heard: Option<Mark>,
}

/// What a handshake makes of two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// Members of one cluster: messages may flow.
    Members,
    /// Both are empty: the start of a cluster, once everybody is here.
    BothEmpty,
    /// The other one is empty and may take over our cluster.
    Invite,
    /// We are empty, and this is the cluster that we belong to.
    Adopt(Cluster),
}

/// What a hello says about places that this node does not know yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// A node with an empty directory comes, and its place is ours to give away.
    Newcomer { node: NodeId, incarnation: u64 },
    /// Places that were given away elsewhere.
    Places(Vec<Place>),
}

impl Hello {
    /// What this node says, if it speaks versions up to `protocol`.
    pub(crate) fn of(identity: &Identity, shard: ShardId, boot_epoch: u64, protocol: u16) -> Self {
        Self {
            version_min: PROTOCOL_MIN,
            version_max: protocol,
            node: identity.node,
            incarnation: identity.incarnation,
            boot_epoch,
            shard,
            shards: identity.shards,
            lane: Lane::Control,
            cluster: identity.cluster.clone(),
            boot: 0,
            heard: None,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.put_u16(self.version_min);
        out.put_u16(self.version_max);
        out.put_u64(self.node.0);
        out.put_u64(self.incarnation);
        out.put_u64(self.boot_epoch);
        out.put_u16(self.shard.0);
        out.put_u16(self.shards);
        out.put_u8(self.lane as u8);
        encode_formed(self.cluster.as_ref(), &mut out);
        let places = self.cluster.as_ref().map_or(&[][..], |cluster| &cluster.places);
        if self.version_max < PROTOCOL_MARKS {
            encode_places(places, &mut out);
            return out;
        }
        encode_all_places(places, &mut out);
        out.put_u64(self.boot);
        out.put_u8(u8::from(self.heard.is_some()));
        self.heard.iter().for_each(|mark| mark.encode(&mut out));
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Truncated> {
        let mut reader = Reader::new(bytes);
        let mut hello = Self {
            version_min: reader.u16()?,
            version_max: reader.u16()?,
            node: NodeId(reader.u64()?),
            incarnation: reader.u64()?,
            boot_epoch: reader.u64()?,
            shard: ShardId(reader.u16()?),
            shards: reader.u16()?,
            lane: if reader.u8()? == Lane::Bulk as u8 { Lane::Bulk } else { Lane::Control },
            cluster: decode_formed(&mut reader)?,
            boot: 0,
            heard: None,
        };
        let places = decode_places(&mut reader)?;
        if let Some(cluster) = &mut hello.cluster {
            cluster.places = places;
        }
        // Who speaks none of our versions says it in words of its own, and has to hear why it is refused.
        if hello.version_max >= PROTOCOL_MARKS && hello.version_min <= PROTOCOL {
            hello.boot = reader.u64()?;
            hello.heard = if reader.u8()? == 1 { Some(Mark::decode(&mut reader)?) } else { None };
        }
        Ok(hello)
    }
}

/// Judges the other side's words by our own.
///
/// # Errors
/// Why we do not belong together, in words for the other side's operator.
pub(crate) fn meet(own: &Hello, other: &Hello) -> Result<Meeting, String> {
    if other.version_min > own.version_max || other.version_max < own.version_min {
        return Err(format!(
            "protocol versions {} to {} are not spoken here ({} to {}); upgrade the older node",
            other.version_min, other.version_max, own.version_min, own.version_max
        ));
    }
    if other.node == own.node {
        return Err(format!("both nodes call themselves {}; every node needs an id of its own", own.node));
    }
    if other.shards != own.shards {
        return Err(format!(
            "{} shards here, {} there; all nodes need the same number: set `shards` explicitly on all nodes",
            own.shards, other.shards
        ));
    }
    match (&own.cluster, &other.cluster) {
        (None, None) => Ok(Meeting::BothEmpty),
        (Some(ours), Some(theirs)) if ours.id != theirs.id => Err(format!(
            "cluster {:032x} here, {:032x} there; the address or the data directory is wrong",
            ours.id, theirs.id
        )),
        (Some(ours), None) => member(ours, other).map(|()| Meeting::Invite),
        (Some(ours), Some(_)) => member(ours, other).map(|()| Meeting::Members),
        (None, Some(theirs)) => member(theirs, own).map(|()| Meeting::Adopt(theirs.clone())),
    }
}

/// What the other side's words tell us about who belongs to our cluster.
pub(crate) fn news(own: &Hello, other: &Hello) -> Option<News> {
    let ours = own.cluster.as_ref().filter(|_| own.shards == other.shards)?;
    match &other.cluster {
        None if ours.is_free(other.node, own.node) => {
            Some(News::Newcomer { node: other.node, incarnation: other.incarnation })
        }
        Some(theirs) if theirs.id == ours.id => {
            let places = ours.news_of(theirs, own.node);
            (!places.is_empty()).then_some(News::Places(places))
        }
        _ => None,
    }
}

/// Is this node, with this very data directory, one of the cluster's?
fn member(cluster: &Cluster, hello: &Hello) -> Result<(), String> {
    #[cfg(feature = "breaks")]
    if crate::breaks::accepts_old_incarnation() {
        return Ok(());
    }
    match cluster.incarnation(hello.node) {
        None => Err(match cluster.giver(hello.node) {
            Some(giver) if hello.cluster.is_none() => format!(
                "node {} is not a member of cluster {:032x} yet: node {giver} gives it a place, if it has it among its peers",
                hello.node, cluster.id
            ),
            _ => format!("node {} is not a member of cluster {:032x}", hello.node, cluster.id),
        }),
        Some(known) if known != hello.incarnation => Err(format!(
            "node {} of cluster {:032x} had another data directory (incarnation {known:016x}, now {:016x}): a node that lost \
             its data may not vote as if it had not; restore the directory, or have it taken out of its groups and its place \
             given up (coracle replace {})",
            hello.node, cluster.id, hello.incarnation, hello.node
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: u64, incarnation: u64, cluster: Option<u128>) -> Hello {
        let members = vec![(NodeId(1), 10), (NodeId(2), 20)];
        let identity = Identity {
            node: NodeId(node),
            incarnation,
            shards: 1,
            cluster: cluster.map(|id| Cluster::new(id, members)),
        };
        Hello::of(&identity, ShardId(0), 5, PROTOCOL)
    }

    #[test]
    fn round_trip_and_truncations() {
        let bytes = hello(1, 10, Some(7)).encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello(1, 10, Some(7))));
        for cut in 0..bytes.len() {
            assert!(Hello::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn who_belongs_together() {
        let cases: [(Hello, Hello, Result<Meeting, &str>); 10] = [
            (hello(1, 10, Some(7)), hello(2, 20, Some(7)), Ok(Meeting::Members)),
            (hello(1, 10, None), hello(2, 20, None), Ok(Meeting::BothEmpty)),
            (hello(1, 10, Some(7)), hello(2, 20, None), Ok(Meeting::Invite)),
            (
                hello(2, 20, None),
                hello(1, 10, Some(7)),
                Ok(Meeting::Adopt(hello(1, 10, Some(7)).cluster.unwrap())),
            ),
            (hello(1, 10, Some(7)), hello(2, 20, Some(8)), Err("the address or the data directory is wrong")),
            (hello(1, 10, Some(7)), hello(2, 21, None), Err("another data directory")),
            (hello(2, 21, None), hello(1, 10, Some(7)), Err("another data directory")),
            (hello(1, 10, Some(7)), hello(3, 30, Some(7)), Err("not a member")),
            (hello(2, 20, Some(7)), hello(3, 30, None), Err("node 1 gives it a place")),
            (hello(1, 10, None), hello(1, 11, None), Err("an id of its own")),
        ];
        for (own, other, expected) in cases {
            match (meet(&own, &other), expected) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got} does not say {want}"),
                (got, want) => panic!("{got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn an_empty_node_takes_a_free_place_and_others_hear_of_it_from_itself() {
        let (one, two, newcomer) = (hello(1, 10, Some(7)), hello(2, 20, Some(7)), hello(3, 30, None));
        let node = NodeId(3);
        assert_eq!(news(&one, &newcomer), Some(News::Newcomer { node, incarnation: 30 }));
        assert_eq!(news(&two, &newcomer), None, "not its to give");
        assert_eq!(news(&newcomer, &one), None, "it has no cluster");
        let with_place = |hello: &Hello| {
            let cluster =
                hello.cluster.as_ref().map(|cluster| cluster.with(cluster.take(node, 30, NodeId(1))));
            Hello { cluster, ..hello.clone() }
        };
        let one = with_place(&one);
        assert_eq!(meet(&one, &newcomer), Ok(Meeting::Invite));
        let Ok(Meeting::Adopt(cluster)) = meet(&newcomer, &one) else { panic!("it is its place") };
        let newcomer = Hello { cluster: Some(cluster), ..newcomer };
        assert!(meet(&two, &newcomer).unwrap_err().contains("not a member"));
        let Some(News::Places(places)) = news(&two, &newcomer) else { panic!("it knows better") };
        assert_eq!(places.len(), 1);
        assert_eq!(meet(&with_place(&two), &newcomer), Ok(Meeting::Members));
        let other = Hello { incarnation: 31, ..newcomer.clone() };
        assert!(meet(&with_place(&two), &other).unwrap_err().contains("another data directory"));
        assert_eq!(Hello::decode(&newcomer.encode()), Ok(newcomer));
    }

    #[test]
    fn other_versions_and_shard_counts_are_refused() {
        let mut other = hello(2, 20, None);
        other.version_min = PROTOCOL + 1;
        other.version_max = PROTOCOL + 2;
        assert!(meet(&hello(1, 10, None), &other).unwrap_err().contains("protocol versions 5 to 6"));
        let mut other = hello(2, 20, None);
        other.shards = 4;
        assert!(meet(&hello(1, 10, None), &other).unwrap_err().contains("1 shards here, 4 there"));
    }
}
