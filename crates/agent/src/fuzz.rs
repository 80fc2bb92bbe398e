//! Random input for the parsers that strangers reach first.
//!
//! Each target takes inputs of its corpus (`crates/agent/corpus`), changes them at random and checks
//! what must hold for any input: no panic, and the same result however the bytes are cut into pieces.
//! There is no coverage to guide it; inputs with a result not seen before join the pool instead. The
//! corpus comes from runs that were guided by coverage.
//!
//! Runs for a second as a test. `SANDBASE_FUZZ_SECONDS` makes it longer, `SANDBASE_FUZZ_KEEP=1` keeps
//! inputs with new results in the corpus.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::StreamBody;
use hyper::body::Frame;

use crate::connect::{Codec, take_envelope};
use crate::files::{Multipart, UploadBody, boundary};
use crate::paths;
use crate::process::fuzzed_requests;
use crate::users::User;

/// Inputs that are kept, in memory and on disk.
const POOL: usize = 2000;
const KEPT: usize = 100;
const LONGEST: usize = 4096;
const WORDS: [&[u8]; 16] = [
    b"\r\n",
    b"\r\n\r\n",
    b"--",
    b"--x",
    b"\r\n--x",
    b"\r\n--x--",
    b"\0",
    b"..",
    b"/",
    b"~",
    b"\"",
    b"\\",
    b"filename=",
    b"{\"process\":",
    b"\x00\x00\x00\x00\x02{}",
    b"\xff\xff\xff\xff",
];

/// Xorshift: good enough, and a run is repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = at + self.below((input.len() - at).min(64) + 1);
            match self.below(6) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.below(256) as u8,
                2 => drop(input.drain(at..end)),
                3 => {
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(at..at, word.iter().copied());
                }
                4 => {
                    let copied = input[at..end].to_vec();
                    input.splice(at..at, copied);
                }
                _ => {
                    let from = self.below(other.len() + 1);
                    let to = from + self.below(other.len() - from + 1);
                    input.splice(at..end, other[from..to].iter().copied());
                }
            }
        }
        input.truncate(LONGEST);
    }

    /// Cuts the input into pieces.
    fn cut(&mut self, input: &[u8]) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut rest = input;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(1 + self.below(rest.len().min(40)));
            pieces.push(Bytes::copy_from_slice(piece));
            rest = tail;
        }
        pieces
    }
}

/// Feeds a target until its time is over. The target returns its result as text.
fn fuzz(name: &str, mut target: impl FnMut(&[u8], &mut Random) -> String) {
    let seconds = std::env::var("SANDBASE_FUZZ_SECONDS").map_or(1, |text| text.parse().unwrap());
    let keep = std::env::var_os("SANDBASE_FUZZ_KEEP").is_some();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let files = fs::read_dir(&folder).unwrap();
    let mut pool: Vec<_> = files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(!pool.is_empty(), "{} holds no inputs", folder.display());
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let seed = now.as_nanos() as u64 | 1;
    let mut random = Random(seed);
    let mut seen = HashSet::new();
    for input in pool.clone() {
        seen.insert(digest(&target(&input, &mut random)));
    }
    let mut kept = pool.len();
    let mut runs = 0_u64;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..100 {
            let mut input = pool[random.below(pool.len())].clone();
            let other = random.below(pool.len());
            random.change(&mut input, &pool[other]);
            // Written down first: a crash of the process leaves it behind.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                target(&input, &mut random)
            }));
            let Ok(result) = result else {
                panic!(
                    "{name}, seed {seed}: fails for {:?}",
                    input.escape_ascii().to_string()
                );
            };
            runs += 1;
            if pool.len() < POOL && seen.insert(digest(&result)) {
                if keep && kept < KEPT {
                    kept += 1;
                    fs::write(folder.join(format!("{:016x}", digest(&result))), &input).unwrap();
                }
                pool.push(input);
            }
        }
    }
    assert!(runs > 0);
    let mut out = std::io::stderr();
    let _no_terminal = std::io::Write::write_fmt(
        &mut out,
        format_args!(
            "{name}: {runs} runs, {} inputs with different results\n",
            pool.len()
        ),
    );
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Numbers would make every input a new one.
    let words = text
        .chars()
        .filter(|letter| !letter.is_ascii_digit())
        .take(200);
    words.collect::<String>().hash(&mut hasher);
    hasher.finish()
}

fn envelopes(pieces: &[Bytes]) -> Vec<Result<Bytes, String>> {
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match take_envelope(&mut buffer) {
                Ok(Some(envelope)) => found.push(Ok(envelope)),
                Ok(None) => break,
                Err(error) => {
                    found.push(Err(error.message));
                    return found;
                }
            }
        }
    }
    found
}

#[test]
fn envelopes_do_not_depend_on_how_they_arrive() {
    fuzz("envelope", |input, random| {
        let whole = envelopes(&[Bytes::copy_from_slice(input)]);
        assert_eq!(whole, envelopes(&random.cut(input)));
        let taken: usize = whole
            .iter()
            .flatten()
            .map(|envelope| 5 + envelope.len())
            .sum();
        assert!(taken <= input.len());
        let mut result = format!("{}", whole.len());
        for envelope in whole {
            match envelope {
                Ok(envelope) => {
                    for codec in [Codec::Json, Codec::Proto] {
                        result.push_str(&fuzzed_requests(codec, &envelope));
                    }
                }
                Err(error) => result.push_str(&error),
            }
        }
        result
    });
}

/// All parts with their contents, or the error.
fn parts(headers: &HeaderMap, pieces: Vec<Bytes>) -> Result<Vec<(String, Vec<u8>)>, String> {
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut body = StreamBody::new(futures_util::stream::iter(frames));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let body = UploadBody::new(headers, &mut body).map_err(|error| error.message)?;
        let mut multipart = Multipart::new(body, "x");
        let mut found = Vec::new();
        while let Some(part) = multipart.next_part().await.map_err(|error| error.message)? {
            let mut content = Vec::new();
            while let Some(chunk) = multipart.chunk().await.map_err(|error| error.message)? {
                assert!(!chunk.is_empty());
                content.extend_from_slice(&chunk);
            }
            found.push((format!("{part:?}"), content));
        }
        Ok(found)
    })
}

#[test]
fn multipart_does_not_depend_on_how_it_arrives() {
    fuzz("multipart", |input, random| {
        let plain = HeaderMap::new();
        let whole = parts(&plain, vec![Bytes::copy_from_slice(input)]);
        assert_eq!(whole, parts(&plain, random.cut(input)));
        let _any = boundary(&String::from_utf8_lossy(input));
        match whole {
            Ok(parts) => parts.iter().map(|(part, _)| part.as_str()).collect(),
            Err(error) => error,
        }
    });
}

#[test]
fn compressed_multipart_does_not_depend_on_how_it_arrives() {
    let mut headers = HeaderMap::new();
    let gzip = HeaderValue::from_static("gzip");
    headers.insert(header::CONTENT_ENCODING, gzip);
    fuzz("gzip", |input, random| {
        let whole = parts(&headers, vec![Bytes::copy_from_slice(input)]);
        let cut = parts(&headers, random.cut(input));
        match (whole, cut) {
            (Ok(whole), Ok(cut)) => {
                assert_eq!(whole, cut);
                whole.iter().map(|(part, _)| part.as_str()).collect()
            }
            // Which of two errors comes first depends on the pieces.
            (Err(error), Err(_)) => error,
            (whole, cut) => panic!("{whole:?} whole, {cut:?} in pieces"),
        }
    });
}

#[test]
fn resolved_paths_are_absolute_and_clean() {
    let user = User {
        name: "user".to_owned(),
        uid: 1000,
        gid: 1000,
        home: "/home/user".to_owned(),
    };
    fuzz("path", |input, random| {
        let text = String::from_utf8_lossy(input).into_owned();
        let workdir = ["", "/code"][random.below(2)];
        match paths::resolve(&text, &user, workdir) {
            Ok(resolved) => {
                assert!(resolved.starts_with('/'), "{resolved:?}");
                assert!(!resolved.contains('\0'));
                let given = if text.is_empty() { workdir } else { &text };
                if given.starts_with('/') {
                    assert_eq!(resolved, given);
                } else {
                    assert_eq!(paths::join("/", &resolved), resolved);
                    assert!(!resolved.split('/').any(|part| part == ".." || part == "."));
                }
                assert!(!paths::base_name(&resolved).is_empty());
                resolved
            }
            Err(error) => error.to_string(),
        }
    });
}
