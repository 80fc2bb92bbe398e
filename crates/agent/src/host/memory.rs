//! Keeps the agent small: its memory is part of every memory image.

/// Allocator arenas. Each costs memory that is never given back, and the agent is one busy thread.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// Blocks of at least this size are given back to the guest as soon as they are free. Without a fixed
/// figure the allocator keeps more with every large block it has seen.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: libc::c_int = 128 * 1024;

/// Called once before any thread exists.
pub(crate) fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the allocator has no other interface")]
        // SAFETY: mallopt only sets numbers, and no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        }
    }
}

/// Returns free memory to the guest.
pub(crate) fn shrink() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the allocator has no other interface")]
        // SAFETY: malloc_trim takes the allocator's own locks and touches only free memory.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
