//! Snapshots in the log are carried out of files that hold nothing else, one at a time: written again, in a newer file.

use coracle_base::Index;
use coracle_base::codec::Reader;
use coracle_base::limits::BLOCK_BYTES;
use coracle_io::Disk;

use super::{Next, Want};
use crate::format::Position;
use crate::format::page::SnapshotPlace;
use crate::format::record::{RECORD_HEADER_BYTES, Record, SNAPSHOT_PREFIX_BYTES};
use crate::groups::Group;
use crate::wal::Wal;

impl Wal {
    /// Carries one snapshot at a time out of a file that holds nothing else.
    pub(crate) fn step_carry<D: Disk>(&mut self, disk: &mut D) {
        if !self.reads.is_idle() {
            return;
        }
        if std::mem::take(&mut self.reads.carry_due)
            && let Some(file_no) = self.files.only_snapshots(self.checkpoints.needed_from(), &self.refs)
        {
            let lies_there =
                |group: &Group| group.cold.snapshot.and_then(|place| place.log_file()) == Some(file_no);
            self.reads.carry =
                (0..self.groups.len()).filter(|slot| lies_there(self.groups.at(*slot))).collect();
        }
        let Some(slot) = self.reads.carry.pop() else { return };
        let group = self.groups.at(slot);
        let id = group.cold.id;
        if let Some(SnapshotPlace::Inline { at, bytes }) = group.cold.snapshot
            && at.file_no < self.checkpoints.needed_from()
        {
            self.queue_job(Want::Carry { slot, at, bytes }, id, Index::ZERO, None);
            self.step_reads(disk);
        }
    }

    pub(super) fn next_for_carry(&self, slot: usize, at: Position, bytes: u32) -> Next {
        let is_current = self.groups.at(slot).cold.snapshot == Some(SnapshotPlace::Inline { at, bytes });
        let file_no = at.file_no;
        match self.files.get(file_no).filter(|_| is_current) {
            None => Next::Finish,
            Some(file) if file.handle.is_none() => Next::Open { file_no },
            Some(_) => {
                let block = BLOCK_BYTES as u64;
                let start = at.offset / block * block;
                let bytes = RECORD_HEADER_BYTES as u64 + SNAPSHOT_PREFIX_BYTES as u64 + u64::from(bytes);
                let end = (at.offset + bytes).next_multiple_of(block);
                Next::Read { from: Position { file_no, offset: start }, bytes: (end - start) as usize }
            }
        }
    }

    pub(super) fn carry_snapshot(&mut self, slot: usize, place: SnapshotPlace, bytes: &[u8]) {
        let group = self.groups.at(slot);
        let (id, index, term) = (group.cold.id, group.base, group.cold.base_term);
        let is_current = group.cold.snapshot == Some(place);
        match Record::read(&mut Reader::new(bytes)) {
            Ok(Record::Snapshot(found))
                if is_current && (found.group, found.index, found.term) == (id, index, term) =>
            {
                self.put_snapshot(id, index, term, &found.live, found.bytes);
            }
            Ok(_) | Err(_) if is_current => {
                tracing::warn!(group = id.0, file = place.log_file(), "a snapshot in the log is damaged");
            }
            _ => {}
        }
    }
}
