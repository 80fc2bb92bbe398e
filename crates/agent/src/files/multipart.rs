//! Reads `multipart/form-data` as it arrives.
//!
//! Written by hand because of the file name: E2B's clients put a whole path there, which has to
//! stay as it is, neither cut to its last component nor percent-decoded.

use std::fmt::Display;

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use memchr::memmem::Finder;

use super::upload_body::UploadBody;
use crate::server::Failed;

/// Longest header block of a part.
const HEADERS_LIMIT: usize = 64 * 1024;

/// What the headers of a part say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) field: Option<String>,
    pub(crate) filename: Option<String>,
}

/// A multipart body, read part by part.
pub(crate) struct Multipart<'a, B = Incoming> {
    body: UploadBody<'a, B>,
    buffer: BytesMut,
    /// `\r\n--boundary`.
    delimiter: Finder<'static>,
    position: Position,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Preamble,
    /// Inside the content of a part.
    Content,
    /// Right behind a delimiter.
    Delimiter,
    End,
}

impl<'a, B> Multipart<'a, B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    /// Starts before the first part.
    pub(crate) fn new(body: UploadBody<'a, B>, boundary: &str) -> Self {
        let delimiter = Finder::new(&format!("\r\n--{boundary}")).into_owned();
        // The first delimiter may come without the line break that belongs to the others.
        Self {
            body,
            buffer: BytesMut::from("\r\n"),
            delimiter,
            position: Position::Preamble,
        }
    }

    /// Goes to the next part, skipping what is left of the present one.
    pub(crate) async fn next_part(&mut self) -> Result<Option<Part>, Failed> {
        while matches!(self.position, Position::Preamble | Position::Content) {
            self.chunk().await?;
        }
        if self.position == Position::End {
            return Ok(None);
        }
        if self.at_end().await? {
            self.position = Position::End;
            // Only at its own end a body shows that it was cut off, or that its checksum is wrong.
            while self.body.chunk().await?.is_some() {}
            return Ok(None);
        }
        let headers = self.headers().await?;
        self.position = Position::Content;
        Ok(Some(Part::parse(&headers)))
    }

    /// More of the present part's content; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failed> {
        if !matches!(self.position, Position::Preamble | Position::Content) {
            return Ok(None);
        }
        loop {
            if let Some(start) = self.delimiter.find(&self.buffer) {
                let content = self.buffer.split_to(start).freeze();
                self.buffer.advance(self.delimiter.needle().len());
                self.position = Position::Delimiter;
                return Ok((!content.is_empty()).then_some(content));
            }
            // The end of the buffer may be the start of a delimiter.
            let certain = (self.buffer.len() + 1).saturating_sub(self.delimiter.needle().len());
            if certain > 0 {
                return Ok(Some(self.buffer.split_to(certain).freeze()));
            }
            self.fill().await?;
        }
    }

    /// Whether the delimiter that was just read is the last one.
    async fn at_end(&mut self) -> Result<bool, Failed> {
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        Ok(self.buffer.starts_with(b"--"))
    }

    /// The header block of a part, from the end of the delimiter's line to the empty line.
    async fn headers(&mut self) -> Result<Bytes, Failed> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                let headers = self.buffer.split_to(end).freeze();
                self.buffer.advance(4);
                return Ok(headers);
            }
            if self.buffer.len() > HEADERS_LIMIT {
                return Err(malformed("headers of a part are too long"));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Failed> {
        match self.body.chunk().await? {
            Some(chunk) => self.buffer.extend_from_slice(&chunk),
            None => return Err(malformed("unexpected end")),
        }
        Ok(())
    }
}

impl Part {
    fn parse(headers: &[u8]) -> Self {
        let headers = String::from_utf8_lossy(headers);
        let disposition = headers.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim()
                .eq_ignore_ascii_case("content-disposition")
                .then_some(value)
        });
        let Some(disposition) = disposition else {
            return Self::default();
        };
        let (field, filename) = (
            parameter(disposition, "name"),
            parameter(disposition, "filename"),
        );
        Self { field, filename }
    }
}

/// The boundary of a content type.
pub(crate) fn boundary(content_type: &str) -> Option<String> {
    parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty())
}

/// A parameter of a header value: a token, or a string in quotes with backslash escapes.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (text, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim_end().to_owned(), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(text);
        }
        rest = next.split_once(';')?.1;
    }
}

/// The text up to the closing quote, and what follows it. Only quotes and backslashes can be
/// escaped: browsers write Windows paths without doubling their backslashes.
fn unquote(quoted: &str) -> (String, &str) {
    let mut text = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (text, &quoted[index + 1..]),
            '\\' => match characters.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => text.push(escaped),
                None => text.push('\\'),
            },
            other => text.push(other),
        }
    }
    (text, "")
}

fn malformed(what: &str) -> Failed {
    Failed::internal(format!("error parsing multipart form: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(disposition: &str) -> Part {
        Part::parse(format!("\r\nContent-Disposition: {disposition}\r\nX: y").as_bytes())
    }

    #[test]
    fn file_names_stay_whole_and_undecoded() {
        let parsed = part(r#"form-data; name="file"; filename="/a b/%22ä;=\"q.txt""#);
        assert_eq!(parsed.field.as_deref(), Some("file"));
        assert_eq!(parsed.filename.as_deref(), Some(r#"/a b/%22ä;="q.txt"#));
        let reversed = part("form-data; filename=x.txt; name=file");
        assert_eq!(reversed.filename.as_deref(), Some("x.txt"));
        assert_eq!(part("form-data").field, None);
    }

    #[test]
    fn boundaries_are_tokens_or_quoted() {
        assert_eq!(
            boundary("multipart/form-data; boundary=abc").as_deref(),
            Some("abc")
        );
        let quoted = r#"multipart/form-data; charset=x; boundary="a b""#;
        assert_eq!(boundary(quoted).as_deref(), Some("a b"));
        assert_eq!(boundary("multipart/form-data"), None);
    }
}
