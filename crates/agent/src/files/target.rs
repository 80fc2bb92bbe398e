//! One file being uploaded, and what its watchers see (contract §5.8, §6.3).
//!
//! A small new file makes exactly three events: created, owner changed, written. So there is no
//! temporary file, the owner is always set, and what arrives is collected to be written at once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{chown, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::StatusCode;
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::{attributes, directories};
use crate::server::Failed;
use crate::users::User;

/// Bytes collected before they are written.
const BUFFER: usize = 1024 * 1024;

/// Keeps the opening of a file, by its path, and writes under way apart. A few paths share one: that
/// makes an open wait for the write of another file now and then.
static WRITING: [RwLock<()>; 64] = [const { RwLock::new(()) }; 64];

/// A file open for writing.
pub(crate) struct Target {
    file: Arc<File>,
    path: String,
    buffer: Vec<u8>,
    /// The write under way; its buffer comes back to be filled again.
    writing: Option<Writing>,
    /// Whether nobody wants what is still to be written.
    dropped: Dropped,
    /// Length of the request, for the message when the disk is full.
    announced: Option<u64>,
}

type Writing = JoinHandle<Result<Vec<u8>, Failed>>;

/// Says at its end that its upload is over. One that was cut off leaves a write behind, which must not
/// land in the file after the next upload has begun.
#[derive(Default)]
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Target {
    /// Opens the file, making its directories. It belongs to `user` afterwards, also if it was
    /// there before.
    pub(crate) async fn open(
        path: String,
        user: &User,
        announced: Option<u64>,
    ) -> Result<Self, Failed> {
        let user = user.clone();
        blocking(move || {
            let file = open(&path, &user)?;
            Ok(Self {
                file: Arc::new(file),
                path,
                buffer: Vec::new(),
                writing: None,
                dropped: Dropped::default(),
                announced,
            })
        })
        .await
    }

    /// Adds bytes.
    pub(crate) async fn write(&mut self, chunk: &Bytes) -> Result<(), Failed> {
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() >= BUFFER {
            self.flush().await?;
        }
        Ok(())
    }

    /// Begins to write what was collected. One write at a time: while it goes on, more arrives.
    async fn flush(&mut self) -> Result<(), Failed> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let free = self.written().await?;
        let buffer = std::mem::replace(&mut self.buffer, free);
        let file = Arc::clone(&self.file);
        let path = self.path.clone();
        let announced = self.announced;
        let dropped = Arc::clone(&self.dropped.0);
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let lock = lock_of(&path).read();
            let _writing = lock.unwrap_or_else(PoisonError::into_inner);
            if dropped.load(Ordering::Acquire) {
                return Ok(Vec::new());
            }
            (&*file)
                .write_all(&buffer)
                .map_err(|error| write_error(&path, announced, &error))?;
            let mut buffer = buffer;
            buffer.clear();
            Ok(buffer)
        }));
        Ok(())
    }

    /// Waits for the write under way and returns its empty buffer.
    async fn written(&mut self) -> Result<Vec<u8>, Failed> {
        match self.writing.take() {
            Some(writing) => writing
                .await
                .map_err(|error| Failed::internal(error.to_string()))?,
            None => Ok(Vec::new()),
        }
    }

    /// Writes what is left and the metadata, which replaces what the file had before; returns what
    /// the file has now.
    pub(crate) async fn finish(
        mut self,
        metadata: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Failed> {
        self.flush().await?;
        self.written().await?;
        blocking(move || {
            attributes::replace(&*self.file, &metadata).map_err(|error| {
                let full = is_full(&error);
                let message = format!("error setting metadata of '{}': {error}", self.path);
                if full {
                    not_enough("disk space")
                } else {
                    Failed::internal(message)
                }
            })?;
            Ok(attributes::read(Path::new(&self.path)))
        })
        .await
    }
}

fn lock_of(path: &str) -> &'static RwLock<()> {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    &WRITING[hasher.finish() as usize % WRITING.len()]
}

fn open(path: &str, user: &User) -> Result<File, Failed> {
    if let Some(parent) = Path::new(path).parent() {
        directories::create_all(parent, user).map_err(|error| {
            if is_full(&error.source) {
                not_enough("inodes")
            } else {
                Failed::internal(format!("error ensuring directories: {error}"))
            }
        })?;
    }
    let failed = |error: io::Error| {
        if is_full(&error) {
            return not_enough("inodes");
        }
        Failed::internal(format!("error opening file '{path}': {error}"))
    };
    let existed = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(Failed::bad_request(format!("path is a directory: {path}")));
        }
        Ok(metadata) if !metadata.is_file() => {
            return Err(Failed::bad_request(format!(
                "path is not a regular file: {path}"
            )));
        }
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
    };
    let (owner, group) = (Some(user.uid), Some(user.gid));
    if existed {
        let owned = chown(path, owner, group);
        owned.map_err(|error| Failed::internal(format!("error changing ownership: {error}")))?;
    }
    let lock = lock_of(path).write();
    let _nobody_writes = lock.unwrap_or_else(PoisonError::into_inner);
    // New files get 0666 less the umask; existing ones keep mode and inode.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = file.map_err(failed)?;
    if !existed {
        let owned = fchown(&file, owner, group);
        owned.map_err(|error| Failed::internal(format!("error changing ownership: {error}")))?;
    }
    Ok(file)
}

fn write_error(path: &str, announced: Option<u64>, error: &io::Error) -> Failed {
    if !is_full(error) {
        return Failed::internal(format!("error writing to file '{path}': {error}"));
    }
    let prefix = announced.map(|size| format!("attempted to write {size} bytes: "));
    let message = format!(
        "{}not enough disk space available",
        prefix.unwrap_or_default()
    );
    Failed::new(StatusCode::INSUFFICIENT_STORAGE, message)
}

/// 507 with the contract's words.
pub(crate) fn not_enough(what: &str) -> Failed {
    Failed::new(
        StatusCode::INSUFFICIENT_STORAGE,
        format!("not enough {what} available"),
    )
}

/// No space, or none left for this user.
pub(crate) fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
    full.contains(&error.raw_os_error())
}

/// Runs file work on a helper thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failed::internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn what_an_upload_that_was_cut_off_had_still_to_write_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file").to_str().unwrap().to_owned();
        let user = User {
            name: "me".to_owned(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            home: "/".to_owned(),
        };
        let mut cut = Target::open(path.clone(), &user, None).await.unwrap();
        let (held, is_held) = channel();
        let (release, is_released) = channel::<()>();
        let locked = path.clone();
        let holder = std::thread::spawn(move || {
            let _opening = lock_of(&locked).write().unwrap();
            held.send(()).unwrap();
            is_released.recv().unwrap();
        });
        is_held.recv().unwrap();
        cut.write(&Bytes::from(vec![1; BUFFER])).await.unwrap();
        let writing = cut.writing.take().unwrap();
        drop(cut);
        release.send(()).unwrap();
        holder.join().unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
