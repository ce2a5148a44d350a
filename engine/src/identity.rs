//! Who a data directory is: its node, its incarnation and its cluster. Pure codec and rules, and the file's reading
//! and writing through the disk's operations.
//!
//! ```text
//!   file "identity", little-endian
//!   0    8   magic          "CORACLEI"
//!   8    2   version        1
//!   10   2   min_reader     1: a reader of a lower version refuses
//!   12   8   node
//!   20   8   incarnation    drawn with the directory; a lost directory never comes back as the same member
//!   28   2   shards
//!   30   ..  cluster        as formed (`cluster.rs`); id 0: not formed yet
//!   ..   4   crc32c         of everything before
//!   ..   ..  places         who came later (`cluster.rs`), if anybody did, and a crc32c of that; then zeros up to the block
//! ```
//!
//! Beside it an empty file `shard-N.begun` for each shard whose log was begun: a log that is gone, to the last file, is
//! told from one that never was. Without it a voter could forget what it voted and acknowledged.
//!
//! Formation: a node that is empty (no cluster) becomes part of one in only two ways. The lowest listed id, once every
//! listed peer has said that it is empty, draws the cluster's id and notes everybody's incarnation. Any other empty
//! node takes over the cluster that a peer shows it, if it finds its own incarnation there. So two clusters cannot be
//! formed, and a directory that was lost after the formation is refused, as its node would be a voter that forgot, until
//! an operator gives up its place (`cluster.rs`): then it is a node that came later, and a member of nothing.

use std::path::PathBuf;

use coracle_base::checksum::crc32c;
use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{NodeId, ShardId};
use coracle_io::disk::run;
use coracle_io::{Disk, DiskError, DiskOk, DiskOp, FileMode};

use crate::Error;
use crate::cluster::{Cluster, decode_formed, decode_places, encode_formed, encode_places};

const MAGIC: &[u8; 8] = b"CORACLEI";
const VERSION: u16 = 1;
pub(crate) const FILE: &str = "identity";
pub(crate) const NEW_FILE: &str = "identity.new";

/// Who a data directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its node.
    pub node: NodeId,
    /// Drawn when the directory was made.
    pub incarnation: u64,
    /// Shards of the cluster.
    pub shards: u16,
    /// The cluster, once there is one.
    pub cluster: Option<Cluster>,
}

/// Where a shard's log lies in the data directory.
pub fn log_dir(shard: ShardId) -> PathBuf {
    format!("shard-{shard}").into()
}

fn begun_file(shard: ShardId) -> PathBuf {
    format!("shard-{shard}.begun").into()
}

impl Identity {
    /// What the directory says of itself; `None` if it says nothing. Writes nothing: for tools that look into it.
    ///
    /// # Errors
    /// [`Error::Directory`]: the file is damaged, or of a newer version; [`Error::Disk`].
    pub fn look<D: Disk>(disk: &mut D) -> Result<Option<Self>, Error> {
        read_file(disk)?.map(|bytes| Self::decode(&bytes)).transpose()
    }

    /// Whose the log of a shard is, once there is a cluster.
    pub fn of_log(&self, shard: ShardId) -> Option<coracle_wal::Identity> {
        let (node, incarnation, shards) = (self.node, self.incarnation, self.shards);
        let cluster = self.cluster.as_ref()?.id;
        Some(coracle_wal::Identity { cluster, node, incarnation, shard, shards })
    }

    /// Reads the directory's identity, or begins a new one for `node` and makes it durable.
    ///
    /// # Errors
    /// [`Error::Directory`]: it is another node's, of another number of shards, damaged, or of a newer version;
    /// [`Error::Disk`].
    pub(crate) fn open<D: Disk>(
        disk: &mut D,
        node: NodeId,
        shards: u16,
        incarnation: u64,
    ) -> Result<Self, Error> {
        let Some(bytes) = read_file(disk)? else {
            if let Some(entry) = disk.list(&log_dir(ShardId(0))).unwrap_or_default().first() {
                return Err(wrong(format!(
                    "the file is missing, and yet there is shard-0/{}; restore it, or empty the directory",
                    entry.name
                )));
            }
            let identity = Identity { node, incarnation, shards, cluster: None };
            identity.save(disk)?;
            return Ok(identity);
        };
        let identity = Self::decode(&bytes)?;
        if identity.node != node {
            let reason = format!(
                "belongs to node {}, not to node {node}; use that node's own directory",
                identity.node
            );
            return Err(wrong(reason));
        }
        if identity.shards != shards && identity.cluster.is_some() {
            return Err(Error::Config {
                key: "shards",
                reason: format!(
                    "the cluster was formed with {}, which is fixed; not {shards}",
                    identity.shards
                ),
            });
        }
        Ok(Identity { shards, ..identity })
    }

    /// Whether a shard's log was ever begun in this directory. One that is there and not noted, because its node ended too
    /// early or was of an older version, is noted now.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn has_begun<D: Disk>(disk: &mut D, shard: ShardId) -> Result<bool, Error> {
        match run(disk, DiskOp::Open { path: begun_file(shard), mode: FileMode::Read }) {
            Ok((DiskOk::Opened { file, .. }, _)) => {
                run(disk, DiskOp::Close { file })?;
                return Ok(true);
            }
            Ok(_) => return Err(unexpected("open")),
            Err(DiskError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let there = match disk.list(&log_dir(shard)) {
            // A file that was never finished is called otherwise (simulator seed 162).
            Ok(entries) => entries.iter().any(|entry| {
                entry.name.ends_with(".wal") && entry.name.starts_with(|first: char| first.is_ascii_digit())
            }),
            Err(DiskError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if there {
            // A name that a crash may yet take is no proof that there was a log.
            run(disk, DiskOp::SyncDir { path: log_dir(shard) })?;
            Self::begin_log(disk, shard)?;
        }
        Ok(there)
    }

    /// Notes durably that a shard's log was begun. To be called when it is open, before anything is promised.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn begin_log<D: Disk>(disk: &mut D, shard: ShardId) -> Result<(), Error> {
        let opened = run(disk, DiskOp::Open { path: begun_file(shard), mode: FileMode::Write })?;
        let (DiskOk::Opened { file, .. }, _) = opened else { return Err(unexpected("open")) };
        run(disk, DiskOp::Sync { file })?;
        run(disk, DiskOp::Close { file })?;
        run(disk, DiskOp::SyncDir { path: PathBuf::new() })?;
        Ok(())
    }

    /// Makes this identity the directory's, durably and atomically.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save<D: Disk>(&self, disk: &mut D) -> Result<(), Error> {
        let mut buf = disk.buffer(BLOCK_BYTES);
        buf.put(&self.encode());
        buf.resize(BLOCK_BYTES);
        let opened = run(disk, DiskOp::Open { path: NEW_FILE.into(), mode: FileMode::Write })?;
        let (DiskOk::Opened { file, .. }, _) = opened else { return Err(unexpected("open")) };
        run(disk, DiskOp::Write { file, offset: 0, buf })?;
        run(disk, DiskOp::Sync { file })?;
        run(disk, DiskOp::Close { file })?;
        run(disk, DiskOp::Rename { from: NEW_FILE.into(), to: FILE.into() })?;
        run(disk, DiskOp::SyncDir { path: PathBuf::new() })?;
        Ok(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.put(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(VERSION);
        out.put_u64(self.node.0);
        out.put_u64(self.incarnation);
        out.put_u16(self.shards);
        encode_formed(self.cluster.as_ref(), &mut out);
        let crc = crc32c(&out);
        out.put_u32(crc);
        let mut later = Vec::new();
        encode_places(self.cluster.as_ref().map_or(&[], |cluster| &cluster.places), &mut later);
        if !later.is_empty() {
            let crc = crc32c(&later);
            out.put(&later);
            out.put_u32(crc);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let damaged =
            |_| wrong("is damaged (too short); restore it from a copy, or replace this node".into());
        let mut reader = Reader::new(bytes);
        let magic = reader.bytes(8).map_err(damaged)?;
        if magic != MAGIC {
            return Err(wrong("is not a Coracle identity; use an empty directory".into()));
        }
        let version = reader.u16().map_err(damaged)?;
        let min_reader = reader.u16().map_err(damaged)?;
        if min_reader > VERSION {
            return Err(wrong(format!(
                "was written by a newer version (format {version}, readable from {min_reader}; this one reads {VERSION})"
            )));
        }
        let node = NodeId(reader.u64().map_err(damaged)?);
        let incarnation = reader.u64().map_err(damaged)?;
        let shards = reader.u16().map_err(damaged)?;
        let mut cluster = decode_formed(&mut reader).map_err(damaged)?;
        let sum_fails =
            || wrong("is damaged (checksum); restore it from a copy, or replace this node".into());
        let covered = bytes.len() - reader.rest().len();
        if reader.u32().map_err(damaged)? != crc32c(&bytes[..covered]) {
            return Err(sum_fails());
        }
        let begin = bytes.len() - reader.rest().len();
        let places = decode_places(&mut reader).map_err(damaged)?;
        let covered = &bytes[begin..bytes.len() - reader.rest().len()];
        if !covered.is_empty() && reader.u32().map_err(damaged)? != crc32c(covered) {
            return Err(sum_fails());
        }
        if let Some(cluster) = &mut cluster {
            cluster.places = places;
        }
        Ok(Identity { node, incarnation, shards, cluster })
    }
}

fn wrong(reason: String) -> Error {
    Error::Directory { path: FILE.into(), reason }
}

fn unexpected(op: &'static str) -> Error {
    Error::Disk(DiskError::Failed { path: FILE.into(), op, code: 0, reason: "unexpected completion".into() })
}

fn read_file<D: Disk>(disk: &mut D) -> Result<Option<Vec<u8>>, Error> {
    let file = match run(disk, DiskOp::Open { path: FILE.into(), mode: FileMode::Read }) {
        Ok((DiskOk::Opened { file, .. }, _)) => file,
        Ok(_) => return Err(unexpected("open")),
        Err(DiskError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut buf = disk.buffer(BLOCK_BYTES);
    buf.resize(BLOCK_BYTES);
    let (ok, buf) = run(disk, DiskOp::Read { file, offset: 0, buf })?;
    run(disk, DiskOp::Close { file })?;
    match (ok, buf) {
        (DiskOk::Read { bytes }, Some(buf)) => Ok(Some(buf[..bytes.min(buf.len())].to_vec())),
        _ => Err(unexpected("read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Identity {
        let members = vec![(NodeId(1), 11), (NodeId(2), 22), (NodeId(3), 33)];
        Identity { node: NodeId(2), incarnation: 22, shards: 1, cluster: Some(Cluster::new(99, members)) }
    }

    #[test]
    fn golden_bytes() {
        let hex = |identity: &Identity| -> String {
            identity.encode().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(hex(&sample()), include_str!("../testdata/identity-v1.hex").trim());
        assert_eq!(hex(&with_places()), include_str!("../testdata/identity-places.hex").trim());
    }

    fn with_places() -> Identity {
        let cluster = sample().cluster.map(|cluster| {
            let cluster = cluster.with(cluster.give_up(NodeId(3), NodeId(1)));
            let cluster = cluster.with(cluster.take(NodeId(3), 34, NodeId(1)));
            cluster.with(cluster.take(NodeId(4), 44, NodeId(1)))
        });
        Identity { cluster, ..sample() }
    }

    #[test]
    fn every_flip_and_truncation_is_noticed() {
        for sample in [sample(), with_places()] {
            flip_and_cut(&sample);
        }
    }

    fn flip_and_cut(sample: &Identity) {
        let bytes = sample.encode();
        assert_eq!(Identity::decode(&bytes).unwrap(), *sample);
        let mut padded = bytes.clone();
        padded.resize(BLOCK_BYTES, 0);
        assert_eq!(Identity::decode(&padded).unwrap(), *sample);
        for at in 0..bytes.len() {
            // As formed it is whole without what came later.
            let cut = Identity::decode(&bytes[..at]);
            assert!(cut.is_err() || at == self::sample().encode().len(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(Identity::decode(&bad).is_err(), "flip of bit {bit} at {at}");
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = sample().encode();
        bytes[10] = 9;
        assert!(Identity::decode(&bytes).unwrap_err().to_string().contains("newer version"));
    }
}
