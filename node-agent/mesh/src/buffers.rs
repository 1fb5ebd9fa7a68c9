//! Large buffers, shared by all connections of a worker: a connection holds one while bytes move, and none when idle.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Octets of a buffer: sixteen full records and the beginning of another (RFC 8446 §5.1), with heads and tails.
pub(crate) const BUFFER: usize = 17 * (16_384 + 22);
/// Buffers kept for later, per worker. More are made when more connections are busy at once.
const KEPT: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A large buffer. Dropped, it goes back to its worker.
pub(crate) struct Buffer(Box<[u8]>);

impl Buffer {
    /// A buffer with anything in it.
    pub(crate) fn take() -> Self {
        let kept = FREE.with_borrow_mut(Vec::pop);
        Self(kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // Fails only while the thread ends, and its buffers with it.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again_and_few_are_kept() {
        let mut buffer = Buffer::take();
        buffer[0] = 77;
        drop(buffer);
        assert_eq!(Buffer::take()[0], 77);
        drop((0..KEPT + 5).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert_eq!(FREE.with_borrow(Vec::len), KEPT);
    }
}
