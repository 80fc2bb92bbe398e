//! Messages of `filesystem.Filesystem` (contract §5.2), in both codecs.

use std::collections::BTreeMap;

use prost::{Message, Oneof};
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::connect::json::{decimal_string, is_default, lenient_u32, null_default};

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct MoveRequest {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "null_default")]
    pub(crate) source: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "null_default")]
    pub(crate) destination: String,
}

/// `MakeDirRequest`, `RemoveRequest` and `StatRequest`, which are the same on the wire.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct PathRequest {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "null_default")]
    pub(crate) path: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct ListDirRequest {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "null_default")]
    pub(crate) path: String,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "lenient_u32")]
    pub(crate) depth: u32,
}

/// `WatchDirRequest` and `CreateWatcherRequest`, which are the same on the wire.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WatchRequest {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "null_default")]
    pub(crate) path: String,
    #[prost(bool, tag = "2")]
    #[serde(deserialize_with = "null_default")]
    pub(crate) recursive: bool,
    #[prost(bool, tag = "3")]
    #[serde(deserialize_with = "null_default", alias = "include_entry")]
    pub(crate) include_entry: bool,
    #[prost(bool, tag = "4")]
    #[serde(deserialize_with = "null_default", alias = "allow_network_mounts")]
    pub(crate) allow_network_mounts: bool,
}

/// `GetWatcherEventsRequest` and `RemoveWatcherRequest`, which are the same on the wire.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WatcherRequest {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "null_default", alias = "watcher_id")]
    pub(crate) watcher_id: String,
}

/// `StatResponse`, `MakeDirResponse` and `MoveResponse`, which are the same on the wire.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct EntryResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) entry: Option<EntryInfo>,
}

/// A message without fields: `{}`.
#[derive(Clone, Copy, PartialEq, Message, Serialize)]
pub(crate) struct Nothing {}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EntryInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(enumeration = "FileType", tag = "2")]
    #[serde(
        rename = "type",
        serialize_with = "file_type_name",
        skip_serializing_if = "is_default"
    )]
    pub(crate) kind: i32,
    #[prost(string, tag = "3")]
    pub(crate) path: String,
    #[prost(int64, tag = "4")]
    #[serde(serialize_with = "decimal_string", skip_serializing_if = "is_default")]
    pub(crate) size: i64,
    #[prost(uint32, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) mode: u32,
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) permissions: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) owner: String,
    #[prost(string, tag = "8")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) group: String,
    #[prost(message, optional, tag = "9")]
    #[serde(serialize_with = "rfc3339", skip_serializing_if = "Option::is_none")]
    pub(crate) modified_time: Option<Timestamp>,
    #[prost(string, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) symlink_target: Option<String>,
    #[prost(btree_map = "string, string", tag = "11")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) metadata: BTreeMap<String, String>,
}

impl EntryInfo {
    /// Leaves the fields Python before 1.5.3 knows.
    pub(crate) fn for_legacy(self) -> Self {
        Self {
            name: self.name,
            kind: self.kind,
            path: self.path,
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum FileType {
    Unspecified = 0,
    File = 1,
    Directory = 2,
    // 3 is SYMLINK, which upstream never sends: links have the type of their target.
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum EventType {
    Unspecified = 0,
    Create = 1,
    Write = 2,
    Remove = 3,
    Rename = 4,
    Chmod = 5,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct FilesystemEvent {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(enumeration = "EventType", tag = "2")]
    #[serde(rename = "type", serialize_with = "event_type_name")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entry: Option<EntryInfo>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct WatchDirResponse {
    #[prost(oneof = "WatchEvent", tags = "1, 2, 3")]
    #[serde(flatten)]
    pub(crate) event: Option<WatchEvent>,
}

#[derive(Clone, PartialEq, Oneof, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, encoded at once; the usual one is the large one"
)]
pub(crate) enum WatchEvent {
    #[prost(message, tag = "1")]
    Start(Nothing),
    #[prost(message, tag = "2")]
    Filesystem(FilesystemEvent),
    #[prost(message, tag = "3")]
    Keepalive(Nothing),
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateWatcherResponse {
    #[prost(string, tag = "1")]
    pub(crate) watcher_id: String,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct GetWatcherEventsResponse {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) events: Vec<FilesystemEvent>,
}

fn file_type_name<S: Serializer>(kind: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match FileType::try_from(*kind) {
        Ok(FileType::File) => "FILE_TYPE_FILE",
        Ok(FileType::Directory) => "FILE_TYPE_DIRECTORY",
        Ok(FileType::Unspecified) | Err(_) => "FILE_TYPE_UNSPECIFIED",
    })
}

fn event_type_name<S: Serializer>(kind: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match EventType::try_from(*kind) {
        Ok(EventType::Create) => "EVENT_TYPE_CREATE",
        Ok(EventType::Write) => "EVENT_TYPE_WRITE",
        Ok(EventType::Remove) => "EVENT_TYPE_REMOVE",
        Ok(EventType::Rename) => "EVENT_TYPE_RENAME",
        Ok(EventType::Chmod) => "EVENT_TYPE_CHMOD",
        Ok(EventType::Unspecified) | Err(_) => "EVENT_TYPE_UNSPECIFIED",
    })
}

fn rfc3339<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    let time = time.unwrap_or_default();
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let text = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok());
    // Years a file system can hold but RFC 3339 cannot.
    serializer.serialize_str(text.as_deref().unwrap_or("1970-01-01T00:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_the_json_mapping() {
        let entry = EntryInfo {
            name: "a".to_owned(),
            kind: FileType::File as i32,
            path: "/a".to_owned(),
            size: 5,
            modified_time: Some(Timestamp {
                seconds: 1,
                nanos: 500_000_000,
            }),
            ..EntryInfo::default()
        };
        let text = serde_json::to_string(&entry).unwrap();
        let expected = r#"{"name":"a","type":"FILE_TYPE_FILE","path":"/a","size":"5","modifiedTime":"1970-01-01T00:00:01.5Z"}"#;
        assert_eq!(text, expected);
    }
}
