//! Where a replay begins: at the checkpoint that the log's end names; else, or if anything about that is not sound, at the
//! newest one that is complete; else at the beginning of the log, if that is still there.

use std::path::Path;

use coracle_io::Disk;

use super::chain::Link;
use super::reader::Readers;
use super::replay::Replay;
use super::roots::{self, FoundRoot};
use super::scan::{Scan, Tail};
use super::{Found, pages};
use crate::checkpoint::Kept;
use crate::config::Identity;
use crate::error::WalError;
use crate::format::Position;
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::page::{Begin, Root};
use crate::pages::files_of;

/// Replays from the checkpoint that the log's end names. `None` if there is none, or the log is damaged: then everything is
/// to be looked at.
fn find_named<'a, D: Disk>(
    readers: &mut Readers<'_, D>,
    dir: &'a Path,
    links: &[Link],
    identity: &Identity,
) -> Result<Option<Found<'a>>, WalError> {
    #[cfg(feature = "breaks")]
    if crate::breaks::is_on(crate::breaks::Break::TornCheckpointAccepted) {
        return Ok(None);
    }
    let roots = roots::named(readers, links)?;
    let Some(newest) = roots.first() else { return Ok(None) };
    let replay = Replay::new(dir, identity.shards, Some(newest.root.clone()));
    let replayed = replay_from(readers, links, newest.root.begin, replay)?;
    let sound = replayed.filter(|(replay, tail)| !tail.suspect && replay.holes.is_empty());
    let Some((mut replay, tail)) = sound else { return Ok(None) };
    // Roots that no batch had a chance to name: all that they rest on was replayed, so they hold.
    let later = std::mem::take(&mut replay.later);
    let mut kept_roots = later.iter().rev().chain(&roots);
    let (newest, older) = (kept_roots.next().unwrap_or(newest), kept_roots.next());
    let last_checkpoint = replay.last_checkpoint.max(newest.root.checkpoint);
    let (kept, ends) = ([Some(kept(newest)), older.map(kept)], newest.root.files.clone());
    Ok(Some(Found { replay, tail, kept, last_checkpoint, ends }))
}

/// Replays from the newest checkpoint that is complete, or from the beginning if the log still has it.
pub(super) fn find_log<'a, D: Disk>(
    readers: &mut Readers<'_, D>,
    dir: &'a Path,
    links: &[Link],
    identity: &Identity,
) -> Result<Found<'a>, WalError> {
    if let Some(found) = find_named(readers, dir, links, identity)? {
        return Ok(found);
    }
    let mut roots: Vec<FoundRoot> = Vec::new();
    let mut tried = 0;
    let mut last_checkpoint = 0;
    let mut unread = links.iter().rev();
    loop {
        while tried == roots.len() {
            let Some(link) = unread.next() else { break };
            roots.extend(roots::in_file(readers, link)?.into_iter().rev());
        }
        let Some(candidate) = roots.get(tried).cloned() else { break };
        tried += 1;
        last_checkpoint = last_checkpoint.max(candidate.root.checkpoint);
        let from = candidate.root.begin;
        let replay = Replay::new(dir, identity.shards, Some(candidate.root.clone()));
        let Some((replay, tail)) = replay_from(readers, links, from, replay)? else { continue };
        while tried == roots.len() {
            let Some(link) = unread.next() else { break };
            roots.extend(roots::in_file(readers, link)?.into_iter().rev());
        }
        let older = roots.get(tried).map(kept);
        let kept = [Some(kept(&candidate)), older];
        return Ok(Found { replay, tail, kept, last_checkpoint, ends: candidate.root.files });
    }
    let origin = links.first().and_then(|link| link.head).filter(|head| head.prev.is_none());
    let Some(origin) = origin else {
        let missing = if links.is_empty() {
            "no file has a sound head".to_owned()
        } else {
            "there is no whole checkpoint, and the first file is gone".to_owned()
        };
        return Err(WalError::Lost { dir: dir.to_owned(), missing });
    };
    let at = Position { file_no: origin.file_no, offset: HEAD_AREA_BYTES };
    let from = Begin { at, seq: origin.first_seq, chain: 0 };
    match replay_from(readers, links, from, Replay::new(dir, identity.shards, None))? {
        Some((replay, tail)) => {
            Ok(Found { replay, tail, kept: [None, None], last_checkpoint, ends: Vec::new() })
        }
        None => Err(WalError::Lost { dir: dir.to_owned(), missing: "the first file is gone".to_owned() }),
    }
}

fn kept(found: &FoundRoot) -> Kept {
    let Root { checkpoint, begin, kept, .. } = &found.root;
    Kept {
        id: *checkpoint,
        begin: *begin,
        root_seq: found.seq,
        root_at: found.at,
        page_files: files_of(kept),
    }
}

/// `None` if the checkpoint turns out not to be whole.
fn replay_from<'a, D: Disk>(
    readers: &mut Readers<'_, D>,
    links: &[Link],
    from: Begin,
    mut replay: Replay<'a>,
) -> Result<Option<(Replay<'a>, Tail)>, WalError> {
    if !pages::take_kept(readers, &mut replay)? {
        return Ok(None);
    }
    replay.groups.begin_runs_at(from.at);
    let Some(scan) = Scan::new(readers, links, from) else { return Ok(None) };
    let tail = scan.run(&mut replay)?;
    Ok(replay.complete.then_some((replay, tail)))
}
