//! The RPCs of `process.Process` (contract §4).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::exit::ExitStatus;
use super::live::{InputError, Process};
use super::messages::{
    CloseStdinRequest, ConnectRequest, Input, ListRequest, ListResponse, Nothing, Output,
    ProcessConfig, ProcessInput, ProcessSelector, Selector, SendInputRequest, SendSignalRequest,
    StartRequest, StreamInput, StreamInputRequest, UpdateRequest,
};
use super::pipes::{AgentEnds, Ends};
use super::reaper::SignalError;
use super::spawn::{Program, SpawnError};
use super::stream::{Role, events};
use crate::agent::Agent;
use crate::connect::{Caller, Code, Codec, Frames, Messages, RpcError, blocking};
use crate::log::Level;
use crate::users::{self, User};

/// `PATH` of processes when the agent itself was started without.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) async fn list(
    agent: Arc<Agent>,
    _caller: Caller,
    _request: ListRequest,
) -> Result<ListResponse, RpcError> {
    Ok(ListResponse {
        processes: agent.processes.list(),
    })
}

pub(crate) async fn start(
    agent: Arc<Agent>,
    caller: Caller,
    codec: Codec,
    request: StartRequest,
) -> Result<Frames, RpcError> {
    let user = agent.acting_user(&caller)?;
    let config = request.process.clone().unwrap_or_default();
    let directory = agent.resolve(config.cwd.as_deref().unwrap_or_default(), &user)?;
    if !Path::new(&directory).exists() {
        return Err(RpcError::invalid(format!(
            "cwd '{directory}' does not exist"
        )));
    }
    let environment = environment(&agent, &user, &config);
    let begin = begin(
        Arc::clone(&agent),
        caller.clone(),
        request,
        user,
        directory,
        environment,
    );
    // A task of its own: a client that leaves meanwhile leaves a running process behind, not one
    // without owner.
    let begun = tokio::spawn(begin).await;
    let (process, output) = begun.map_err(|error| RpcError::internal(error.to_string()))??;
    Ok(events(process, output, &caller, codec, Role::Starter))
}

async fn begin(
    agent: Arc<Agent>,
    caller: Caller,
    request: StartRequest,
    user: User,
    directory: String,
    environment: BTreeMap<String, String>,
) -> Result<(Arc<Process>, mpsc::Receiver<Output>), RpcError> {
    let config = request.process.clone().unwrap_or_default();
    let started = blocking({
        let agent = Arc::clone(&agent);
        move || launch(&agent, &request, &user, &directory, &environment)
    })
    .await?;
    let (tag, ends) = (started.tag, started.ends);
    let (process, outputs) = Process::new(started.pid, tag, ends, agent.stall_limit);
    // Before anything is read, so that the starter misses nothing.
    let output = process.fanout.subscribe(Arc::clone(&caller.hangup));
    agent
        .processes
        .adopt(&process, config, outputs, started.status, caller.deadline);
    Ok((process, output))
}

struct Started {
    pid: u32,
    tag: Option<String>,
    ends: AgentEnds,
    status: oneshot::Receiver<ExitStatus>,
}

fn launch(
    agent: &Agent,
    request: &StartRequest,
    user: &User,
    directory: &str,
    environment: &BTreeMap<String, String>,
) -> Result<Started, RpcError> {
    let config = request.process.clone().unwrap_or_default();
    let line = config.command_line();
    let failed = |error: &dyn std::fmt::Display| match request.pty {
        Some(_) => RpcError::invalid(format!("error starting pty with command '{line}': {error}")),
        None => RpcError::invalid(format!("error starting process '{line}': {error}")),
    };
    let ends = match &request.pty {
        Some(pty) => Ends::terminal(pty.size.unwrap_or_default(), user),
        None => Ends::pipes(request.stdin.unwrap_or(true)),
    };
    let ends = ends.map_err(|error| failed(&error))?;
    let [stdin, stdout, stderr] = &ends.child;
    let spawn = || -> Result<_, SpawnError> {
        let groups = users::groups_of(user);
        let variables = environment.iter();
        let program = Program::new(
            &config.cmd,
            &config.args,
            variables,
            directory,
            user,
            groups,
        )?;
        let ticket = agent.processes.reaper.announce();
        let pid = program.spawn([stdin, stdout, stderr], request.pty.is_some())?;
        Ok((pid, ticket.expect(pid)))
    };
    let (pid, status) = spawn().map_err(|error| failed(&error))?;
    Ok(Started {
        pid,
        tag: request.tag.clone(),
        ends: ends.agent,
        status,
    })
}

/// Later entries win (contract §4.4); nothing else is inherited.
fn environment(agent: &Agent, user: &User, config: &ProcessConfig) -> BTreeMap<String, String> {
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    let mut table = BTreeMap::from([
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), user.home.clone()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    table.extend(agent.settings().environment());
    table.extend(config.envs.clone());
    table
}

pub(crate) async fn connect(
    agent: Arc<Agent>,
    caller: Caller,
    codec: Codec,
    request: ConnectRequest,
) -> Result<Frames, RpcError> {
    let selector = selector(request.process)?;
    let found = agent.processes.find_or_ended(&selector);
    let process = found.ok_or_else(|| missing(&selector))?;
    let output = process.fanout.subscribe(Arc::clone(&caller.hangup));
    let discarded = process.fanout.written().discarded;
    if discarded > 0 {
        let fields = json!({"pid": process.pid, "discarded_bytes": discarded});
        let text = "output from before this connection was discarded: nobody was connected";
        agent.log.add(Level::Warn, "process", text, fields);
    }
    Ok(events(process, output, &caller, codec, Role::Observer))
}

pub(crate) async fn update(
    agent: Arc<Agent>,
    _caller: Caller,
    request: UpdateRequest,
) -> Result<Nothing, RpcError> {
    let process = find(&agent, request.process)?;
    if let Some(pty) = request.pty {
        let resized = process.resize(pty.size.unwrap_or_default()).await;
        resized.map_err(|error| RpcError::internal(format!("error resizing tty: {error}")))?;
    }
    Ok(Nothing {})
}

pub(crate) async fn send_input(
    agent: Arc<Agent>,
    _caller: Caller,
    request: SendInputRequest,
) -> Result<Nothing, RpcError> {
    let process = find(&agent, request.process)?;
    write(&process, request.input).await?;
    Ok(Nothing {})
}

pub(crate) async fn stream_input(
    agent: Arc<Agent>,
    mut messages: Messages<StreamInputRequest>,
) -> Result<Nothing, RpcError> {
    let mut target = None;
    while let Some(message) = messages.next().await? {
        match message.event {
            Some(StreamInput::Start(start)) => target = Some(find(&agent, start.process)?),
            Some(StreamInput::Data(data)) => match &target {
                Some(process) => write(process, data.input).await?,
                None => return Err(RpcError::invalid("data event before start event")),
            },
            Some(StreamInput::Keepalive(_)) => {}
            None => return Err(RpcError::unimplemented("invalid event type <nil>")),
        }
    }
    Ok(Nothing {})
}

pub(crate) async fn send_signal(
    agent: Arc<Agent>,
    _caller: Caller,
    request: SendSignalRequest,
) -> Result<Nothing, RpcError> {
    let process = find(&agent, request.process)?;
    let signal = match request.signal {
        libc::SIGKILL => Signal::KILL,
        libc::SIGTERM => Signal::TERM,
        other => return Err(RpcError::unimplemented(format!("invalid signal: {other}"))),
    };
    agent
        .processes
        .signal(&process, signal)
        .map_err(|error| match error {
            SignalError::Finished | SignalError::Refused(_) => {
                RpcError::internal(format!("error sending signal: {error}"))
            }
        })?;
    Ok(Nothing {})
}

pub(crate) async fn close_stdin(
    agent: Arc<Agent>,
    _caller: Caller,
    request: CloseStdinRequest,
) -> Result<Nothing, RpcError> {
    let process = find(&agent, request.process)?;
    process.close_stdin().await.map_err(|_| {
        let text = "error closing stdin: cannot close stdin for PTY process \
                    — send Ctrl+D (0x04) instead";
        RpcError::new(Code::Unknown, text)
    })?;
    Ok(Nothing {})
}

async fn write(process: &Process, input: Option<ProcessInput>) -> Result<(), RpcError> {
    let written = match input.and_then(|input| input.input) {
        Some(Input::Stdin(data)) => process.write(&data, false).await,
        Some(Input::Pty(data)) => process.write(&data, true).await,
        None => return Err(RpcError::unimplemented("invalid input type <nil>")),
    };
    written.map_err(|error: InputError| RpcError::internal(error.to_string()))
}

fn find(agent: &Agent, process: Option<ProcessSelector>) -> Result<Arc<Process>, RpcError> {
    let selector = selector(process)?;
    agent
        .processes
        .find(&selector)
        .ok_or_else(|| missing(&selector))
}

fn selector(process: Option<ProcessSelector>) -> Result<Selector, RpcError> {
    process
        .and_then(|process| process.selector)
        .ok_or_else(|| RpcError::unimplemented("invalid process selector <nil>"))
}

fn missing(selector: &Selector) -> RpcError {
    RpcError::not_found(match selector {
        Selector::Pid(pid) => format!("process with pid {pid} not found"),
        Selector::Tag(tag) => format!("process with tag {tag} not found"),
    })
}
