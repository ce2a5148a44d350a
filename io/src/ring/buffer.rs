//! Owned, aligned memory for O_DIRECT. A buffer is moved into its operation and comes back with the completion, so no
//! safe code can touch memory that the kernel may still read or write.
//!
//! Invariants: (1) `start` is aligned to the block size and points to `capacity` bytes, all initialised; (2) a pooled
//! buffer's memory is owned by the pool's arena, which outlives it through the `Arc`.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use coracle_base::codec::Sink;
use coracle_base::limits::BLOCK_BYTES;

/// So far ahead memory is asked for: some three lone entries take that long to be put.
const FETCH_AHEAD_BYTES: usize = 1024;
const CACHE_LINE_BYTES: usize = 64;

/// A block of zeroed, aligned memory, freed when the last user is gone.
#[derive(Debug)]
pub(crate) struct Arena {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: an Arena is only an owner; all access goes through Buffers, each of which has its own part of it.
unsafe impl Send for Arena {}
// SAFETY: as above; the Arena itself hands out no reference to its memory.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Layout::from_size_align(bytes, BLOCK_BYTES).expect("BLOCK_BYTES is a power of two");
        // SAFETY: the layout's size is at least one block.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.layout.size()
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout; the last owner drops it, so no Buffer points into it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A growing byte buffer with fixed capacity and O_DIRECT alignment.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// Keeps the memory alive.
    arena: Arc<Arena>,
}

// SAFETY: a Buffer is the only access to its part of the arena, like a Vec to its heap block.
unsafe impl Send for Buffer {}

impl Buffer {
    /// An empty buffer with room for at least `bytes`, rounded up to whole blocks.
    pub fn with_capacity(bytes: usize) -> Self {
        let arena = Arc::new(Arena::new(bytes));
        Self { start: arena.start, len: 0, capacity: arena.bytes(), arena }
    }

    /// Cuts a fresh `arena` into buffers of these sizes, from its start.
    pub(crate) fn cut(arena: &Arc<Arena>, sizes: impl Iterator<Item = usize>) -> Vec<Self> {
        assert_eq!(Arc::strong_count(arena), 1, "nobody else may cut it");
        let mut at = 0;
        sizes
            .map(|bytes| {
                assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "pool buffers are whole blocks");
                assert!(bytes <= arena.bytes() - at, "the arena is too small for these buffers");
                // SAFETY: [at, at + bytes) lies in the arena, as just checked, and no other buffer has a part of it.
                let start = unsafe { arena.start.add(at) };
                at += bytes;
                Self { start, len: 0, capacity: bytes, arena: arena.clone() }
            })
            .collect()
    }

    /// Bytes that fit in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes it `len` bytes long. Bytes beyond the old length are zero.
    ///
    /// # Panics
    /// If `len` is over the capacity.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer does not grow: {len} > {}", self.capacity);
        let old = std::mem::replace(&mut self.len, len);
        if len > old {
            self[old..].fill(0);
        }
    }

    /// Asks the CPU for `bytes` of the memory that will be put into soon. A buffer that was written to the disk is in nobody's
    /// near cache any more, and small pieces come too seldom for the CPU to foresee the next ones.
    #[inline]
    pub fn fetch_ahead(&self, bytes: usize) {
        let from = self.len + FETCH_AHEAD_BYTES;
        let upto = (from + bytes).min(self.capacity);
        for at in (from..upto).step_by(CACHE_LINE_BYTES) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint that reads nothing, of memory that is the buffer's: `at` is below its capacity.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(self.start.as_ptr().add(at).cast());
            }
            let _ = at;
        }
    }

    /// Whether its memory is a part of `arena`.
    pub(crate) fn is_of(&self, arena: &Arc<Arena>) -> bool {
        Arc::ptr_eq(&self.arena, arena)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` initialised bytes that only this Buffer can reach.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and we hold it exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Sink for Buffer {
    /// # Panics
    /// If the bytes do not fit: the caller checks [`room`](Buffer::room) first.
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(), "buffer overflow: {} > {}", bytes.len(), self.room());
        let at = self.len;
        self.len += bytes.len();
        self[at..].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_shrinks_and_clears_what_was_there() {
        let mut buf = Buffer::with_capacity(10);
        assert_eq!((buf.capacity(), buf.as_ptr() as usize % BLOCK_BYTES), (BLOCK_BYTES, 0));
        buf.put(b"abc");
        buf.resize(1);
        buf.resize(4);
        assert_eq!(&buf[..], b"a\0\0\0");
    }

    #[test]
    fn pooled_buffers_do_not_overlap_and_outlive_the_pool() {
        let arena = Arc::new(Arena::new(4 * BLOCK_BYTES));
        let mut pool = Buffer::cut(&arena, [BLOCK_BYTES; 4].into_iter());
        for (i, buf) in pool.iter_mut().enumerate() {
            buf.resize(BLOCK_BYTES);
            buf.fill(i as u8);
        }
        let last = pool.pop().unwrap();
        drop((pool, arena));
        assert!(last.iter().all(|b| *b == 3));
    }
}
