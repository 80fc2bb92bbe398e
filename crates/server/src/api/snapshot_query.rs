//! Filters and pages of snapshot lists.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{ApiError, query};
use crate::sandbox::SandboxId;
use crate::snapshots::{BadName, Position, Snapshot, SnapshotId, SnapshotName, SnapshotPage};

const LARGEST_PAGE: usize = 100;

/// Reads the query string of `GET /snapshots`.
pub(super) fn snapshot_page(text: &str) -> Result<SnapshotPage, ApiError> {
    let malformed = || invalid("the query string is malformed");
    let mut page = SnapshotPage {
        limit: LARGEST_PAGE,
        ..SnapshotPage::default()
    };
    for (name, value) in query::pairs(text).ok_or_else(malformed)? {
        match name.as_str() {
            "sandboxID" => {
                let id = SandboxId::parse(&value);
                page.source = Some(id.ok_or(ApiError::BadSandboxId(value))?);
            }
            "name" => page.name = Some(checked(value)?),
            "limit" => {
                let limit = value.parse().ok();
                let limit = limit.filter(|limit| (1..=LARGEST_PAGE).contains(limit));
                page.limit = limit.ok_or_else(|| invalid("limit must be from 1 to 100"))?;
            }
            "nextToken" => {
                let position = position(&value);
                let stranger = || invalid("nextToken is not one that this list gave out");
                page.after = Some(position.ok_or_else(stranger)?);
            }
            // Unknown parameters are ignored, as upstream does.
            _ => {}
        }
    }
    Ok(page)
}

/// Another namespace is refused; what can be no name at all simply finds nothing.
fn checked(name: String) -> Result<String, ApiError> {
    match SnapshotName::parse_parts(&name) {
        Err(error @ BadName::Namespace(_)) => Err(ApiError::Validation(error.to_string())),
        Err(BadName::Malformed(_)) | Ok(_) => Ok(name),
    }
}

/// The token for the page behind this snapshot.
pub(super) fn next_token(last: &Snapshot) -> String {
    let Position { created_at, id } = Position::of(last);
    URL_SAFE_NO_PAD.encode(format!("{created_at}:{id}"))
}

fn position(token: &str) -> Option<Position> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (created_at, id) = text.split_once(':')?;
    Some(Position {
        created_at: created_at.parse().ok()?,
        id: SnapshotId::parse(id)?,
    })
}

fn invalid(problem: &str) -> ApiError {
    ApiError::Validation(problem.to_owned())
}
