//! Known bugs, switched on one by one under the feature `breaks`, to prove that the tests would notice them.
//!
//! Invariant: without the feature the switches do not exist, and every question below is the constant `false`.

macro_rules! breaks {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Which known bugs are planted. Without the feature `breaks` there is nothing to switch on.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Breaks {
            $($(#[$doc])* #[cfg(feature = "breaks")] pub $name: bool,)*
        }

        impl Breaks {
            $(pub(crate) fn $name(self) -> bool {
                #[cfg(feature = "breaks")]
                {
                    self.$name
                }
                #[cfg(not(feature = "breaks"))]
                {
                    false
                }
            })*

            /// The planted bug of this name, in the spelling of `sim --break` (`vote-not-persisted`).
            #[cfg(feature = "breaks")]
            pub fn named(name: &str) -> Option<Self> {
                let mut breaks = Self::default();
                $(if name.bytes().eq(stringify!($name).bytes().map(|b| if b == b'_' { b'-' } else { b })) {
                    breaks.$name = true;
                    return Some(breaks);
                })*
                None
            }
        }
    };
}

breaks! {
    /// A vote leaves before it is durable.
    vote_not_persisted,
    /// An entry of an older term is committed by counting copies alone (Raft paper, figure 8).
    old_term_commit_by_count,
    /// A completed write confirms the index it was for, although the entry there was overwritten meanwhile.
    stale_completion,
    /// Reads are answered before the leader has committed an entry of its own term.
    read_without_noop,
    /// Reads are answered without asking a majority whether it still follows.
    read_without_quorum,
    /// A snapshot that was received counts as durable before its mark is.
    snapshot_match_counts_early,
    /// An append that is held already cuts the log behind it, as if nothing could come late.
    stale_append_truncates,
    /// A voter that the configuration in force has removed still counts for commit.
    removed_voter_counts,
    /// Members may change again before the last change is committed.
    two_changes_in_flight,
    /// Members may change before the leader has committed an entry of its own term (Raft dissertation's erratum).
    change_before_noop,
    /// The members stay changed when the entry that changed them is cut off.
    config_not_reverted,
    /// A leader that hands over goes on taking commands up.
    transfer_keeps_serving,
    /// A member that may have lost what it acknowledged votes and campaigns all the same.
    suspect_votes,
    /// What a member acknowledged before its log was damaged goes on counting for commit.
    match_below_hole,
    /// A leader's commit index is believed up to the end of the log as it was recovered, agreed upon or not.
    commit_above_recovered,
    /// What a member acknowledged in an earlier session of its link counts for commit, whatever it has kept of it.
    match_outlives_session,
    /// A member that is told what it acknowledged does not look whether it holds that.
    lost_tail_untold,
    /// A member that forgot its votes votes again once one of the others has answered.
    recall_ends_early,
}
