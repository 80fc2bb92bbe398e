//! The inside of a fake execution.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::watch;

use crate::ExitReason;

/// File of a fake disk that a guest writes to.
pub const DISK_FILE: &str = "guest-data";
const IMAGE_FILE: &str = "checkpoint.img";

/// One fake guest: a counter, a disk, and a server that plays the agent.
pub(super) struct FakeGuest {
    /// What it stands on, the disk it writes to last.
    disks: Vec<PathBuf>,
    shared: Arc<Shared>,
    address: SocketAddr,
    end: watch::Sender<Option<ExitReason>>,
}

struct Shared {
    memory: AtomicU64,
    frozen: AtomicBool,
    dead: AtomicBool,
    silent: bool,
    prepare_fails: bool,
}

impl FakeGuest {
    /// Starts with an empty memory.
    pub(super) fn boot(disks: Vec<PathBuf>, silent: bool, prepare_fails: bool) -> io::Result<Self> {
        Self::spawn(disks, 0, silent, prepare_fails)
    }

    /// Starts with the memory of an image. The flag says whether the disks hold what they held when
    /// it was taken.
    pub(super) fn restore(
        disks: Vec<PathBuf>,
        image: &Path,
        silent: bool,
        prepare_fails: bool,
    ) -> io::Result<(Self, bool)> {
        let text = fs::read_to_string(image.join(IMAGE_FILE))?;
        let mut words = text.split(' ');
        let memory = words.next().and_then(|word| word.parse().ok());
        let memory = memory.ok_or_else(|| io::Error::other("the image is unreadable"))?;
        let fits = words.next() == Some(&disk_state(&disks)?);
        Ok((Self::spawn(disks, memory, silent, prepare_fails)?, fits))
    }

    fn spawn(
        disks: Vec<PathBuf>,
        memory: u64,
        silent: bool,
        prepare_fails: bool,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            memory: AtomicU64::new(memory),
            frozen: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            silent,
            prepare_fails,
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if served.dead.load(Ordering::SeqCst) {
                    return;
                }
                let served = Arc::clone(&served);
                std::thread::spawn(move || answer(&served, stream));
            }
        });
        let (end, _) = watch::channel(None);
        Ok(Self {
            disks,
            shared,
            address,
            end,
        })
    }

    pub(super) fn memory(&self) -> u64 {
        self.shared.memory.load(Ordering::SeqCst)
    }

    pub(super) fn uses(&self, disk: &Path) -> bool {
        self.disks.last().is_some_and(|own| own == disk)
    }

    /// The disk it writes to.
    pub(super) fn disk(&self) -> PathBuf {
        self.disks.last().cloned().unwrap_or_default()
    }

    /// Counts on in memory and on disk; false when it cannot execute.
    pub(super) fn step(&mut self) -> bool {
        if self.is_dead() || self.is_frozen() {
            return false;
        }
        let now = self.shared.memory.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(disk) = self.disks.last() else {
            return false;
        };
        let file = OpenOptions::new().append(true).open(disk.join(DISK_FILE));
        file.and_then(|mut file| writeln!(file, "{now}")).is_ok()
    }

    pub(super) fn freeze(&mut self) {
        self.shared.frozen.store(true, Ordering::SeqCst);
    }

    pub(super) fn thaw(&mut self) {
        self.shared.frozen.store(false, Ordering::SeqCst);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.shared.frozen.load(Ordering::SeqCst)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::SeqCst)
    }

    pub(super) fn die(&mut self, reason: ExitReason) {
        if !self.shared.dead.swap(true, Ordering::SeqCst) {
            self.end.send_replace(Some(reason));
            // Wakes the accepting thread so that it sees the end; it may be gone already.
            let _ = TcpStream::connect(self.address);
        }
    }

    pub(super) fn end(&self) -> watch::Receiver<Option<ExitReason>> {
        self.end.subscribe()
    }

    pub(super) fn address(&self, _port: u16) -> io::Result<SocketAddr> {
        if self.is_dead() {
            Err(io::ErrorKind::ConnectionRefused.into())
        } else {
            Ok(self.address)
        }
    }

    /// Writes the image and returns its content, which is different for every checkpoint.
    pub(super) fn checkpoint(&self, image: &Path) -> io::Result<Vec<u8>> {
        let text = format!(
            "{} {} {}",
            self.memory(),
            disk_state(&self.disks)?,
            rand::random::<u64>()
        );
        fs::write(image.join(IMAGE_FILE), &text)?;
        Ok(text.into_bytes())
    }
}

/// What disks hold together, in one word.
fn disk_state(disks: &[PathBuf]) -> io::Result<String> {
    let mut content = Vec::new();
    for disk in disks {
        content.extend(fs::read(disk.join(DISK_FILE))?);
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in &content {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Ok(format!("{}-{hash:x}", content.len()))
}

/// Answers one request the way the agent's host channel does; on any other path with the counter.
/// The log of a guest that did two things and does no more.
fn log_after(path: &str) -> String {
    let after = path.rsplit_once("after=").map_or("0", |(_, after)| after);
    let after = after.parse().unwrap_or(0);
    let entries = [
        (
            1,
            r#"{"number":1,"entry":{"level":"info","logger":"process","message":"process started","timestamp":"2026-01-01T00:00:01Z","pid":7,"command":"sleep 1"}}"#,
        ),
        (
            2,
            r#"{"number":2,"entry":{"level":"warn","logger":"memory","message":"out of memory","timestamp":"2026-01-01T00:00:02Z","name":"hog"}}"#,
        ),
    ];
    let entries = entries.iter().filter(|(number, _)| *number > after);
    let mut lines = "{\"boot\":\"fake\"}\n".to_owned();
    for (_, line) in entries {
        lines.push_str(line);
        lines.push('\n');
    }
    lines
}

fn answer(guest: &Shared, mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let head_end = loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
        if let Some(at) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8_lossy(&request[..head_end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|value| value.trim().parse::<usize>().ok())
        .unwrap_or(0);
    let mut body = request.len() - head_end;
    while body < length {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => body += count,
        }
    }
    if guest.silent || guest.dead.load(Ordering::SeqCst) {
        return;
    }
    let path = head.split(' ').nth(1).unwrap_or("/");
    let (status, text) = match path {
        "/init" => (
            "200 OK",
            r#"{"agentVersion":"fake","envdVersion":"0.6.13","bootId":"b","processes":0}"#.into(),
        ),
        "/prepare" if guest.prepare_fails => (
            "500 Internal Server Error",
            r#"{"code":500,"message":"injected"}"#.to_owned(),
        ),
        "/prepare" => ("200 OK", "{}".to_owned()),
        log if log.starts_with("/log?") => ("200 OK", log_after(log)),
        "/health" => ("204 No Content", String::new()),
        _ => ("200 OK", guest.memory.load(Ordering::SeqCst).to_string()),
    };
    let length = text.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    // A client that left does not interest anybody.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(text.as_bytes()));
}
