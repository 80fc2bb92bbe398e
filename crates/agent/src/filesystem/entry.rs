//! A file as clients see it (contract §5.3).

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::messages::{EntryInfo, FileType, Timestamp};
use crate::files::attributes;
use crate::paths;
use crate::users::Names;

impl EntryInfo {
    /// Describes the file at `path`, without following a link at its end.
    pub(crate) fn read(path: &str, names: &Names) -> io::Result<Self> {
        let link = fs::symlink_metadata(path)?;
        Ok(Self::describe(Path::new(path), path, &link, names))
    }

    /// Describes a file whose own metadata is known; `shown` is its path for the client.
    pub(crate) fn describe(path: &Path, shown: &str, link: &Metadata, names: &Names) -> Self {
        // What a link leads to; `None` for links that lead nowhere.
        let target = if link.is_symlink() {
            fs::metadata(path).ok()
        } else {
            Some(link.clone())
        };
        let symlink_target = link.is_symlink().then(|| {
            let resolved = fs::canonicalize(path);
            resolved.map_or_else(
                |_| shown.to_owned(),
                |full| full.to_string_lossy().into_owned(),
            )
        });
        let modified = (link.mtime(), link.mtime_nsec());
        Self {
            name: paths::base_name(shown),
            kind: target.as_ref().map_or(FileType::Unspecified, file_type) as i32,
            path: shown.to_owned(),
            size: i64::try_from(link.size()).unwrap_or(i64::MAX),
            mode: target.map_or(0, |target| target.mode() & 0o777),
            permissions: permissions(link),
            owner: names.user(link.uid()),
            group: names.group(link.gid()),
            modified_time: (modified != (0, 0)).then(|| Timestamp {
                seconds: modified.0,
                nanos: i32::try_from(modified.1).unwrap_or_default(),
            }),
            symlink_target,
            metadata: attributes::read(path),
        }
    }
}

fn file_type(metadata: &Metadata) -> FileType {
    if metadata.is_file() {
        FileType::File
    } else if metadata.is_dir() {
        FileType::Directory
    } else {
        FileType::Unspecified
    }
}

/// The mode as Go prints it: prefix letters, then nine `rwx-` that never become `s` or `t`.
fn permissions(metadata: &Metadata) -> String {
    let kind = metadata.file_type();
    let mode = metadata.mode();
    let prefixes = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'L'),
        (kind.is_block_device() || kind.is_char_device(), 'D'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 'S'),
        (mode & libc::S_ISUID != 0, 'u'),
        (mode & libc::S_ISGID != 0, 'g'),
        (kind.is_char_device(), 'c'),
        (mode & libc::S_ISVTX != 0, 't'),
    ];
    let mut text: String = prefixes
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, letter)| *letter)
        .collect();
    if text.is_empty() {
        text.push('-');
    }
    for (bit, letter) in (0..9).rev().zip("rwxrwxrwx".chars()) {
        text.push(if mode & (1 << bit) != 0 { letter } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn permissions_of(path: &Path) -> String {
        permissions(&fs::symlink_metadata(path).unwrap())
    }

    #[test]
    fn permissions_read_as_go_prints_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        for (mode, expected) in [
            (0o644, "-rw-r--r--"),
            (0o4755, "urwxr-xr-x"),
            (0o6755, "ugrwxr-xr-x"),
        ] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(permissions_of(&file), expected);
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(permissions_of(folder.path()), "dtrwxrwxrwx");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert_eq!(permissions_of(&link), "Lrwxrwxrwx");
        assert!(permissions_of(Path::new("/dev/null")).starts_with("Dcrw-rw-rw-"));
    }

    #[test]
    fn a_link_has_the_type_and_mode_of_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link").to_string_lossy().into_owned();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let broken = EntryInfo::read(&link, &Names::default()).unwrap();
        assert_eq!(
            (broken.kind, broken.mode),
            (FileType::Unspecified as i32, 0)
        );
        assert_eq!(broken.symlink_target, Some(link.clone()));

        fs::write(folder.path().join("file"), "x").unwrap();
        let whole = EntryInfo::read(&link, &Names::default()).unwrap();
        assert_eq!(whole.kind, FileType::File as i32);
        assert!(whole.symlink_target.unwrap().ends_with("/file"));
    }
}
