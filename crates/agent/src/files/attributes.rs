//! User metadata of files, kept in extended attributes (contract §5.3, §6.3).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use http::HeaderMap;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Prefix of the attributes that hold metadata.
const PREFIX: &str = "user.e2b.";
/// Prefix of the headers that bring it.
const HEADER: &str = "x-metadata-";
/// Limits of the contract: length of a key, and everything together with the prefixes.
const KEY_LIMIT: usize = 246;
const TOTAL_LIMIT: usize = 4096;
/// Longest list of names, and longest value, the kernel can have.
const KERNEL_LIMIT: usize = 64 * 1024;

/// Metadata of a file, following links. Best effort: what cannot be read is left out.
pub(crate) fn read(path: &Path) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    // The usual file has none, and then this is the only call.
    match rustix::fs::listxattr_query(path) {
        Ok(0) | Err(_) => return metadata,
        Ok(_) => {}
    }
    let mut list = vec![0_u8; KERNEL_LIMIT];
    let Ok(length) = rustix::fs::listxattr(path, &mut list[..]) else {
        return metadata;
    };
    let mut value = Vec::new();
    for name in names(&list[..length]) {
        value.resize(KERNEL_LIMIT, 0);
        let Ok(length) = rustix::fs::getxattr(path, format!("{PREFIX}{name}"), &mut value[..])
        else {
            continue;
        };
        if let Ok(text) = std::str::from_utf8(&value[..length]) {
            metadata.insert(name.to_owned(), text.to_owned());
        }
    }
    metadata
}

/// Replaces the metadata of an open file. A file system without attributes silently keeps none.
///
/// Makes no call that changes anything when there is nothing to change: watchers would see it.
pub(crate) fn replace(file: impl AsFd, metadata: &BTreeMap<String, String>) -> io::Result<()> {
    let mut list = Vec::new();
    let found = match rustix::fs::flistxattr_query(&file) {
        Ok(0) => 0,
        Ok(_) => {
            list.resize(KERNEL_LIMIT, 0);
            rustix::fs::flistxattr(&file, &mut list[..]).unwrap_or(0)
        }
        Err(_) => 0,
    };
    for name in names(&list[..found]).filter(|name| !metadata.contains_key(*name)) {
        match rustix::fs::fremovexattr(&file, format!("{PREFIX}{name}")) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (key, value) in metadata {
        let name = format!("{PREFIX}{key}");
        match rustix::fs::fsetxattr(&file, name, value.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Names under the prefix in a NUL-separated list, without it.
fn names(list: &[u8]) -> impl Iterator<Item = &str> {
    list.split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok()?.strip_prefix(PREFIX))
}

/// The metadata an upload brings; the error is the text for the client.
pub(crate) fn from_headers(headers: &HeaderMap) -> Result<BTreeMap<String, String>, String> {
    let printable = |bytes: &[u8]| bytes.iter().all(|byte| (0x20..=0x7e).contains(byte));
    let mut metadata = BTreeMap::new();
    for (name, value) in headers {
        // Header names arrive in lower case.
        let Some(key) = name.as_str().strip_prefix(HEADER) else {
            continue;
        };
        if key.is_empty() || key.len() > KEY_LIMIT {
            return Err(format!(
                "invalid metadata: key must have 1 to {KEY_LIMIT} bytes"
            ));
        }
        if !printable(value.as_bytes()) {
            return Err(format!(
                "invalid metadata: value of {key:?} is not printable ASCII"
            ));
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        metadata.entry(key.to_owned()).or_insert(value);
    }
    let total: usize = metadata
        .iter()
        .map(|(key, value)| PREFIX.len() + key.len() + value.len())
        .sum();
    if total > TOTAL_LIMIT {
        return Err(format!(
            "invalid metadata: {total} bytes exceed the limit of {TOTAL_LIMIT}"
        ));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn metadata_comes_from_prefixed_headers_within_the_limits() {
        let mut headers = HeaderMap::new();
        headers.insert("x-metadata-author", HeaderValue::from_static("me"));
        headers.insert("x-other", HeaderValue::from_static("no"));
        let metadata = from_headers(&headers).unwrap();
        assert_eq!(
            metadata,
            BTreeMap::from([("author".to_owned(), "me".to_owned())])
        );

        headers.insert(
            "x-metadata-big",
            HeaderValue::from_str(&"x".repeat(4096)).unwrap(),
        );
        assert!(
            from_headers(&headers)
                .unwrap_err()
                .starts_with("invalid metadata: ")
        );
        headers.insert("x-metadata-big", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(from_headers(&headers).is_err());
    }
}
