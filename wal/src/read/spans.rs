//! Scattered entries: what of them is read together, and how each is found in what was read. Pure.

use coracle_base::checksum::crc32c;
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_base::run::Entries;
use coracle_base::{EntryRef, GroupId, Index, RunError, RunRef, Term};

use crate::format::Position;

/// Runs that lie no further apart are read together.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// Unless together they are more than this.
pub(super) const SPAN_BYTES_MAX: u64 = 512 * 1024;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where an entry's run lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file_no: u64,
    pub(super) offset: u64,
    /// As many as the run has, about.
    pub(super) bytes: u64,
}

/// Bytes to be read at once, and whose they are.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) from: Position,
    pub(super) bytes: u64,
    /// Numbers of the entries, by their runs and then by index.
    pub(super) keys: Vec<usize>,
}

/// What is to be read for these entries, each with its index and number: neighbours together.
pub(super) fn spans(mut wanted: Vec<(Place, Index, usize)>) -> Vec<Span> {
    wanted.sort_unstable_by_key(|(place, index, _)| (place.file_no, place.offset, *index));
    let mut spans: Vec<Span> = Vec::new();
    for (place, _, key) in wanted {
        let end = place.offset + place.bytes;
        match spans.last_mut() {
            Some(span)
                if span.from.file_no == place.file_no
                    && place.offset <= span.from.offset + span.bytes + GAP_BYTES_MAX
                    && end <= span.from.offset + SPAN_BYTES_MAX.max(span.bytes) =>
            {
                span.bytes = span.bytes.max(end - span.from.offset);
                span.keys.push(key);
            }
            _ => {
                let start = place.offset / BLOCK * BLOCK;
                let from = Position { file_no: place.file_no, offset: start };
                spans.push(Span { from, bytes: end - start, keys: vec![key] });
            }
        }
    }
    spans
}

/// What lies at a place.
pub(super) enum Found<'a> {
    Run(RunRef<'a>),
    /// The run is longer than what was read: so many bytes from its start on have all of it.
    Longer(u64),
    Damaged(String),
}

/// The run at a place, in the bytes that were read for its span.
pub(super) fn run_at<'a>(span: &Span, place: Place, bytes: &'a [u8]) -> Found<'a> {
    let at = (place.offset - span.from.offset) as usize;
    match RunRef::parse(bytes.get(at..).unwrap_or_default()) {
        Ok(run) => Found::Run(run),
        Err(RunError::Truncated(short)) => {
            let wanted = (bytes.len().saturating_sub(at) + short.missing) as u64;
            let is_short = (bytes.len() as u64) < span.bytes;
            if is_short || wanted <= place.bytes || wanted > BATCH_BYTES_MAX as u64 + BLOCK {
                Found::Damaged("its run ends beyond the file".to_owned())
            } else {
                Found::Longer(wanted)
            }
        }
        Err(error) => Found::Damaged(error.to_string()),
    }
}

/// Entries of one run, taken out in the order of their indexes: the run is walked once for all of them.
pub(super) struct RunEntries<'a> {
    group: GroupId,
    entries: Entries<'a>,
    last: Option<(&'a [u8], EntryRef<'a>)>,
}

impl<'a> RunEntries<'a> {
    pub(super) fn new(run: RunRef<'a>) -> Self {
        Self { group: run.header.group, entries: run.entries(), last: None }
    }

    /// An entry with its header, its checksum checked; of this term, if it is known. Or what is wrong with it.
    pub(super) fn take(
        &mut self,
        group: GroupId,
        index: Index,
        term: Option<Term>,
    ) -> Result<Vec<u8>, &'static str> {
        while self.last.is_none_or(|(_, entry)| entry.index < index) {
            let rest = self.entries.rest();
            let Some(entry) = self.entries.next() else { break };
            self.last = Some((&rest[..rest.len() - self.entries.rest().len()], entry));
        }
        match self.last {
            Some((encoded, entry)) if self.group == group && entry.index == index => {
                if term.is_some_and(|term| term != entry.header.term) {
                    Err("it is of another term")
                } else if crc32c(entry.payload) != entry.header.payload_crc {
                    Err("its payload checksum does not hold")
                } else {
                    Ok(encoded.to_vec())
                }
            }
            _ => Err("another run lies there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(file_no: u64, offset: u64, bytes: u64) -> Place {
        Place { file_no, offset, bytes }
    }

    proptest! {
        #[test]
        fn every_entry_lies_in_the_one_span_that_names_it(
            wanted in proptest::collection::vec((0u64..3, 0u64..3_000_000, 1u64..700_000), 0..60)
        ) {
            let wanted: Vec<_> = wanted.iter().enumerate()
                .map(|(key, (file_no, offset, bytes))| (place(*file_no, *offset, *bytes), Index(key as u64), key))
                .collect();
            let spans = spans(wanted.clone());
            let mut named: Vec<usize> = spans.iter().flat_map(|span| span.keys.clone()).collect();
            named.sort_unstable();
            prop_assert_eq!(named, (0..wanted.len()).collect::<Vec<_>>());
            for span in &spans {
                prop_assert!(span.from.offset.is_multiple_of(BLOCK));
                let alone = wanted[span.keys[0]].0;
                let longest = SPAN_BYTES_MAX.max(alone.offset + alone.bytes - span.from.offset);
                prop_assert!(span.bytes <= longest);
                for key in &span.keys {
                    let place = wanted[*key].0;
                    prop_assert_eq!(place.file_no, span.from.file_no);
                    prop_assert!(place.offset >= span.from.offset);
                    prop_assert!(place.offset + place.bytes <= span.from.offset + span.bytes);
                }
            }
        }
    }

    #[test]
    fn neighbours_are_read_together_and_distant_ones_are_not() {
        let at = |offset| (place(1, offset, 100), Index(offset), offset as usize);
        let spans = spans(vec![at(200_000), at(5000), at(60_000)]);
        let shape: Vec<_> =
            spans.iter().map(|span| (span.from.offset, span.bytes, span.keys.clone())).collect();
        assert_eq!(shape, [(4096, 56_004, vec![5000, 60_000]), (196_608, 3492, vec![200_000])]);
    }
}
