//! One process that was started for a client.
//!
//! ```text
//! started ──► child collected ──► both outputs at EOF ──► ended
//!                    │ killed through us or past its deadline
//!                    └──► what is in the pipes is read, the rest dropped ──► ended
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::sync::{Mutex, Notify, watch};

use super::fanout::Fanout;
use super::messages::{EndEvent, Output, PtySize};
use super::pipes::{self, AgentEnds, Channel};

/// Largest piece of output, from a pipe and from a terminal.
const PIPE_CHUNK: usize = 32 * 1024;
const TERMINAL_CHUNK: usize = 16 * 1024;
/// Reads after a forced end at most this much of what is left.
const LEFTOVER_READS: usize = 64;

/// A process, while it lives and until its exit is forgotten.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) tag: Option<String>,
    /// Output for subscribers.
    pub(crate) fanout: Fanout,
    /// Set before the fanout closes.
    pub(crate) end: OnceLock<EndEvent>,
    /// Whether the deadline has passed: the stream that started the process says so.
    pub(crate) deadline_passed: AtomicBool,
    /// What the memory guard killed of it; part of how it ended.
    pub(crate) out_of_memory: OnceLock<String>,
    input: Input,
    /// Set by a signal through us or the deadline: the end does not wait for the outputs.
    forced: AtomicBool,
    /// Becomes true when the readers shall stop.
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Input {
    terminal: bool,
    /// `None` when there never was one, or it was closed.
    channel: Mutex<Option<Channel>>,
    /// Makes a write that waits for room give up.
    closing: Notify,
    closed: AtomicBool,
}

/// Why input was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// There is no standard input.
    #[error("error writing to stdin: stdin not enabled or closed")]
    Closed,
    /// Input for a terminal was sent to a process without.
    #[error("error writing to tty: tty not assigned to process — send input as stdin instead")]
    NoTerminal,
    /// Standard input was sent to a process with a terminal.
    #[error("error writing to stdin: process has a tty — send input as pty instead")]
    Terminal,
    /// The process does not read any more.
    #[error("error writing to {0}: {1}")]
    Broken(&'static str, #[source] io::Error),
}

/// Why reading an output came to its end.
enum Ended {
    AtEnd,
    Stopped,
}

/// The outputs still to be read.
pub(crate) struct Outputs(Vec<Source>);

/// One output: where it is read, what its data is called, and how much is read at once.
struct Source {
    channel: Channel,
    wrap: fn(Bytes) -> Output,
    chunk: usize,
}

impl Source {
    fn new(channel: Channel, wrap: fn(Bytes) -> Output, chunk: usize) -> Self {
        Self {
            channel,
            wrap,
            chunk,
        }
    }

    fn output(&self, data: &[u8]) -> Output {
        (self.wrap)(Bytes::copy_from_slice(data))
    }
}

impl Process {
    /// Describes a process that was just started, and splits off what has to be read.
    pub(crate) fn new(
        pid: u32,
        tag: Option<String>,
        ends: AgentEnds,
        stall_limit: Duration,
    ) -> (Arc<Self>, Outputs) {
        let (channel, terminal, outputs) = match ends {
            AgentEnds::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let stdout = Source::new(stdout, Output::Stdout, PIPE_CHUNK);
                let stderr = Source::new(stderr, Output::Stderr, PIPE_CHUNK);
                (stdin, false, vec![stdout, stderr])
            }
            AgentEnds::Terminal { output, input } => {
                let output = Source::new(output, Output::Pty, TERMINAL_CHUNK);
                (Some(input), true, vec![output])
            }
        };
        let input = Input {
            terminal,
            channel: Mutex::new(channel),
            closing: Notify::new(),
            closed: AtomicBool::new(false),
        };
        let process = Self {
            pid,
            tag,
            fanout: Fanout::new(stall_limit),
            end: OnceLock::new(),
            deadline_passed: AtomicBool::new(false),
            out_of_memory: OnceLock::new(),
            input,
            forced: AtomicBool::new(false),
            stop: watch::Sender::new(false),
        };
        (Arc::new(process), Outputs(outputs))
    }

    /// Ends the process with its child alone: background jobs that hold its outputs do not count.
    pub(crate) fn force_end(&self, child_collected: bool) {
        self.forced.store(true, Ordering::Relaxed);
        if child_collected {
            self.stop.send_replace(true);
        }
    }

    /// The child has been collected.
    pub(crate) fn child_collected(&self) {
        if self.forced.load(Ordering::Relaxed) {
            self.stop.send_replace(true);
        }
    }

    /// Copies all outputs to the subscribers until they end.
    pub(crate) async fn pump(&self, outputs: Outputs) {
        let readers = outputs.0.into_iter().map(|source| async move {
            // Also an error means that there will be nothing more.
            if let Ok(Ended::Stopped) = self.copy(&source).await {
                self.copy_rest(&source).await;
            }
        });
        futures_util::future::join_all(readers).await;
    }

    async fn copy(&self, source: &Source) -> io::Result<Ended> {
        let mut stop = self.stop.subscribe();
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                ready = source.channel.readable() => ready?.retain_ready(),
                _stopped = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
            }
            // The buffer exists only while there is something to read: a process may be quiet for
            // hours, and there may be many.
            buffer.resize(source.chunk, 0);
            let read = |file: &OwnedFd| pipes::read_now(file, &mut buffer);
            match source.channel.try_io(Interest::READABLE, read) {
                Ok(0) => return Ok(Ended::AtEnd),
                Ok(count) => {
                    self.fanout.publish(source.output(&buffer[..count])).await;
                    if count < source.chunk {
                        buffer = Vec::new();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = Vec::new(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies what was written before the end was forced.
    async fn copy_rest(&self, source: &Source) {
        let mut buffer = vec![0; source.chunk];
        for _ in 0..LEFTOVER_READS {
            match pipes::read_now(source.channel.get_ref(), &mut buffer) {
                Ok(count) if count > 0 => {
                    self.fanout.publish(source.output(&buffer[..count])).await;
                }
                _ => return,
            }
        }
    }

    /// Writes to standard input or the terminal, waiting while it is full.
    pub(crate) async fn write(&self, data: &[u8], to_terminal: bool) -> Result<(), InputError> {
        match (to_terminal, self.input.terminal) {
            (true, false) => return Err(InputError::NoTerminal),
            (false, true) => return Err(InputError::Terminal),
            _ => {}
        }
        let closing = self.input.closing.notified();
        let write = async {
            let channel = self.input.channel.lock().await;
            let open = !self.input.closed.load(Ordering::Relaxed);
            let channel = channel
                .as_ref()
                .filter(|_| open)
                .ok_or(InputError::Closed)?;
            let name = if to_terminal { "tty" } else { "stdin" };
            pipes::write_all(channel, data)
                .await
                .map_err(|error| InputError::Broken(name, error))
        };
        tokio::select! {
            result = write => result,
            () = closing => Err(InputError::Closed),
        }
    }

    /// Closes standard input, once; for a terminal there is nothing to close.
    pub(crate) async fn close_stdin(&self) -> Result<(), InputError> {
        if self.input.terminal {
            return Err(InputError::Terminal);
        }
        self.drop_input().await;
        Ok(())
    }

    async fn drop_input(&self) {
        self.input.closed.store(true, Ordering::Relaxed);
        self.input.closing.notify_waiters();
        self.input.channel.lock().await.take();
    }

    /// Sets the size of the terminal.
    pub(crate) async fn resize(&self, size: PtySize) -> Result<(), io::Error> {
        let channel = self.input.channel.lock().await;
        match channel.as_ref().filter(|_| self.input.terminal) {
            Some(terminal) => pipes::resize(terminal.get_ref(), size),
            None => Err(io::Error::other("tty not assigned to process")),
        }
    }

    /// Lets go of the agent's last end; the process has ended.
    pub(crate) async fn release(&self) {
        self.drop_input().await;
    }
}
