//! The `Range` header.

/// Bytes of a file, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// The header means nothing, or asks for more than the file holds altogether.
    Whole,
    /// At least one part of the file.
    Parts(Vec<ByteRange>),
    /// Only parts that do not exist.
    Unsatisfiable,
}

impl ByteRange {
    pub(crate) fn length(self) -> u64 {
        self.end - self.start + 1
    }

    /// Value of `Content-Range` in a file of `size` bytes.
    pub(crate) fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end)
    }
}

/// Reads a header for a file of `size` bytes.
pub(crate) fn parse(header: &str, size: u64) -> Ranges {
    let Some(list) = header.strip_prefix("bytes=") else {
        return Ranges::Unsatisfiable;
    };
    let mut parts = Vec::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let Some((start, end)) = part.split_once('-') else {
            return Ranges::Unsatisfiable;
        };
        let (start, end) = (start.trim(), end.trim());
        let range = if start.is_empty() {
            match end.parse::<u64>() {
                Ok(length) => (length > 0 && size > 0).then(|| ByteRange {
                    start: size.saturating_sub(length),
                    end: size - 1,
                }),
                Err(_) => return Ranges::Unsatisfiable,
            }
        } else {
            let last = if end.is_empty() {
                Ok(u64::MAX)
            } else {
                end.parse()
            };
            match (start.parse::<u64>(), last) {
                (Ok(start), Ok(last)) if start <= last => (start < size).then(|| ByteRange {
                    start,
                    end: last.min(size - 1),
                }),
                _ => return Ranges::Unsatisfiable,
            }
        };
        parts.extend(range);
    }
    let wanted = parts
        .iter()
        .fold(0_u64, |sum, range| sum.saturating_add(range.length()));
    if parts.is_empty() {
        Ranges::Unsatisfiable
    } else if wanted > size {
        // Overlapping parts would make the answer longer than the file: an attack or a mistake.
        Ranges::Whole
    } else {
        Ranges::Parts(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(header: &str) -> Vec<(u64, u64)> {
        match parse(header, 10) {
            Ranges::Parts(parts) => parts.iter().map(|range| (range.start, range.end)).collect(),
            other => panic!("{header}: {other:?}"),
        }
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        assert_eq!(parts("bytes=0-3"), [(0, 3)]);
        assert_eq!(parts("bytes=5-"), [(5, 9)]);
        assert_eq!(parts("bytes=-3"), [(7, 9)]);
        assert_eq!(parts("bytes=-30"), [(0, 9)]);
        assert_eq!(parts("bytes=8-99, 0-0"), [(8, 9), (0, 0)]);
        assert_eq!(parts("bytes=20-30,1-1"), [(1, 1)]);
    }

    #[test]
    fn nonsense_and_missing_parts_are_unsatisfiable() {
        for header in [
            "bytes=10-",
            "bytes=3-1",
            "bytes=x",
            "lines=1-2",
            "bytes=",
            "bytes=-0",
        ] {
            assert_eq!(parse(header, 10), Ranges::Unsatisfiable, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Ranges::Unsatisfiable);
        assert_eq!(parse("bytes=0-,0-", 10), Ranges::Whole);
    }
}
