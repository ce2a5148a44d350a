//! The ring's buffers: one block of memory registered with the kernel, cut into buffers, so that a write need not pin
//! pages; and a few buffers beyond it, kept for reuse.
//!
//! Invariant: a buffer of the registered block is either in `free`, in an operation, or in the caller's hands. One
//! that the caller drops instead of recycling is lost to the pool (never to memory safety) until the ring ends.

use std::sync::Arc;

use super::buffer::{Arena, Buffer};

/// Buffers beyond the registered ones that are kept for reuse.
const SPARES_MAX: usize = 16;

pub(crate) struct Pool {
    arena: Arc<Arena>,
    /// False if the kernel would not take the block; its buffers then serve plain reads and writes.
    registered: bool,
    free: Vec<Buffer>,
    spares: usize,
}

impl Pool {
    /// Buffers of each size (bytes, count).
    pub(crate) fn new(sizes: &[(usize, usize)]) -> Self {
        let arena = Arc::new(Arena::new(sizes.iter().map(|(bytes, count)| bytes * count).sum()));
        let free =
            Buffer::cut(&arena, sizes.iter().flat_map(|(bytes, count)| std::iter::repeat_n(*bytes, *count)));
        Self { arena, registered: false, free, spares: 0 }
    }

    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(crate) fn set_registered(&mut self) {
        self.registered = true;
    }

    /// Whether the kernel knows this buffer's memory.
    pub(crate) fn is_registered(&self, buf: &Buffer) -> bool {
        self.registered && buf.is_of(&self.arena)
    }

    /// The smallest free buffer that fits, of those the last one used, which the caches may still hold; or a new one.
    pub(crate) fn take(&mut self, bytes: usize) -> Buffer {
        let fits = self.free.iter().enumerate().rev().filter(|(_, buf)| buf.capacity() >= bytes);
        let Some((at, _)) = fits.min_by_key(|(_, buf)| buf.capacity()) else {
            return Buffer::with_capacity(bytes);
        };
        let buf = self.free.remove(at);
        if !buf.is_of(&self.arena) {
            self.spares -= 1;
        }
        buf
    }

    pub(crate) fn put(&mut self, mut buf: Buffer) {
        if !buf.is_of(&self.arena) {
            if self.spares == SPARES_MAX {
                return;
            }
            self.spares += 1;
        }
        buf.clear();
        self.free.push(buf);
    }
}

#[cfg(test)]
mod tests {
    use coracle_base::limits::BLOCK_BYTES;

    use super::*;

    #[test]
    fn the_smallest_fitting_buffer_is_taken_and_comes_back() {
        let mut pool = Pool::new(&[(2 * BLOCK_BYTES, 1), (BLOCK_BYTES, 1)]);
        pool.set_registered();
        let small = pool.take(1);
        let large = pool.take(1);
        let beyond = pool.take(1);
        let capacities = [&small, &large, &beyond].map(Buffer::capacity);
        assert_eq!(capacities, [BLOCK_BYTES, 2 * BLOCK_BYTES, BLOCK_BYTES]);
        assert_eq!([&small, &large, &beyond].map(|buf| pool.is_registered(buf)), [true, true, false]);
        pool.put(large);
        let large = pool.take(BLOCK_BYTES + 1);
        assert!(pool.is_registered(&large));
        pool.put(beyond);
        let beyond = pool.take(1);
        assert!(!pool.is_registered(&beyond));
    }

    #[test]
    fn the_buffer_used_last_is_used_next() {
        let mut pool = Pool::new(&[(BLOCK_BYTES, 4)]);
        let (one, two) = (pool.take(1), pool.take(1));
        let address = one.as_ptr();
        pool.put(two);
        pool.put(one);
        assert_eq!(pool.take(1).as_ptr(), address);
    }

    #[test]
    fn buffers_beyond_the_pool_are_kept_up_to_a_bound() {
        let mut pool = Pool::new(&[(BLOCK_BYTES, 1)]);
        for _ in 0..SPARES_MAX + 5 {
            pool.put(Buffer::with_capacity(1));
        }
        assert_eq!(pool.free.len(), 1 + SPARES_MAX);
    }
}
