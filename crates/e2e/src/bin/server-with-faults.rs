//! The server as it is, with faults that a test chooses while it runs.
//!
//! `SANDBASE_FAULT` names a file. A line in it, `STEP HOW`, is read when a transition reaches the
//! step, and then removed: each strikes once. `HOW` is one of
//!
//! ```text
//! kill          SIGKILL of this process, there and then
//! fail          the step fails
//! nospace, io   it fails for want of space, or as a device does
//! run COMMAND   the shell runs it first, and the transition goes on into whatever that broke
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use rustix::process::{Signal, getpid, kill_process};
use server::config::Config;
use server::sandbox::{Fault, Faults, Step};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, flag, config] = arguments.as_slice() else {
        bail!("usage: server-with-faults serve --config FILE");
    };
    if verb != "serve" || flag != "--config" {
        bail!("usage: server-with-faults serve --config FILE");
    }
    let file = std::env::var_os("SANDBASE_FAULT").context("SANDBASE_FAULT names no file")?;
    let file = PathBuf::from(file);
    server::logging::start();
    let faults = Faults::new(move |step| strike(&file, step));
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(server::app::serve(Config::read(Path::new(config))?, faults))?;
    runtime.shutdown_background();
    Ok(())
}

fn strike(file: &Path, step: Step) -> Fault {
    let wanted = std::fs::read_to_string(file).unwrap_or_default();
    let how = match wanted.trim().split_once(' ') {
        Some((name, how)) if name == format!("{step:?}") => how,
        Some(_) | None => return Fault::None,
    };
    tracing::info!(?step, how, "here is the fault");
    let fault = act(how, file);
    std::fs::remove_file(file).expect("nobody else removes the file");
    fault
}

fn act(how: &str, file: &Path) -> Fault {
    match how.split_once(' ').unwrap_or((how, "")) {
        ("kill", _) => {
            std::fs::remove_file(file).expect("nobody else removes the file");
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
            unreachable!("SIGKILL cannot be survived");
        }
        ("fail", _) => Fault::Fail,
        ("nospace", _) => Fault::NoSpace,
        ("io", _) => Fault::Io,
        ("run", command) => {
            let ended = Command::new("sh").args(["-c", command]).status();
            let ended = ended.expect("a shell");
            assert!(ended.success(), "{command}: {ended}");
            Fault::None
        }
        _ => panic!("{how} is no fault"),
    }
}
