//! Starts servers, runs programs against them, and looks for leftovers.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A server may build its template snapshot at its first start.
const START_LIMIT: Duration = Duration::from_secs(120);

/// The server's default for `engine.ready_slots`.
const READY_SLOTS: usize = 2;

/// Whether the server runs while leftovers are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serving {
    Yes,
    No,
}

/// One real server at a time: the machine is small, and some limits under test are machine-wide.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A data directory with a server that can be killed and started again.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    data_dir: PathBuf,
    log: PathBuf,
    port: u16,
    prepares: bool,
    /// What is started: the program under test, or the server with faults.
    program: PathBuf,
    process: Option<Child>,
    /// The server that one was started beside has it.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// A path that `./test` provides.
pub(crate) fn provided(variable: &str, default: &str) -> PathBuf {
    let path = PathBuf::from(std::env::var(variable).unwrap_or_else(|_| default.to_owned()));
    assert!(
        path.exists(),
        "{} is missing; ./test provides it ({variable})",
        path.display()
    );
    path
}

/// See the engine's `paths.rs`.
fn tag_of(data_dir: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let data = data_dir.metadata().unwrap();
    let place = [data.dev().to_le_bytes(), data.ino().to_le_bytes()].concat();
    blake3::hash(&place).to_hex()[..8].to_owned()
}

fn run_dir(data_dir: &Path) -> PathBuf {
    Path::new("/run/sandbase").join(tag_of(data_dir))
}

fn new_folder() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    // Not in /tmp, which may be a tmpfs without direct I/O and extended attributes.
    builder
        .prefix("sandbase-e2e-")
        .tempdir_in("/var/tmp")
        .unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Configuration of a server that starts sandboxes ahead of time and keeps paused ones in memory, as an
/// installed one does. Others make every sandbox and every resume from what is on disk.
pub(crate) const FAST: &str = "[pool]\nmost = 2\n[warm]\nmemory_percent = 10";
const FROM_DISK: &str = "[pool]\nmost = 0\n[warm]\nmemory_percent = 0\nprepared = 0";
/// Nothing stays frozen in memory, but the next start of a paused sandbox is prepared.
pub(crate) const PREPARED: &str = "[pool]\nmost = 0\n[warm]\nmemory_percent = 0\nprepared = 2";

/// The program under test.
fn sandbase() -> PathBuf {
    let program = std::env::var("SANDBASE_BIN").map_or_else(
        |_| repository().join("target/release/sandbase"),
        PathBuf::from,
    );
    assert!(
        program.is_file(),
        "{} is missing; ./test builds it",
        program.display()
    );
    program
}

impl Server {
    /// A new data directory with a server on a free port. `extra` goes into its configuration.
    pub(crate) fn start(extra: &str) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self::start_with(extra, Some(alone))
    }

    /// A server on this data directory, with faults by the file `fault` and by a runsc that
    /// `write_runsc` makes at its first argument, which obeys the file that is its second one.
    pub(crate) fn with_faults(data_dir: PathBuf, write_runsc: impl Fn(&Path, &Path)) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = new_folder();
        let (runsc, control) = (
            folder.path().join("runsc"),
            folder.path().join("runsc-fault"),
        );
        write_runsc(&runsc, &control);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_server-with-faults"));
        // The space that is kept free would hide what a full disk does.
        let extra = "[sandbox]\nfree_space_reserve_mib = 0";
        let mut server = Self::prepare(folder, data_dir, program, &runsc, extra, Some(alone));
        server.restart();
        server
    }

    /// A server whose log cannot be written.
    pub(crate) fn without_log() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = new_folder();
        let data_dir = folder.path().join("data");
        let runsc = provided("SANDBASE_RUNSC", "/usr/local/lib/sandbase/engine/runsc");
        let mut server = Self::prepare(folder, data_dir, sandbase(), &runsc, "", Some(alone));
        server.log = PathBuf::from("/dev/full");
        server.restart();
        server
    }

    /// A second server with another data directory; it must go before this one.
    pub(crate) fn beside(&self, extra: &str) -> Self {
        Self::start_with(extra, None)
    }

    fn start_with(extra: &str, alone: Option<MutexGuard<'static, ()>>) -> Self {
        let folder = new_folder();
        let data_dir = folder.path().join("data");
        let runsc = provided("SANDBASE_RUNSC", "/usr/local/lib/sandbase/engine/runsc");
        let mut server = Self::prepare(folder, data_dir, sandbase(), &runsc, extra, alone);
        server.restart();
        server
    }

    fn prepare(
        folder: tempfile::TempDir,
        data_dir: PathBuf,
        program: PathBuf,
        runsc: &Path,
        extra: &str,
        alone: Option<MutexGuard<'static, ()>>,
    ) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let rootfs = provided("SANDBASE_TEST_ROOTFS", "/var/cache/sandbase/rootfs");
        let speed = if extra.contains("[warm]") {
            ""
        } else {
            FROM_DISK
        };
        let config = format!(
            "listen = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\n\
             data_dir = \"{}\"\n\
             [engine]\nrunsc = \"{}\"\n\
             [template]\nbase_rootfs = \"{}\"\nagent = \"{}\"\n{speed}\n{extra}\n",
            data_dir.display(),
            runsc.display(),
            rootfs.display(),
            sandbase().with_file_name("sandbase-agent").display(),
        );
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        Self {
            log: folder.path().join("server.log"),
            folder,
            data_dir,
            port,
            prepares: extra == FAST,
            program,
            process: None,
            _alone: alone,
        }
    }

    /// Gives the data directory of a server that is stopped another name.
    pub(crate) fn move_data_dir(&mut self) {
        let to = self.folder.path().join("moved");
        std::fs::rename(&self.data_dir, &to).unwrap();
        let file = self.folder.path().join("config.toml");
        let config = std::fs::read_to_string(&file).unwrap();
        let moved = config.replace(self.data_dir.to_str().unwrap(), to.to_str().unwrap());
        std::fs::write(file, moved).unwrap();
        self.data_dir = to;
    }

    /// Starts the server again on the same data directory.
    pub(crate) fn restart(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut process = Command::new(&self.program)
            .arg("serve")
            .arg("--config")
            .arg(self.folder.path().join("config.toml"))
            .env("SANDBASE_FAULT", self.folder.path().join("fault"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let started = Instant::now();
        // The three export lines mean that it serves; end of file means that it died.
        let ready = lines.any(|line| line.is_ok_and(|line| line.starts_with("export E2B_API_KEY")));
        assert!(
            ready && started.elapsed() < START_LIMIT,
            "no start:\n{}",
            self.log()
        );
        self.process = Some(process);
    }

    /// Runs a client verb of the program against this server. Answers what it prints.
    pub(crate) fn verb(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(sandbase())
            .args(arguments)
            .args(["--url", &self.url(), "--data-dir"])
            .arg(self.data_dir())
            .env_remove("E2B_API_KEY")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// What another server with this data directory says, which must not start.
    pub(crate) fn second(&self) -> String {
        let output = Command::new(sandbase())
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(self.folder.path().join("config.toml"))
            .output()
            .unwrap();
        assert!(!output.status.success(), "it started");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A client of a `GET` that stands still as soon as nobody reads what it prints.
    pub(crate) fn curl(&self, path: &str) -> Child {
        let key = std::fs::read_to_string(self.data_dir().join("api-key")).unwrap();
        Command::new("curl")
            .args(["-sS", "-N", "-H", &format!("X-API-Key: {}", key.trim())])
            .arg(format!("{}{path}", self.url()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("a running server");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts it again if it was killed; it must not end in any other way.
    pub(crate) fn restart_if_killed(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let process = self.process.as_mut().expect("a running server");
        let Some(status) = process.try_wait().unwrap() else {
            return;
        };
        let killed = status.signal() == Some(rustix::process::Signal::KILL.as_raw());
        assert!(killed, "{status}\n{}", self.log());
        self.restart();
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self) {
        let mut process = self.process.take().expect("a running server");
        let id = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(process.wait().unwrap().success(), "{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        match self.log.is_file() {
            true => std::fs::read_to_string(&self.log).unwrap_or_default(),
            false => String::new(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// Where the engine keeps what is gone after a reboot.
    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(&self.data_dir())
    }

    /// A program of `programs/`, by the published SDK of its language, told where the server is.
    pub(crate) fn program(&self, name: &str) -> Command {
        let sdk = provided("SANDBASE_TEST_SDK", "/var/cache/sandbase/sdk");
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(name);
        let mut command = if name.ends_with(".py") {
            let mut command = Command::new(sdk.join("venv/bin/python"));
            command.arg(path);
            command
        } else {
            // Modules are looked up beside the program, so it runs from a copy beside the SDK.
            let copy = sdk.join("node").join(name);
            std::fs::copy(&path, &copy).unwrap();
            let mut command = Command::new(sdk.join("bin/node"));
            command.arg(copy);
            command
        };
        self.tell(&mut command);
        command
    }

    /// A verb of the program that looks at servers by E2B's API, told where this one is.
    pub(crate) fn client(&self, verb: &str) -> Command {
        let mut command = Command::new(sandbase());
        command.arg(verb);
        self.tell(&mut command);
        command
    }

    /// Says in the environment where the server is.
    fn tell(&self, command: &mut Command) {
        let key = std::fs::read_to_string(self.data_dir().join("api-key")).unwrap();
        command
            .env("E2B_API_URL", self.url())
            .env("E2B_SANDBOX_URL", self.url())
            .env("E2B_API_KEY", key.trim())
            .env("NO_PROXY", "localhost,127.0.0.1");
    }

    /// Runs a program to its end, which must be a good one.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = self.program(name).args(arguments).output().unwrap();
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(
            status.success(),
            "{name} {arguments:?} failed ({status})\n{stdout}\n{stderr}\n--- server:\n{}",
            self.log()
        );
        stdout
    }

    /// After all sandboxes were killed: nothing of them is left on this host.
    pub(crate) fn assert_nothing_left(&self) {
        if self.prepares {
            // There are executions of sandboxes that nobody made; after the stop there are none.
            self.run("kill_all.py", &["none"]);
            return;
        }
        self.wait_for_nothing_left(Serving::Yes);
    }

    /// After a stop: no process, mount, namespace or anything else of an execution is there.
    pub(crate) fn assert_nothing_runs(&self) {
        let stored = |entry: &String| Path::new(entry).starts_with(self.data_dir());
        let started = Instant::now();
        loop {
            let mut left = leftovers(&self.data_dir(), Serving::No);
            left.retain(|entry| !stored(entry));
            if left.is_empty() {
                return;
            }
            // The kernel takes interfaces away some time after their namespace.
            let late = started.elapsed() > Duration::from_secs(15);
            assert!(!late, "{left:#?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_nothing_left(&self, serving: Serving) {
        let data_dir = self.data_dir();
        let started = Instant::now();
        loop {
            let left = leftovers(&data_dir, serving);
            if left.is_empty() {
                return;
            }
            assert!(
                started.elapsed() < Duration::from_secs(15),
                "left on the host: {left:#?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What is there of sandboxes, and of a server that does not run any more. All of it carries a tag
/// made from the data directory; other servers may run here.
fn leftovers(data_dir: &Path, serving: Serving) -> Vec<String> {
    let tag = tag_of(data_dir);
    let run = run_dir(data_dir);
    let mut left = entries(&data_dir.join("sandboxes"), |_| true);
    left.extend(entries(&data_dir.join("snapshots"), |_| true));
    left.extend(entries(&run.join("executions"), |_| true));
    for controller in ["memory", "cpu", "pids", "."] {
        let parent = Path::new("/sys/fs/cgroup").join(controller);
        let of_executions = parent.join(format!("sandbase-{tag}"));
        left.extend(entries(&of_executions, |name| name.starts_with('x')));
    }
    let of_run = |line: &&str| line.contains(&*run.to_string_lossy());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    // runsc keeps one empty network namespace for all gofers of a server.
    let mounts = mounts
        .lines()
        .filter(of_run)
        .filter(|line| serving == Serving::No || !line.contains("/null-netns "));
    left.extend(mounts.map(|line| format!("mount {line}")));
    for process in entries(Path::new("/proc"), |name| name.parse::<u32>().is_ok()) {
        let command = std::fs::read(format!("{process}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains("runsc") && command.contains(&*run.to_string_lossy()) {
            left.push(format!("process {command}"));
        }
    }
    let namespaces = entries(Path::new("/run/netns"), |name| name.contains(&tag));
    match serving {
        // Those of slots prepared in advance are there as long as the server is.
        Serving::Yes if namespaces.len() <= 2 * READY_SLOTS => {}
        Serving::Yes | Serving::No => left.extend(namespaces),
    }
    if serving == Serving::No {
        left.extend(entries(Path::new("/run/sandbase"), |name| name == tag));
        let links = entries(Path::new("/sys/class/net"), |name| {
            name.starts_with(&format!("sb{tag}"))
        });
        left.extend(links);
        if table_exists(&format!("sandbase_{tag}")) {
            left.push(format!("nft table sandbase_{tag}"));
        }
    }
    left
}

fn table_exists(name: &str) -> bool {
    let listed = Command::new("nft")
        .args(["list", "table", "ip", name])
        .output();
    listed.expect("nft, which ./test installs").status.success()
}

fn entries(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path().display().to_string())
        .collect()
}

impl Drop for Server {
    /// Kills every sandbox, also after a failed test, so that the next one starts clean, and stops
    /// the server, which then leaves nothing at all.
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Best effort: a failure here follows another one that is being reported.
            let _ = self.program("kill_all.py").output();
            if let Some(mut process) = self.process.take() {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_child(&process),
                    rustix::process::Signal::TERM,
                );
                let _ = process.wait();
            }
            return;
        }
        if self.process.is_none() {
            self.restart();
        }
        self.run("kill_all.py", &[]);
        self.stop();
        self.wait_for_nothing_left(Serving::No);
    }
}
