//! Large buffers that are used again within one answer.
//!
//! Fresh memory is dear in the guest: each page of it is a fault that its kernel has to handle.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers of one size. Those that are in use come back when their bytes have been sent.
#[derive(Debug)]
pub(super) struct Buffers {
    size: usize,
    free: Free,
}

type Free = Arc<Mutex<Vec<Box<[u8]>>>>;

/// A buffer in use.
struct Filled {
    buffer: Box<[u8]>,
    length: usize,
    home: Free,
}

impl Buffers {
    /// None yet.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            free: Free::default(),
        }
    }

    /// Lets `read` fill at most `most` bytes of a buffer, and says how many it did.
    pub(super) fn fill(
        &self,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Bytes> {
        let free = lock(&self.free).pop();
        let mut buffer = free.unwrap_or_else(|| vec![0; self.size].into());
        let most = most.min(buffer.len());
        let length = read(&mut buffer[..most])?;
        Ok(Bytes::from_owner(Filled {
            buffer,
            length,
            home: Arc::clone(&self.free),
        }))
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        lock(&self.home).push(std::mem::take(&mut self.buffer));
    }
}

fn lock(free: &Free) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_its_bytes_are_gone() {
        let buffers = Buffers::new(4);
        let fill = |byte: u8| {
            let read = |buffer: &mut [u8]| {
                buffer.fill(byte);
                Ok(buffer.len())
            };
            buffers.fill(3, read).unwrap()
        };
        let (first, second) = (fill(1), fill(2));
        assert_eq!((&first[..], &second[..]), (&[1; 3][..], &[2; 3][..]));
        let place = first.as_ptr();
        drop(first);
        let third = fill(3);
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 3][..]));
        assert_eq!(&second[..], [2; 3]);
    }
}
