//! What a memory image is on disk, and when it exists.
//!
//! An image is a directory: files written by an engine (not understood here) and `manifest.json`.
//! It is written into a staging directory next to its final place, made durable, and then renamed:
//! **the rename is the commit point**. A directory with the final name is complete; anything else
//! is rubbish to be swept.
//!
//! ```text
//! images/.staging-m7k…/   being written, or left by a crash
//! images/m7k…/            committed, never changed again
//!   manifest.json         format version, engine build, layers, sizes, hashes
//!   checkpoint.img …      the engine's; large ones as pages.img.zst in a packed image
//! images/.unpacked-m7k…/  what a packed image is restored from
//! ```

mod manifest;
mod packed;
mod store;

pub use manifest::{EngineIdentity, FORMAT_VERSION, FileEntry, ImageId, Manifest, Subject};
pub use packed::Packing;
pub use store::{ImageError, Images, Staging};
