//! Owned, aligned memory for O_DIRECT. A buffer is moved into its operation and comes back with the completion, so no
//! safe code can touch memory that the kernel may still read or write.
//!
//! Invariants: (1) `start` is aligned to the block size and points to `capacity` bytes, all initialised; (2) a pooled
//! buffer's memory is owned by the pool's arena, which outlives it through the `Arc`.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use coracle_base::codec::Sink;
use coracle_base::limits::BLOCK_BYTES;

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
    _arena: Arc<Arena>,
    /// Its number in the ring's registered pool, if it is of that pool.
    registered: Option<u16>,
}

// SAFETY: a Buffer is the only access to its part of the arena, like a Vec to its heap block.
unsafe impl Send for Buffer {}

impl Buffer {
    /// An empty buffer with room for at least `bytes`, rounded up to whole blocks.
    pub fn with_capacity(bytes: usize) -> Self {
        let arena = Arc::new(Arena::new(bytes));
        Self { start: arena.start, len: 0, capacity: arena.bytes(), _arena: arena, registered: None }
    }

    /// Cuts `arena` into buffers of `bytes` each, numbered from 0 for registration with a ring.
    pub(crate) fn pool(arena: Arena, bytes: usize) -> Vec<Self> {
        assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "pool buffers are whole blocks");
        let arena = Arc::new(arena);
        (0..arena.bytes() / bytes)
            .map(|i| Self {
                // SAFETY: (i + 1) * bytes is at most the arena's size, and the parts do not overlap.
                start: unsafe { arena.start.add(i * bytes) },
                len: 0,
                capacity: bytes,
                _arena: arena.clone(),
                registered: Some(i as u16),
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

    pub(crate) fn registered(&self) -> Option<u16> {
        self.registered
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.start.as_ptr()
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
        assert_eq!((buf.capacity(), buf.address() as usize % BLOCK_BYTES), (BLOCK_BYTES, 0));
        buf.put(b"abc");
        buf.resize(1);
        buf.resize(4);
        assert_eq!(&buf[..], b"a\0\0\0");
    }

    #[test]
    fn pooled_buffers_do_not_overlap_and_outlive_the_pool() {
        let mut pool = Buffer::pool(Arena::new(4 * BLOCK_BYTES), BLOCK_BYTES);
        assert_eq!(pool.len(), 4);
        for (i, buf) in pool.iter_mut().enumerate() {
            buf.resize(BLOCK_BYTES);
            buf.fill(i as u8);
        }
        let last = pool.pop().unwrap();
        drop(pool);
        assert!(last.iter().all(|b| *b == 3));
    }
}
