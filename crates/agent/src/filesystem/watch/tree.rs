//! Turns what inotify says about one directory, or a whole tree, into changes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::filesystem::messages::EventType;

/// Room for some hundred events.
const BUFFER: usize = 16 * 1024;

/// Neither CLOSE_WRITE nor coalescing: every write is its own event.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ATTRIB);

/// Something that happened below the watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Relative to the watched directory; `.` for the directory itself.
    pub(super) name: String,
    pub(super) kind: EventType,
}

/// What the kernel lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    /// Changes came faster than they were read.
    #[error("queue or buffer overflow")]
    Overflow,
    /// The descriptor cannot be read.
    #[error(transparent)]
    Read(#[from] Errno),
}

/// The directories that are watched, by inotify's numbers for them.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: String,
    recursive: bool,
    /// Paths relative to the root; empty for the root.
    directories: HashMap<i32, String>,
}

/// What has to be remembered between the events of one reading.
#[derive(Default)]
struct Reading {
    /// Reported by looking, so the kernel's own report of the same creation is dropped.
    found: HashSet<String>,
    /// Directories that went away under a name, until they turn up under another.
    leaving: HashMap<u32, Vec<i32>>,
}

struct Raw {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<String>,
}

impl Tree {
    /// Watches a directory, and with `recursive` everything below it. A link at `root` is followed.
    pub(super) fn start(inotify: &OwnedFd, root: String, recursive: bool) -> io::Result<Self> {
        let watch = inotify::add_watch(inotify, &root, EVENTS)?;
        let directories = HashMap::from([(watch, String::new())]);
        let mut tree = Self {
            root,
            recursive,
            directories,
        };
        if recursive {
            tree.explore(inotify, "", &mut |_| {});
        }
        Ok(tree)
    }

    /// Reads everything that is waiting.
    pub(super) fn read(
        &mut self,
        inotify: &OwnedFd,
        changes: &mut VecDeque<Change>,
    ) -> Result<(), TreeError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        let mut reading = Reading::default();
        loop {
            let raw = match reader.next() {
                Ok(event) => Raw {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned()),
                },
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            };
            if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                return Err(TreeError::Overflow);
            }
            self.handle(inotify, raw, &mut reading, changes);
        }
        // Moved out of the tree: what happens there is not below the root any more.
        for watch in reading.leaving.into_values().flatten() {
            self.directories.remove(&watch);
            let _may_be_gone = inotify::remove_watch(inotify, watch);
        }
        Ok(())
    }

    fn handle(
        &mut self,
        inotify: &OwnedFd,
        raw: Raw,
        reading: &mut Reading,
        changes: &mut VecDeque<Change>,
    ) {
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&raw.watch);
            return;
        }
        let Some(directory) = self.directories.get(&raw.watch) else {
            return;
        };
        let name = match &raw.name {
            Some(name) if directory.is_empty() => name.clone(),
            Some(name) => format!("{directory}/{name}"),
            None if directory.is_empty() => ".".to_owned(),
            // A subdirectory about itself: its parent reports the same.
            None => return,
        };
        let root_moved = directory.is_empty() && raw.flags.contains(ReadFlags::MOVE_SELF);
        let is_directory = raw.flags.contains(ReadFlags::ISDIR);
        if raw.flags.contains(ReadFlags::MOVED_FROM) && is_directory && self.recursive {
            reading
                .leaving
                .insert(raw.cookie, self.watches_below(&name));
        }
        let seen = raw.flags.contains(ReadFlags::CREATE) && reading.found.remove(&name);
        for (flags, kind) in [
            (ReadFlags::CREATE | ReadFlags::MOVED_TO, EventType::Create),
            (
                ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF,
                EventType::Rename,
            ),
            (ReadFlags::ATTRIB, EventType::Chmod),
            (ReadFlags::MODIFY, EventType::Write),
            (
                ReadFlags::DELETE | ReadFlags::DELETE_SELF,
                EventType::Remove,
            ),
        ] {
            if raw.flags.intersects(flags) && !(seen && kind == EventType::Create) {
                changes.push_back(Change {
                    name: name.clone(),
                    kind,
                });
            }
        }
        if root_moved {
            // What happens there is not below the watched path any more.
            for (watch, _) in self.directories.drain() {
                let _may_be_gone = inotify::remove_watch(inotify, watch);
            }
            return;
        }
        let appeared = raw
            .flags
            .intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if appeared && is_directory && self.recursive {
            // With its old name known, it was moved within the tree and is watched already.
            let moved = reading.leaving.remove(&raw.cookie).is_some();
            self.enter(inotify, &name, &mut |inside| {
                if !moved && reading.found.insert(inside.clone()) {
                    changes.push_back(Change {
                        name: inside,
                        kind: EventType::Create,
                    });
                }
            });
        }
    }

    /// Watches a subdirectory, then looks what is in it already. An inode keeps its number, so for
    /// one that was moved this only replaces the path.
    fn enter(&mut self, inotify: &OwnedFd, relative: &str, report: &mut dyn FnMut(String)) {
        let path = format!("{}/{relative}", self.root.trim_end_matches('/'));
        let flags = EVENTS | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        // It may be gone again; its parent reports that.
        if let Ok(watch) = inotify::add_watch(inotify, path, flags) {
            self.directories.insert(watch, relative.to_owned());
            self.explore(inotify, relative, report);
        }
    }

    fn explore(&mut self, inotify: &OwnedFd, relative: &str, report: &mut dyn FnMut(String)) {
        let path = format!("{}/{relative}", self.root.trim_end_matches('/'));
        let Ok(children) = std::fs::read_dir(path) else {
            return;
        };
        for child in children.flatten() {
            let name = child.file_name().to_string_lossy().into_owned();
            let inside = if relative.is_empty() {
                name
            } else {
                format!("{relative}/{name}")
            };
            report(inside.clone());
            if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.enter(inotify, &inside, report);
            }
        }
    }

    fn watches_below(&self, relative: &str) -> Vec<i32> {
        let below = |path: &str| {
            path.strip_prefix(relative)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.directories
            .iter()
            .filter(|(_, path)| below(path))
            .map(|(watch, _)| *watch)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::inotify::CreateFlags;

    use super::*;

    struct Watched {
        folder: tempfile::TempDir,
        inotify: OwnedFd,
        tree: Tree,
    }

    impl Watched {
        fn new(recursive: bool) -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("old")).unwrap();
            let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
            let root = folder.path().to_string_lossy().into_owned();
            let tree = Tree::start(&inotify, root, recursive).unwrap();
            Self {
                folder,
                inotify,
                tree,
            }
        }

        fn changes(&mut self) -> Vec<(String, EventType)> {
            let mut changes = VecDeque::new();
            self.tree.read(&self.inotify, &mut changes).unwrap();
            changes
                .into_iter()
                .map(|change| (change.name, change.kind))
                .collect()
        }
    }

    fn change(name: &str, kind: EventType) -> (String, EventType) {
        (name.to_owned(), kind)
    }

    #[test]
    fn directories_made_at_once_are_all_reported() {
        let mut watched = Watched::new(true);
        fs::create_dir_all(watched.folder.path().join("a/b")).unwrap();
        fs::write(watched.folder.path().join("old/f"), "x").unwrap();
        let created = [
            change("a", EventType::Create),
            change("a/b", EventType::Create),
            change("old/f", EventType::Create),
            change("old/f", EventType::Write),
        ];
        assert_eq!(watched.changes(), created);
        fs::write(watched.folder.path().join("a/b/g"), "x").unwrap();
        let written = [
            change("a/b/g", EventType::Create),
            change("a/b/g", EventType::Write),
        ];
        assert_eq!(watched.changes(), written);
    }

    #[test]
    fn a_moved_directory_reports_under_its_new_name_and_not_at_all_outside() {
        let mut watched = Watched::new(true);
        let root = watched.folder.path().to_owned();
        fs::rename(root.join("old"), root.join("new")).unwrap();
        let moved = [
            change("old", EventType::Rename),
            change("new", EventType::Create),
        ];
        assert_eq!(watched.changes(), moved);
        fs::create_dir(root.join("new/sub")).unwrap();
        assert_eq!(watched.changes(), [change("new/sub", EventType::Create)]);

        let outside = tempfile::tempdir().unwrap();
        fs::rename(root.join("new"), outside.path().join("gone")).unwrap();
        assert_eq!(watched.changes(), [change("new", EventType::Rename)]);
        fs::write(outside.path().join("gone/f"), "x").unwrap();
        assert_eq!(watched.changes(), []);
    }

    #[test]
    fn a_removed_subdirectory_is_reported_once_and_the_root_as_a_dot() {
        let mut watched = Watched::new(true);
        fs::remove_dir(watched.folder.path().join("old")).unwrap();
        assert_eq!(watched.changes(), [change("old", EventType::Remove)]);
        fs::remove_dir(watched.folder.path()).unwrap();
        assert_eq!(watched.changes(), [change(".", EventType::Remove)]);
        fs::create_dir(watched.folder.path()).unwrap();
    }

    #[test]
    fn a_root_that_was_moved_away_is_reported_once_and_then_nothing() {
        for recursive in [false, true] {
            let mut watched = Watched::new(recursive);
            let outside = tempfile::tempdir().unwrap();
            let moved = outside.path().join("moved");
            fs::rename(watched.folder.path(), &moved).unwrap();
            fs::write(moved.join("at once"), "x").unwrap();
            assert_eq!(watched.changes(), [change(".", EventType::Rename)]);
            fs::write(moved.join("later"), "x").unwrap();
            fs::write(moved.join("old/later"), "x").unwrap();
            assert_eq!(watched.changes(), []);
            fs::create_dir(watched.folder.path()).unwrap();
        }
    }

    #[test]
    fn without_recursion_only_the_directory_itself_is_seen() {
        let mut watched = Watched::new(false);
        fs::write(watched.folder.path().join("old/f"), "x").unwrap();
        assert_eq!(watched.changes(), []);
    }
}
