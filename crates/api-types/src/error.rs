//! The body of every answer that is not a success.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// The HTTP status of the answer. The JavaScript SDK decides by this number, not by the status
    /// line.
    pub code: u16,
    /// The reason, for people.
    pub message: String,
}
