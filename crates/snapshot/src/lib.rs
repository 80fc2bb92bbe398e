//! What a snapshot is on disk.
