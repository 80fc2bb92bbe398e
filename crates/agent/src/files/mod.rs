//! `/files`: plain HTTP download and upload, and joining files (contract §6.2 to §6.4).

pub(crate) mod attributes;
mod buffers;
mod chunks;
mod compose;
mod content_type;
pub(crate) mod directories;
mod download;
mod encoding;
mod multipart;
mod query;
mod range;
mod target;
mod upload;
mod upload_body;

pub(crate) use compose::compose;
pub(crate) use download::download;
#[cfg(test)]
pub(crate) use multipart::{Multipart, boundary};
pub(crate) use upload::upload;
#[cfg(test)]
pub(crate) use upload_body::UploadBody;
