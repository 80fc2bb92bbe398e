//! Exports as files: written whole or not at all, read as they are sent.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api_types::SnapshotInfo;
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt, stream};
use http::Method;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::fs::{self, File};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::http::{Client, escaped, read};
use super::missing;
use super::output::{Output, Progress, bytes, print_json, print_line};

/// Standard input or output.
const STANDARD: &str = "-";
const CHUNK: usize = 256 << 10;

/// How to write an export.
#[derive(Args)]
pub(crate) struct ExportArguments {
    /// File to write, `-` for standard output. Default: `<id>.sandbase.tar.zst` or `<id>.files.tar`,
    /// here.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a plain tar archive.
    #[arg(long)]
    uncompressed: bool,
    /// Leave memory out, for example when it cannot be read any more.
    #[arg(long)]
    files_only: bool,
    /// Write the files that can be read, when the disk is damaged: as a plain tar archive for
    /// people, not for an import. A sandbox must be paused. Fails when anything is missing, with a
    /// list of it; the file is there all the same.
    #[arg(long, conflicts_with_all = ["files_only", "uncompressed"])]
    readable_files: bool,
}

/// What to import.
#[derive(Args)]
pub(crate) struct ImportArguments {
    /// File that `export` wrote, `-` for standard input.
    file: PathBuf,
    /// What to call the snapshot: `<name>[:<tag>]`.
    #[arg(long)]
    name: Option<String>,
    /// Leave its memory: sandboxes made from it boot, whatever engine and CPU this server has.
    #[arg(long)]
    files_only: bool,
}

/// Writes the export at `path` of the API to a file.
pub(super) async fn export(
    client: &Client,
    path: &str,
    name: &str,
    arguments: &ExportArguments,
    output: Output,
) -> anyhow::Result<()> {
    let (query, ending) = if arguments.readable_files {
        ("compression=none&files=readable".to_owned(), "files.tar")
    } else {
        let (compression, ending) = match arguments.uncompressed {
            true => ("none", "sandbase.tar"),
            false => ("zstd", "sandbase.tar.zst"),
        };
        let memory = !arguments.files_only;
        (format!("compression={compression}&memory={memory}"), ending)
    };
    let path = format!("{path}?{query}");
    let default = || PathBuf::from(format!("{}.{ending}", file_name(name)));
    let target = arguments.output.clone().unwrap_or_else(default);
    if target.as_os_str() == STANDARD {
        download(client, &path, &mut tokio::io::stdout()).await?;
        return Ok(());
    }
    if target.exists() {
        bail!(
            "{} exists; remove it, or write another file with --output",
            target.display()
        );
    }
    // Under another name first: what has the right name is whole.
    let mut partial = target.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = download_to(client, &path, &partial).await;
    let size = match written {
        Ok(size) => size,
        Err(error) => {
            // What failed is reported; a file that is not there is as good as removed.
            let _ = fs::remove_file(&partial).await;
            return Err(error);
        }
    };
    fs::rename(&partial, &target)
        .await
        .with_context(|| format!("rename {} to {}", partial.display(), target.display()))?;
    let report = match arguments.readable_files {
        true => Some(missing::read(&target)?),
        false => None,
    };
    match output {
        Output::Json => {
            print_json(&json!({ "file": target, "bytes": size, "report": report }))?;
        }
        Output::People => {
            print_line(&format!("wrote {}, {}", target.display(), bytes(size)))?;
        }
    }
    report.map_or(Ok(()), |report| missing::told(&report))
}

/// A reference as a file name.
fn file_name(reference: &str) -> String {
    reference.replace(['/', ':'], "-")
}

async fn download_to(client: &Client, path: &str, target: &Path) -> anyhow::Result<u64> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    // It holds somebody's memory.
    options.mode(0o600);
    let file = options.open(target).await;
    let mut file = file.with_context(|| format!("create {}", target.display()))?;
    let size = download(client, path, &mut file).await?;
    let synced = file.sync_all().await;
    synced.with_context(|| format!("write {}", target.display()))?;
    Ok(size)
}

async fn download(
    client: &Client,
    path: &str,
    target: &mut (impl AsyncWrite + Unpin),
) -> anyhow::Result<u64> {
    let nothing = http_body_util::Empty::new().map_err(|never| match never {});
    let response = client
        .open(Method::GET, path, BoxBody::new(nothing))
        .await?;
    let mut body = response.into_body();
    let mut progress = Progress::new("received", None);
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the export broke off; the server's log says why")?;
        if let Ok(data) = frame.into_data() {
            target.write_all(&data).await.context("write the export")?;
            progress.add(data.len());
        }
    }
    target.flush().await.context("write the export")?;
    Ok(progress.finish())
}

/// Sends a file and prints what it became.
pub(super) async fn import(
    client: &Client,
    arguments: &ImportArguments,
    output: Output,
) -> anyhow::Result<()> {
    let mut path = format!("/snapshots/import?memory={}", !arguments.files_only);
    if let Some(name) = &arguments.name {
        path.push_str(&format!("&name={}", escaped(name)));
    }
    let body = if arguments.file.as_os_str() == STANDARD {
        upload(tokio::io::stdin(), None)
    } else {
        let shown = arguments.file.display();
        let file = File::open(&arguments.file).await;
        let file = file.with_context(|| format!("open {shown}"))?;
        let metadata = file.metadata().await;
        let metadata = metadata.with_context(|| format!("look at {shown}"))?;
        if !metadata.is_file() {
            bail!("{shown} is no file");
        }
        upload(file, Some(metadata.len()))
    };
    let response = client.open(Method::POST, &path, body).await?;
    let answer = read(response).await?;
    match output {
        Output::Json => print_json(&answer.value()?),
        Output::People => {
            let snapshot: SnapshotInfo = answer.decode()?;
            print_line(&format!("imported {}", snapshot.snapshot_id))
        }
    }
}

/// What is read, piece by piece.
fn upload(
    source: impl AsyncRead + Unpin + Send + Sync + 'static,
    total: Option<u64>,
) -> BoxBody<Bytes, io::Error> {
    let progress = Progress::new("sent", total);
    let pieces = stream::unfold(Some((source, progress)), async |state| {
        let (mut source, mut progress) = state?;
        let mut buffer = vec![0; CHUNK];
        match source.read(&mut buffer).await {
            Ok(0) => {
                progress.finish();
                None
            }
            Ok(length) => {
                buffer.truncate(length);
                progress.add(length);
                Some((Ok(Bytes::from(buffer)), Some((source, progress))))
            }
            Err(error) => {
                progress.finish();
                Some((Err(error), None))
            }
        }
    });
    BoxBody::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))))
}
