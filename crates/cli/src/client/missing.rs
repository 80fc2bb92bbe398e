//! What an export of readable files says is missing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use server::transfer::{Missing, REPORT, Report};

/// Most lines of the list that are shown; all are in the archive.
const SHOWN: usize = 50;

/// Reads the report at the end of the archive.
pub(super) fn read(archive: &Path) -> anyhow::Result<Report> {
    let shown = archive.display();
    let file = File::open(archive).with_context(|| format!("open {shown}"))?;
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries_with_seek();
    for entry in entries.with_context(|| format!("read {shown}"))? {
        let mut entry = entry.with_context(|| format!("read {shown}"))?;
        if entry.path_bytes() == REPORT.as_bytes() {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            return serde_json::from_str(&text).with_context(|| format!("understand {REPORT}"));
        }
    }
    bail!("{shown} has no {REPORT}: it is not whole")
}

/// An error when anything is missing, with what it is.
pub(super) fn told(report: &Report) -> anyhow::Result<()> {
    if report.complete {
        return Ok(());
    }
    let disks = report.disks.iter().map(|disk| format!("disk {disk}"));
    let files = report.missing.iter().map(line);
    let lines: Vec<_> = disks.chain(files).collect();
    let mut text = lines[..lines.len().min(SHOWN)].join("\n  ");
    if lines.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", lines.len() - SHOWN));
    }
    bail!("not everything could be read ({REPORT} in the archive names it):\n  {text}")
}

fn line(missing: &Missing) -> String {
    let Missing {
        path,
        what,
        ranges,
        problem,
    } = missing;
    match ranges.is_empty() {
        true => format!("{path}: {what} ({problem})"),
        false => {
            let bytes: u64 = ranges.iter().map(|(_, length)| length).sum();
            format!("{path}: {bytes} bytes of its {what} are zeros ({problem})")
        }
    }
}
