//! `GET /files` (contract §6.2).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::chunks::{BOUNDARY, gzip_stream, parts_stream, plain_stream, streaming};
use super::content_type;
use super::encoding::{Accepted, Coding};
use super::query::{self, Operation, Query};
use super::range::{self, Ranges};
use crate::agent::Agent;
use crate::log::Level;
use crate::paths;
use crate::server::{Body, Failed, empty, full};

/// Larger files are sent plain: compressing them costs the sandbox more than it saves.
const GZIP_LIMIT: u64 = 8 * 1024 * 1024;
/// How much of a file its type is guessed from.
const SNIFF: usize = 512;

const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// A file that was opened for a download.
struct Opened {
    file: File,
    name: String,
    size: u64,
    modified: Option<SystemTime>,
    /// The first bytes, by which a pseudo-file of size 0 shows that it has content.
    start: Bytes,
}

pub(crate) async fn download(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failed> {
    let query = Query::parse(request.uri())?;
    let user = query.authorize(&agent, request.headers(), Operation::Read)?;
    let path = query::resolve(&agent, query.path.as_deref().unwrap_or_default(), &user)?;
    let shown = path.clone();
    let opened = tokio::task::spawn_blocking({
        let headers = request.headers().clone();
        move || {
            // The order of the checks is the contract's: a missing file before a coding.
            let metadata = stat(&path)?;
            let coding = choose_coding(&headers)?;
            Ok((open(&path, &metadata)?, coding))
        }
    });
    let (opened, coding) = opened
        .await
        .map_err(|error| Failed::internal(error.to_string()))??;
    let fields = json!({"path": shown, "username": user.name});
    agent
        .log
        .add(Level::Info, "filesystem", "file read", fields);
    let head = request.method() == Method::HEAD;
    let mut response = serve(request.headers(), opened, coding);
    if head {
        *response.body_mut() = empty();
    }
    Ok(response)
}

fn stat(path: &str) -> Result<std::fs::Metadata, Failed> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Failed::not_found(format!("path '{path}' does not exist"))
        }
        _ => Failed::internal(format!("error checking if file exists '{path}': {error}")),
    })?;
    if metadata.is_dir() {
        return Err(Failed::bad_request(format!("path '{path}' is a directory")));
    }
    if !metadata.is_file() {
        // A pipe would block, a device may never end.
        return Err(Failed::bad_request(format!(
            "path '{path}' is not a regular file"
        )));
    }
    Ok(metadata)
}

fn open(path: &str, metadata: &std::fs::Metadata) -> Result<Opened, Failed> {
    let failed = |error| Failed::internal(format!("error opening file '{path}': {error}"));
    // Not blocking, should a pipe have taken the file's place meanwhile.
    let mut options = File::options();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let mut start = vec![0; SNIFF];
    let length = file.read(&mut start).map_err(failed)?;
    start.truncate(length);
    let modified = metadata.modified().ok().filter(|time| *time != UNIX_EPOCH);
    let name = paths::base_name(path);
    Ok(Opened {
        file,
        name,
        size: metadata.len(),
        modified,
        start: start.into(),
    })
}

fn choose_coding(headers: &HeaderMap) -> Result<Coding, Failed> {
    let values: Vec<_> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let accepted = Accepted::parse(&values.join(","));
    let not_acceptable = |message: &str| {
        let message = format!("error parsing Accept-Encoding: {message}");
        Failed::new(StatusCode::NOT_ACCEPTABLE, message)
    };
    let plain_only = [
        header::RANGE,
        header::IF_RANGE,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
    ];
    if plain_only.iter().any(|name| headers.contains_key(name)) {
        return match accepted.identity() {
            true => Ok(Coding::Identity),
            false => Err(not_acceptable(
                "identity is required for range or conditional requests",
            )),
        };
    }
    let best = accepted
        .best()
        .ok_or_else(|| not_acceptable("no acceptable encoding found, supported: [gzip]"))?;
    Ok(best)
}

fn serve(request: &HeaderMap, opened: Opened, coding: Coding) -> Response<Body> {
    let identity_refused = || {
        let header = request
            .get(header::ACCEPT_ENCODING)
            .and_then(|value| value.to_str().ok());
        header.is_some_and(|header| !Accepted::parse(header).identity())
    };
    let pseudo = opened.size == 0;
    let gzip = coding == Coding::Gzip
        && !opened.start.is_empty()
        && (opened.size <= GZIP_LIMIT || identity_refused());
    let mut response = if gzip {
        let mut response = Response::new(streaming(gzip_stream(opened.file_from_start())));
        let gzip = HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
        response
    } else if pseudo && !opened.start.is_empty() {
        // The size says nothing about files of procfs and sysfs: read to their end.
        Response::new(streaming(plain_stream(opened.file_from_start(), u64::MAX)))
    } else {
        identity(request, &opened)
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    set(
        headers,
        header::CONTENT_DISPOSITION,
        &content_type::disposition(&opened.name),
    );
    if !headers.contains_key(header::CONTENT_TYPE) && !opened.is_unmodified(request) {
        set(
            headers,
            header::CONTENT_TYPE,
            content_type::of(&opened.name, &opened.start),
        );
    }
    response
}

/// Ranges and conditions, as a static file server has them.
fn identity(request: &HeaderMap, opened: &Opened) -> Response<Body> {
    let size = opened.size;
    let mut response = Response::new(empty());
    let mut body = None;
    let mut length = None;
    if opened.is_unmodified(request) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else if opened.is_modified_after(request) {
        *response.status_mut() = StatusCode::PRECONDITION_FAILED;
    } else {
        match opened.wanted(request) {
            Ranges::Whole => {
                length = Some(size);
                body = Some(streaming(plain_stream(opened.file_from_start(), size)));
            }
            Ranges::Unsatisfiable => {
                *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                set(
                    response.headers_mut(),
                    header::CONTENT_RANGE,
                    &format!("bytes */{size}"),
                );
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
                body = Some(full("invalid range: failed to overlap\n"));
            }
            Ranges::Parts(parts) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                if let [only] = parts[..] {
                    length = Some(only.length());
                    let range = only.content_range(size);
                    set(response.headers_mut(), header::CONTENT_RANGE, &range);
                    body = Some(streaming(plain_stream(
                        opened.file_at(only.start),
                        only.length(),
                    )));
                } else {
                    let kind = format!("multipart/byteranges; boundary={BOUNDARY}");
                    set(response.headers_mut(), header::CONTENT_TYPE, &kind);
                    body = Some(opened.parts(&parts));
                }
            }
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(modified) = opened.modified {
        set(headers, header::LAST_MODIFIED, &http_date(modified));
    }
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(body) = body {
        *response.body_mut() = body;
    }
    response
}

impl Opened {
    /// The file for reading from its first byte.
    fn file_from_start(&self) -> std::io::Result<File> {
        self.file_at(0)
    }

    fn file_at(&self, offset: u64) -> std::io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }

    fn parts(&self, parts: &[range::ByteRange]) -> Body {
        let kind = content_type::of(&self.name, &self.start);
        let file = self.file.try_clone();
        streaming(parts_stream(file, self.size, kind, parts))
    }

    fn is_unmodified(&self, request: &HeaderMap) -> bool {
        match (
            self.modified_seconds(),
            request_date(request, header::IF_MODIFIED_SINCE),
        ) {
            (Some(modified), Some(since)) => modified <= since,
            _ => false,
        }
    }

    fn is_modified_after(&self, request: &HeaderMap) -> bool {
        match (
            self.modified_seconds(),
            request_date(request, header::IF_UNMODIFIED_SINCE),
        ) {
            (Some(modified), Some(since)) => modified > since,
            _ => false,
        }
    }

    /// HTTP dates have whole seconds.
    fn modified_seconds(&self) -> Option<u64> {
        Some(self.modified?.duration_since(UNIX_EPOCH).ok()?.as_secs())
    }

    fn wanted(&self, request: &HeaderMap) -> Ranges {
        let Some(range) = request
            .get(header::RANGE)
            .and_then(|value| value.to_str().ok())
        else {
            return Ranges::Whole;
        };
        // Without ETags only a date can match; anything else means the whole file.
        let fresh = !request.contains_key(header::IF_RANGE)
            || request_date(request, header::IF_RANGE)
                .is_some_and(|date| self.modified_seconds() == Some(date));
        if fresh {
            range::parse(range, self.size)
        } else {
            Ranges::Whole
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn http_date(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(HTTP_DATE)
        .unwrap_or_default()
}

fn request_date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?;
    let date = time::PrimitiveDateTime::parse(text, HTTP_DATE)
        .ok()?
        .assume_utc();
    u64::try_from(date.unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_written_and_read_as_http_has_them() {
        let time = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date(time), "Sun, 06 Nov 1994 08:49:37 GMT");
        let mut headers = HeaderMap::new();
        set(
            &mut headers,
            header::IF_MODIFIED_SINCE,
            "Sun, 06 Nov 1994 08:49:37 GMT",
        );
        assert_eq!(
            request_date(&headers, header::IF_MODIFIED_SINCE),
            Some(784_111_777)
        );
    }
}
