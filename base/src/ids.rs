//! Identities and positions as types of their own, so that a term never passes for an index.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id! {
    /// A position in one group's log. The first entry is 1; 0 means "before the first".
    Index(u64)
}
id! {
    /// A Raft term. 0 is before any election.
    Term(u64)
}
id! {
    /// A group's cluster-wide uid, for life. 0 is the directory group's.
    GroupId(u64)
}
id! {
    /// A node of the cluster, as the configuration names it. 0 is nobody.
    NodeId(u64)
}
id! {
    /// A shard: one thread's worth of groups, the same number on every node.
    ShardId(u16)
}

impl Index {
    /// The position before the first entry.
    pub const ZERO: Index = Index(0);

    /// The next position.
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }

    /// The position before this one; `ZERO` stays `ZERO`.
    pub fn prev(self) -> Index {
        Index(self.0.saturating_sub(1))
    }

    /// The position `count` entries further on.
    pub fn plus(self, count: u64) -> Index {
        Index(self.0 + count)
    }

    /// How many entries lie in `(earlier, self]`; 0 if `earlier` is not earlier.
    pub fn since(self, earlier: Index) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Term {
    /// Before any election.
    pub const ZERO: Term = Term(0);

    /// The next term.
    pub fn next(self) -> Term {
        Term(self.0 + 1)
    }
}

impl NodeId {
    /// Nobody: no vote, no leader.
    pub const NONE: NodeId = NodeId(0);
}

impl GroupId {
    /// The shard that serves this group, on every node, in a cluster of `shards` shards.
    pub fn shard(self, shards: u16) -> ShardId {
        ShardId((self.0 % u64::from(shards.max(1))) as u16)
    }
}
