//! What kind of data a download is.

/// By extension, else by the first bytes.
pub(crate) fn of(name: &str, start: &[u8]) -> &'static str {
    by_extension(name).unwrap_or_else(|| by_content(start))
}

fn by_extension(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "txt" | "log" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "py" => "text/x-python; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "tar" => "application/x-tar",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "ico" => "image/x-icon",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => return None,
    })
}

fn by_content(start: &[u8]) -> &'static str {
    let magic: [(&[u8], &str); 6] = [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF8", "image/gif"),
        (b"%PDF-", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
    ];
    if let Some((_, kind)) = magic.iter().find(|(bytes, _)| start.starts_with(bytes)) {
        return kind;
    }
    let binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if start.iter().any(binary) {
        "application/octet-stream"
    } else {
        "text/plain; charset=utf-8"
    }
}

/// Value of `Content-Disposition`: a bare token when possible, else quoted, RFC 5987 beyond ASCII.
pub(crate) fn disposition(name: &str) -> String {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.bytes().all(token) {
        return format!("inline; filename={name}");
    }
    if name.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        return format!("inline; filename=\"{quoted}\"");
    }
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("inline; filename*=utf-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_comes_from_the_name_or_else_the_content() {
        assert_eq!(of("a.JSON", b""), "application/json");
        assert_eq!(of("boot_id", b"text\n"), "text/plain; charset=utf-8");
        assert_eq!(of("a.unknown", b"\x00"), "application/octet-stream");
        assert_eq!(of("x", b"\x89PNG\r\n\x1a\n"), "image/png");
    }

    #[test]
    fn names_are_written_in_the_simplest_form_that_holds_them() {
        assert_eq!(disposition("a.txt"), "inline; filename=a.txt");
        assert_eq!(
            disposition("a \"b\".txt"),
            r#"inline; filename="a \"b\".txt""#
        );
        assert_eq!(disposition("ä.txt"), "inline; filename*=utf-8''%C3%A4.txt");
    }
}
