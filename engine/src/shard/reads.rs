//! Entries for readers outside: from memory, else from the log's files; or a plan of where they lie.
//!
//! Invariants: (1) only what is applied is handed out; (2) readers that wait for files are bounded in number, and each in
//! bytes; (3) whoever waits is answered, also when the shard stops (`Asked`).

use coracle_base::{GroupId, Index};
use coracle_io::{Clock, Disk, Net};
use coracle_wal::ReadError;

use super::Shard;
use super::inbox::ReadTo;
use super::lost;
use crate::Error;
use crate::api::entries::{NoEntry, Part, ReadPlan, decoded, entry_of};

/// Readers that wait for files.
const READERS_MAX: usize = 64;

/// A reader that waits for files.
pub(super) struct Reader {
    group: GroupId,
    entries: Vec<Part>,
    /// The entries among them that lie in files.
    in_files: Vec<Index>,
    max_bytes: usize,
    to: ReadTo,
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    pub(super) fn on_read_entries(
        &mut self,
        group: GroupId,
        indexes: &[Index],
        max_bytes: usize,
        to: ReadTo,
    ) {
        let Some(slot) = self.by_group.get(&group).copied() else { return to.refuse(Error::NoGroup(group)) };
        let one = &self.slots[slot as usize];
        let mut reader = Reader { group, entries: Vec::new(), in_files: Vec::new(), max_bytes, to };
        let mut bytes = 0;
        for index in indexes.iter().copied() {
            let part = if index > one.applied {
                Part::Known((index, Err(NoEntry::NotYet)))
            } else if lost::has(&one.lost, index) {
                Part::Known((index, Err(lost_entry())))
            } else if index < one.log.first() {
                reader.in_files.push(index);
                Part::InFiles
            } else {
                let encoded = one.log.pieces(index, index).next().map_or(&[][..], |(_, _, bytes)| bytes);
                bytes += encoded.len();
                Part::Known((index, decoded(index, encoded)))
            };
            if bytes > max_bytes && !reader.entries.is_empty() {
                break;
            }
            reader.entries.push(part);
        }
        reader.max_bytes = max_bytes.saturating_sub(bytes);
        if reader.in_files.is_empty() {
            return self.answer_reader(reader, Vec::new(), None);
        }
        if self.readers.len() >= READERS_MAX {
            return reader.to.refuse(Error::Busy);
        }
        self.read_files(reader);
    }

    fn read_files(&mut self, reader: Reader) {
        let token = self.token();
        let (group, indexes, max_bytes) = (reader.group, &reader.in_files, reader.max_bytes);
        match reader.to {
            ReadTo::Entries(_) => self.wal.read_live(&mut self.disk, token, group, indexes, max_bytes),
            ReadTo::Plan(_) => self.wal.plan_read(&mut self.disk, token, group, indexes, max_bytes),
        }
        self.readers.insert(token, reader);
    }

    /// Answers the readers whose files were read, or looked through.
    pub(super) fn complete_readers(&mut self) {
        // What is begun anew below is for the next turn.
        let mut again = Vec::new();
        while let Some((token, out)) = self.wal.poll_live() {
            if self.on_live_read(token, &out) {
                continue;
            }
            let Some(reader) = self.readers.remove(&token) else { continue };
            let mut read = Vec::with_capacity(out.entries.len());
            for (_, index, result) in out.entries {
                // A file's last batches are on their way: what comes before is enough for now.
                if matches!(result, Err(ReadError::NotDurable { .. })) {
                    break;
                }
                read.push((index, entry_of(index, result)));
            }
            match read.is_empty() {
                true => again.push(reader),
                false => self.answer_reader(reader, read, None),
            }
        }
        while let Some((token, plan)) = self.wal.poll_plan() {
            let Some(reader) = self.readers.remove(&token) else { continue };
            match plan {
                None => reader.to.refuse(Error::Busy),
                Some(plan) if plan.is_empty() => again.push(reader),
                Some(plan) => self.answer_reader(reader, Vec::new(), Some(plan)),
            }
        }
        again.into_iter().for_each(|reader| self.read_files(reader));
    }

    fn answer_reader(
        &self,
        reader: Reader,
        read: Vec<crate::api::entries::ReadEntry>,
        files: Option<coracle_wal::ReadPlan>,
    ) {
        match reader.to {
            ReadTo::Plan(asked) => {
                let (root, mut entries) = (self.settings.root.clone(), reader.entries);
                let mut left = files.as_ref().map_or(0, coracle_wal::ReadPlan::len);
                let end = entries.iter().position(|part| match part {
                    Part::Known(_) => false,
                    Part::InFiles if left == 0 => true,
                    Part::InFiles => {
                        left -= 1;
                        false
                    }
                });
                entries.truncate(end.unwrap_or(entries.len()));
                asked.answer(Ok(ReadPlan { root, entries, files }));
            }
            ReadTo::Entries(asked) => {
                let mut read = read.into_iter();
                let each = reader.entries.into_iter().map_while(|part| match part {
                    Part::Known(known) => Some(known),
                    Part::InFiles => read.next(),
                });
                asked.answer(Ok(each.collect()));
            }
        }
    }
}

fn lost_entry() -> NoEntry {
    let why = "the record that held it was lost with a damaged part of the log".to_owned();
    NoEntry::Damaged { file: "the log".into(), why }
}
