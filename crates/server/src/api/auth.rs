//! The key of the API: one secret with two spellings.
//!
//! `e2b_<hex>` is what every version of the E2B SDKs accepts (old ones check the form before any
//! request); `sk-sb-<hex>` is our own. Either may come as `X-API-Key` or as `Authorization: Bearer`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use super::ApiError;
use crate::random;

const E2B_PREFIX: &str = "e2b_";
const OWN_PREFIX: &str = "sk-sb-";
const SECRET_BYTES: usize = 20;

/// The secret that API callers must present. Never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    hex: String,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

impl ApiKey {
    /// A new random key.
    pub fn random() -> Self {
        Self {
            hex: random::hex(SECRET_BYTES),
        }
    }

    /// Reads a key in either spelling: 40 lower-case hex digits behind `e2b_` or `sk-sb-`.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = secret_of(text)?;
        let valid = hex.len() == 2 * SECRET_BYTES
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        valid.then(|| Self {
            hex: hex.to_owned(),
        })
    }

    /// The spelling that every client accepts.
    pub fn e2b(&self) -> String {
        format!("{E2B_PREFIX}{}", self.hex)
    }

    /// Reads the key from `path`, or makes one and writes it there (mode 0600, durable) when there
    /// is no such file. A file that holds anything but a key is an error: overwriting it could
    /// destroy something of the operator's, and locks out every client.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => {
                let key = Self::parse(text.trim()).ok_or_else(|| {
                    let problem = format!(
                        "{} does not hold an API key (`e2b_` and 40 lower-case hex digits); \
                         correct it, or remove it to have a new key made",
                        path.display()
                    );
                    io::Error::new(io::ErrorKind::InvalidData, problem)
                })?;
                warn_if_readable_by_others(path);
                Ok(key)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::random();
                key.write_new(path)?;
                Ok(key)
            }
            Err(error) => Err(with_path("read", path, &error)),
        }
    }

    /// Written under another name first: a crash must never leave half a key behind.
    fn write_new(&self, path: &Path) -> io::Result<()> {
        let staged = path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options
            .open(&staged)
            .map_err(|e| with_path("create", &staged, &e))?;
        file.write_all(format!("{}\n", self.e2b()).as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path).map_err(|e| with_path("create", path, &e))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Whether the request carries this key.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if presented(headers)?.is_some_and(|text| self.matches(text)) {
            return Ok(());
        }
        Err(ApiError::Unauthorized(
            "the API key is not valid on this server",
        ))
    }

    /// Compares digests: how long that takes says nothing about the secret.
    fn matches(&self, text: &str) -> bool {
        secret_of(text).is_some_and(|hex| Sha256::digest(hex) == Sha256::digest(&self.hex))
    }
}

/// The credential of a request. `X-API-Key` goes first when both are there.
fn presented(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    if let Some(value) = headers.get("x-api-key") {
        return Ok(value.to_str().ok());
    }
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Err(ApiError::Unauthorized(
            "the API key is missing: send it as header X-API-Key or as Authorization: Bearer",
        ));
    };
    let scheme_and_token = value.to_str().ok().and_then(|text| text.split_once(' '));
    Ok(scheme_and_token
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim()))
}

fn secret_of(text: &str) -> Option<&str> {
    text.strip_prefix(E2B_PREFIX)
        .or_else(|| text.strip_prefix(OWN_PREFIX))
}

fn warn_if_readable_by_others(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o077 != 0);
    if open {
        tracing::warn!(path = %path.display(), "the API key file is readable by other users");
    }
}

fn with_path(action: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{action} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef01234567";

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn both_spellings_in_both_headers_are_accepted() {
        let key = ApiKey::parse(&format!("e2b_{HEX}")).unwrap();
        assert_eq!(ApiKey::parse(&format!("sk-sb-{HEX}")), Some(key.clone()));
        for spelling in ["e2b_", "sk-sb-"] {
            let text = format!("{spelling}{HEX}");
            assert!(key.check(&headers("x-api-key", &text)).is_ok());
            assert!(
                key.check(&headers("authorization", &format!("Bearer {text}")))
                    .is_ok()
            );
            assert!(
                key.check(&headers("authorization", &format!("bearer {text}")))
                    .is_ok()
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let key = ApiKey::parse(&format!("e2b_{HEX}")).unwrap();
        assert!(key.check(&HeaderMap::new()).is_err());
        for wrong in [
            "",
            HEX,
            "e2b_",
            "e2b_00",
            &format!("sk_e2b_{HEX}"),
            &format!("e2b_{HEX}0"),
        ] {
            assert!(key.check(&headers("x-api-key", wrong)).is_err(), "{wrong}");
            assert!(
                key.check(&headers("authorization", &format!("Bearer {wrong}")))
                    .is_err()
            );
        }
        assert!(
            key.check(&headers("authorization", &format!("Basic e2b_{HEX}")))
                .is_err()
        );
        // A wrong X-API-Key is not rescued by a right Authorization: the first one decides.
        let mut both = headers("x-api-key", "");
        both.insert(
            "authorization",
            format!("Bearer e2b_{HEX}").parse().unwrap(),
        );
        assert!(key.check(&both).is_err());
    }

    #[test]
    fn garbage_is_no_key() {
        for text in [
            "",
            "e2b_",
            &format!("e2b_{}", HEX.to_uppercase()),
            &format!("{HEX}e2b_"),
        ] {
            assert_eq!(ApiKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api-key");
        let made = ApiKey::load_or_create(&path).unwrap();
        assert_eq!(ApiKey::load_or_create(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_with_something_else_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api-key");
        fs::write(&path, "my notes").unwrap();
        let error = ApiKey::load_or_create(&path).unwrap_err();
        assert!(
            error.to_string().contains("does not hold an API key"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "my notes");
    }

    #[test]
    fn debug_does_not_tell_the_secret() {
        let key = ApiKey::random();
        assert!(!format!("{key:?}").contains(&key.hex));
    }
}
