//! Which content coding a download gets.

/// Codings the agent can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Identity,
    Gzip,
}

/// What the client accepts, best first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Accepted(Vec<Coding>);

impl Accepted {
    /// Reads an `Accept-Encoding` header. Quality decides, ties keep the client's order, and
    /// identity is acceptable last unless it is ruled out.
    pub(crate) fn parse(header: &str) -> Self {
        let mut named: Vec<(Coding, f32)> = Vec::new();
        let mut wildcard = None;
        for part in header.split(',') {
            let mut fields = part.split(';');
            let name = fields.next().unwrap_or_default().trim();
            let quality = fields
                .find_map(|field| field.trim().strip_prefix("q="))
                .map_or(1.0, |text| text.trim().parse().unwrap_or(0.0));
            match name.to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => named.push((Coding::Gzip, quality)),
                "identity" => named.push((Coding::Identity, quality)),
                "*" => wildcard = Some(quality),
                _ => {}
            }
        }
        for coding in [Coding::Gzip, Coding::Identity] {
            if named.iter().any(|(known, _)| *known == coding) {
                continue;
            }
            match (wildcard, coding) {
                (Some(quality), _) => named.push((coding, quality)),
                // Below every quality a client can give.
                (None, Coding::Identity) => named.push((coding, f32::MIN_POSITIVE)),
                (None, Coding::Gzip) => {}
            }
        }
        named.retain(|(_, quality)| *quality > 0.0);
        named.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Self(named.into_iter().map(|(coding, _)| coding).collect())
    }

    /// The coding the client likes best; `None` when it accepts neither.
    pub(crate) fn best(&self) -> Option<Coding> {
        self.0.first().copied()
    }

    /// Whether the client takes the plain bytes.
    pub(crate) fn identity(&self) -> bool {
        self.0.contains(&Coding::Identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_coding_follows_quality_then_order() {
        let cases = [
            ("", Some(Coding::Identity)),
            ("gzip, deflate", Some(Coding::Gzip)),
            ("br", Some(Coding::Identity)),
            ("gzip;q=0.5, identity", Some(Coding::Identity)),
            ("identity, gzip", Some(Coding::Identity)),
            ("gzip;q=0", Some(Coding::Identity)),
            ("*", Some(Coding::Gzip)),
            ("identity;q=0", None),
            ("*;q=0", None),
            ("gzip, identity;q=0", Some(Coding::Gzip)),
        ];
        for (header, expected) in cases {
            assert_eq!(Accepted::parse(header).best(), expected, "{header:?}");
        }
        assert!(!Accepted::parse("gzip, *;q=0").identity());
        assert!(Accepted::parse("gzip").identity());
    }
}
