//! Messages of `process.Process` (contract §4.2), in both codecs.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Oneof};
use serde::{Deserialize, Serialize};

use crate::connect::json::{base64_bytes, is_default, lenient_u32, null_default, optional_u32};

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct Pty {
    #[prost(message, optional, tag = "1")]
    pub(crate) size: Option<PtySize>,
}

#[derive(Clone, Copy, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct PtySize {
    #[prost(uint32, tag = "1")]
    #[serde(deserialize_with = "lenient_u32")]
    pub(crate) cols: u32,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "lenient_u32")]
    pub(crate) rows: u32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessConfig {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub(crate) cmd: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub(crate) args: Vec<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub(crate) envs: BTreeMap<String, String>,
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<String>,
}

impl ProcessConfig {
    /// Program and arguments for people to read.
    pub(crate) fn command_line(&self) -> String {
        [std::slice::from_ref(&self.cmd), &self.args]
            .concat()
            .join(" ")
    }
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct ListRequest {}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) processes: Vec<ProcessInfo>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct ProcessInfo {
    #[prost(message, optional, tag = "1")]
    pub(crate) config: Option<ProcessConfig>,
    #[prost(uint32, tag = "2")]
    pub(crate) pid: u32,
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<String>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct StartRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessConfig>,
    #[prost(message, optional, tag = "2")]
    pub(crate) pty: Option<Pty>,
    #[prost(string, optional, tag = "3")]
    pub(crate) tag: Option<String>,
    /// Absent means yes: old clients do not send it and expect an open pipe.
    #[prost(bool, optional, tag = "4")]
    pub(crate) stdin: Option<bool>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct ConnectRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessSelector>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct UpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessSelector>,
    #[prost(message, optional, tag = "2")]
    pub(crate) pty: Option<Pty>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct SendInputRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessSelector>,
    #[prost(message, optional, tag = "2")]
    pub(crate) input: Option<ProcessInput>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(from = "InputFields")]
pub(crate) struct ProcessInput {
    #[prost(oneof = "Input", tags = "1, 2")]
    pub(crate) input: Option<Input>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Input {
    #[prost(bytes = "bytes", tag = "1")]
    Stdin(Bytes),
    #[prost(bytes = "bytes", tag = "2")]
    Pty(Bytes),
}

/// The members of a oneof as fields of their own. A flattened enum would take a malformed member for
/// an absent one.
#[derive(Default, Deserialize)]
#[serde(default)]
struct InputFields {
    #[serde(deserialize_with = "base64_bytes::optional")]
    stdin: Option<Bytes>,
    #[serde(deserialize_with = "base64_bytes::optional")]
    pty: Option<Bytes>,
}

impl From<InputFields> for ProcessInput {
    fn from(fields: InputFields) -> Self {
        let stdin = fields.stdin.map(Input::Stdin);
        let input = stdin.or_else(|| fields.pty.map(Input::Pty));
        Self { input }
    }
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(from = "StreamInputFields")]
pub(crate) struct StreamInputRequest {
    #[prost(oneof = "StreamInput", tags = "1, 2, 3")]
    pub(crate) event: Option<StreamInput>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamInputFields {
    start: Option<StreamInputStart>,
    data: Option<StreamInputData>,
    keepalive: Option<Nothing>,
}

impl From<StreamInputFields> for StreamInputRequest {
    fn from(fields: StreamInputFields) -> Self {
        let start = fields.start.map(StreamInput::Start);
        let event = start
            .or_else(|| fields.data.map(StreamInput::Data))
            .or_else(|| fields.keepalive.map(StreamInput::Keepalive));
        Self { event }
    }
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum StreamInput {
    #[prost(message, tag = "1")]
    Start(StreamInputStart),
    #[prost(message, tag = "2")]
    Data(StreamInputData),
    #[prost(message, tag = "3")]
    Keepalive(Nothing),
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct StreamInputStart {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessSelector>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct StreamInputData {
    /// Number 1 is unused upstream.
    #[prost(message, optional, tag = "2")]
    pub(crate) input: Option<ProcessInput>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct SendSignalRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessSelector>,
    #[prost(int32, tag = "2")]
    #[serde(deserialize_with = "signal_number")]
    pub(crate) signal: i32,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct CloseStdinRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessSelector>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(from = "SelectorFields")]
pub(crate) struct ProcessSelector {
    #[prost(oneof = "Selector", tags = "1, 2")]
    pub(crate) selector: Option<Selector>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SelectorFields {
    #[serde(deserialize_with = "optional_u32")]
    pid: Option<u32>,
    tag: Option<String>,
}

impl From<SelectorFields> for ProcessSelector {
    fn from(fields: SelectorFields) -> Self {
        let pid = fields.pid.map(Selector::Pid);
        let selector = pid.or_else(|| fields.tag.map(Selector::Tag));
        Self { selector }
    }
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Selector {
    #[prost(uint32, tag = "1")]
    Pid(u32),
    #[prost(string, tag = "2")]
    Tag(String),
}

/// A message without fields: `{}`.
#[derive(Clone, Copy, PartialEq, Message, Serialize, Deserialize)]
pub(crate) struct Nothing {}

/// `StartResponse` and `ConnectResponse`, which are the same on the wire.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct EventResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<ProcessEvent>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct ProcessEvent {
    #[prost(oneof = "Event", tags = "1, 2, 3, 4")]
    #[serde(flatten)]
    pub(crate) event: Option<Event>,
}

#[derive(Clone, PartialEq, Oneof, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Event {
    #[prost(message, tag = "1")]
    Start(StartEvent),
    #[prost(message, tag = "2")]
    Data(DataEvent),
    #[prost(message, tag = "3")]
    End(EndEvent),
    #[prost(message, tag = "4")]
    Keepalive(Nothing),
}

#[derive(Clone, Copy, PartialEq, Message, Serialize)]
pub(crate) struct StartEvent {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
}

#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct DataEvent {
    #[prost(oneof = "Output", tags = "1, 2, 3")]
    #[serde(flatten)]
    pub(crate) output: Option<Output>,
}

/// Output of a process, by where it was written.
#[derive(Clone, PartialEq, Oneof, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Output {
    #[prost(bytes = "bytes", tag = "1")]
    Stdout(#[serde(with = "base64_bytes")] Bytes),
    #[prost(bytes = "bytes", tag = "2")]
    Stderr(#[serde(with = "base64_bytes")] Bytes),
    #[prost(bytes = "bytes", tag = "3")]
    Pty(#[serde(with = "base64_bytes")] Bytes),
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndEvent {
    #[prost(sint32, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) exit_code: i32,
    #[prost(bool, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) exited: bool,
    #[prost(string, tag = "3")]
    pub(crate) status: String,
    /// Absent on success: users would see an empty string.
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl From<Event> for EventResponse {
    fn from(event: Event) -> Self {
        Self {
            event: Some(ProcessEvent { event: Some(event) }),
        }
    }
}

/// A signal by name or number; names nobody knows become -1, which no process accepts.
fn signal_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Signal {
        Number(i32),
        Name(String),
        Null,
    }
    Ok(match Signal::deserialize(deserializer)? {
        Signal::Number(number) => number,
        Signal::Null => 0,
        Signal::Name(name) => match name.as_str() {
            "SIGNAL_UNSPECIFIED" => 0,
            "SIGNAL_SIGKILL" => libc::SIGKILL,
            "SIGNAL_SIGTERM" => libc::SIGTERM,
            _ => -1,
        },
    })
}

/// Reads a payload as every request there is, for random input.
#[cfg(test)]
pub(crate) fn fuzzed_requests(codec: crate::connect::Codec, payload: &[u8]) -> String {
    let start = codec.decode::<StartRequest>(payload);
    let input = codec.decode::<SendInputRequest>(payload);
    let stream = codec.decode::<StreamInputRequest>(payload);
    let signal = codec.decode::<SendSignalRequest>(payload);
    format!("{start:?} {input:?} {stream:?} {signal:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_sdks_write_them() {
        let text = r#"{"process":{"cmd":"/bin/bash","args":["-l"],"unknown":1},
                       "pty":{"size":{"cols":80,"rows":"24"}},"tag":null,"stdin":false}"#;
        let request: StartRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.process.unwrap().args, ["-l"]);
        assert_eq!(
            request.pty.unwrap().size,
            Some(PtySize { cols: 80, rows: 24 })
        );
        assert_eq!((request.tag, request.stdin), (None, Some(false)));

        let text = r#"{"process":{"pid":7},"signal":"SIGNAL_SIGKILL"}"#;
        let request: SendSignalRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.process.unwrap().selector, Some(Selector::Pid(7)));
        assert_eq!(request.signal, 9);

        let text = r#"{"process":{"tag":"t"},"input":{"stdin":"aGk"}}"#;
        let request: SendInputRequest = serde_json::from_str(text).unwrap();
        assert_eq!(
            request.input.unwrap().input,
            Some(Input::Stdin(Bytes::from_static(b"hi")))
        );
    }

    #[test]
    fn malformed_members_are_errors_and_not_absent() {
        for text in [
            r#"{"process":{"pid":1},"input":{"stdin":"*"}}"#,
            r#"{"process":{"pid":1},"input":{"pty":7}}"#,
            r#"{"process":{"pid":-1}}"#,
            r#"{"process":{"tag":[]}}"#,
        ] {
            let read = serde_json::from_str::<SendInputRequest>(text);
            assert!(read.is_err(), "{text}: {read:?}");
        }
        let text = r#"{"process":{"pid":null,"tag":"t"},"input":{"stdin":null,"pty":"aGk="}}"#;
        let request: SendInputRequest = serde_json::from_str(text).unwrap();
        let tag = Some(Selector::Tag("t".to_owned()));
        assert_eq!(request.process.unwrap().selector, tag);
        let input = Some(Input::Pty(Bytes::from_static(b"hi")));
        assert_eq!(request.input.unwrap().input, input);
        let request: StreamInputRequest = serde_json::from_str(r#"{"keepalive":{}}"#).unwrap();
        assert_eq!(request.event, Some(StreamInput::Keepalive(Nothing {})));
    }

    #[test]
    fn events_have_the_recorded_bytes() {
        let text = |event: Event| serde_json::to_string(&EventResponse::from(event)).unwrap();
        let start = text(Event::Start(StartEvent { pid: 1234 }));
        assert_eq!(start, r#"{"event":{"start":{"pid":1234}}}"#);
        let output = Some(Output::Stdout(Bytes::from_static(b"hi\n")));
        let data = text(Event::Data(DataEvent { output }));
        assert_eq!(data, r#"{"event":{"data":{"stdout":"aGkK"}}}"#);
        assert_eq!(
            text(Event::Keepalive(Nothing {})),
            r#"{"event":{"keepalive":{}}}"#
        );
        let status = "exit status 0".to_owned();
        let end = text(Event::End(EndEvent {
            exited: true,
            status,
            ..EndEvent::default()
        }));
        assert_eq!(
            end,
            r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#
        );
    }

    #[test]
    fn the_exit_code_is_zig_zag_in_the_binary_codec() {
        let end = EndEvent {
            exit_code: -1,
            ..EndEvent::default()
        };
        assert_eq!(end.encode_to_vec(), [0x08, 0x01]);
    }
}
