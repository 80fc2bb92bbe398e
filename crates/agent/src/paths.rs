//! What the paths of requests mean (contract §3.3).

use std::path::{Component, Path, PathBuf};

use crate::users::User;

/// A path that means nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It names another user's home.
    #[error("cannot expand user-specific home dir")]
    UnsupportedHome,
    /// No file can have such a name.
    #[error("a path must not contain NUL bytes")]
    Nul,
}

/// Makes `path` absolute for `user`.
///
/// Only an empty path means the working directory; relative ones start at the home directory.
/// Absolute paths stay as they are, because clients get them back in replies.
pub(crate) fn resolve(path: &str, user: &User, workdir: &str) -> Result<String, PathError> {
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    let path = if path.is_empty() { workdir } else { path };
    if path.is_empty() {
        return Ok(user.home.clone());
    }
    if let Some(rest) = path.strip_prefix('~') {
        if !(rest.is_empty() || rest.starts_with(['/', '\\'])) {
            return Err(PathError::UnsupportedHome);
        }
        return Ok(join(&user.home, rest));
    }
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Ok(join(&user.home, path))
}

/// Appends `rest` to `base` and removes `.`, `..` and double slashes, without looking at the disk.
pub(crate) fn join(base: &str, rest: &str) -> String {
    let mut joined = PathBuf::from("/");
    for part in Path::new(base)
        .components()
        .chain(Path::new(rest).components())
    {
        match part {
            Component::Normal(name) => joined.push(name),
            Component::ParentDir => {
                joined.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    joined.to_string_lossy().into_owned()
}

/// The last component as Go's `filepath.Base` gives it: `/` for the root, trailing slashes ignored.
pub(crate) fn base_name(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return if path.is_empty() {
            ".".to_owned()
        } else {
            "/".to_owned()
        };
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(path: &str, workdir: &str) -> Result<String, PathError> {
        let home = "/home/user".to_owned();
        resolve(
            path,
            &User {
                name: "user".to_owned(),
                uid: 1000,
                gid: 1000,
                home,
            },
            workdir,
        )
    }

    #[test]
    fn an_empty_path_is_the_workdir_or_else_the_home() {
        assert_eq!(resolved("", "/code").unwrap(), "/code");
        assert_eq!(resolved("", "").unwrap(), "/home/user");
    }

    #[test]
    fn relative_paths_start_at_the_home_and_never_at_the_workdir() {
        assert_eq!(
            resolved("a/../b/./c//d", "/code").unwrap(),
            "/home/user/b/c/d"
        );
        assert_eq!(resolved("../..", "/code").unwrap(), "/");
    }

    #[test]
    fn tilde_is_the_home_and_other_homes_are_refused() {
        assert_eq!(resolved("~", "").unwrap(), "/home/user");
        assert_eq!(resolved("~/x/", "").unwrap(), "/home/user/x");
        assert_eq!(resolved("~root/x", ""), Err(PathError::UnsupportedHome));
    }

    #[test]
    fn paths_that_no_file_can_have_are_refused() {
        for path in ["a\0b", "/a\0", "~/\0", "\0"] {
            assert_eq!(resolved(path, ""), Err(PathError::Nul));
        }
    }

    #[test]
    fn absolute_paths_stay_verbatim() {
        assert_eq!(resolved("/a/../b/", "").unwrap(), "/a/../b/");
    }

    #[test]
    fn base_names_ignore_trailing_slashes() {
        assert_eq!(base_name("/a/b/"), "b");
        assert_eq!(base_name("/"), "/");
    }
}
