//! Downloading one blob: resumed, never half visible, safe beside other processes.
//!
//! A partial download lies in `<etag>.incomplete`. Whoever continues it first renames it to
//! a name of its own, which only one process can do, and renames it back if it fails. So no
//! two processes write one file, without a lock that a killed process would leave behind.
//! Two that download the same blob from the start do the work twice and rename the same
//! contents to the same name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::client::{Client, FileInfo};
use super::{HubOptions, Progress, RepoId};
use crate::{Error, ErrorKind, Result};

/// Tries per file, each going on where the last one broke off.
const MAX_TRIES: usize = 4;

/// A claimed partial file that nobody wrote to for so long belongs to a process that died.
const ABANDONED: Duration = Duration::from_secs(15 * 60);

/// Time between two calls of the progress callback.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What is downloaded, and for whom.
pub(super) struct Job<'a> {
    pub(super) client: &'a Client,
    pub(super) options: &'a HubOptions,
    pub(super) id: &'a RepoId,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
}

/// Puts the file's contents at `blob`.
pub(super) fn fetch(job: &Job<'_>, info: &FileInfo, blob: &Path) -> Result<()> {
    let partial = Partial::claim(blob)?;
    match fill(job, info, &partial.own) {
        Ok(()) => std::fs::rename(&partial.own, blob)
            .map_err(|error| Error::io(blob, "put the download in place", error)),
        Err(error) => {
            partial.release();
            Err(error)
        }
    }
}

fn fill(job: &Job<'_>, info: &FileInfo, path: &Path) -> Result<()> {
    let io = |error| Error::io(path, "write the download", error);
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(io)?;
    let mut last = None;
    for _ in 0..MAX_TRIES {
        let before = file.metadata().map_err(io)?.len();
        if info.n_bytes == Some(before) {
            break;
        }
        if info.n_bytes.is_some_and(|n_bytes| before > n_bytes) {
            file.set_len(0).map_err(io)?;
            continue;
        }
        match append(job, info, &mut file, before) {
            Ok(()) => last = None,
            // A refusal stays one; only broken connections are worth another try.
            Err(Stop::Refused(error)) => return Err(error),
            Err(Stop::Broken(error)) => {
                last = Some(error);
                continue;
            }
        }
        if info.n_bytes.is_none() {
            break;
        }
    }
    let n_bytes = file.metadata().map_err(io)?.len();
    match info.n_bytes {
        Some(expected) if n_bytes != expected => {
            let cause = last.map_or(String::new(), |cause| format!(": {cause}"));
            Err(Error::new(
                ErrorKind::Download,
                format!(
                    "the download broke off after {n_bytes} of {expected} bytes, {MAX_TRIES} tries{cause}"
                ),
            )
            .at(format!("`{}` of `{}`", job.file, job.id))
            .hint("the next try goes on where this one ended"))
        }
        None if last.is_some() => Err(Error::new(
            ErrorKind::Download,
            format!("the download broke off: {}", last.unwrap_or_default()),
        )
        .at(format!("`{}` of `{}`", job.file, job.id))),
        _ => file.sync_all().map_err(io),
    }
}

enum Stop {
    Refused(Error),
    Broken(String),
}

/// One request, from the end of `file` on.
fn append(job: &Job<'_>, info: &FileInfo, file: &mut File, from: u64) -> Result<(), Stop> {
    let refused =
        |error| Stop::Refused(Error::io(Path::new(job.file), "write the download", error));
    let answer = job.client.get(job.id, job.commit, job.file, from);
    let mut response = answer.map_err(|error| match error.kind() {
        // Half a file says that the hub was willing a moment ago.
        ErrorKind::Download if from > 0 => Stop::Broken(error.to_string()),
        _ => Stop::Refused(error),
    })?;
    let mut done = from;
    match response.status().as_u16() {
        206 if starts_at(&response, from) => {}
        // What is there is of no use to the server: from the start.
        206 | 416 => {
            file.set_len(0).map_err(refused)?;
            return Err(Stop::Broken("the server cannot resume there".to_owned()));
        }
        _ => {
            file.set_len(0).map_err(refused)?;
            done = 0;
        }
    }
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 17];
    let mut reported = Instant::now();
    report(job, done, info.n_bytes);
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Stop::Broken(error.to_string())),
        };
        done += n as u64;
        if info.n_bytes.is_some_and(|n_bytes| done > n_bytes) {
            file.set_len(0).map_err(refused)?;
            return Err(Stop::Broken(
                "the server sends more than it announced".to_owned(),
            ));
        }
        file.write_all(&buffer[..n]).map_err(refused)?;
        if reported.elapsed() >= REPORT_EVERY {
            report(job, done, info.n_bytes);
            reported = Instant::now();
        }
    }
    report(job, done, info.n_bytes);
    Ok(())
}

/// Whether the partial answer begins where it was asked to.
fn starts_at(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    response.headers().get("content-range").and_then(|range| {
        range
            .to_str()
            .ok()?
            .strip_prefix("bytes ")?
            .split('-')
            .next()?
            .parse()
            .ok()
    }) == Some(from)
}

fn report(job: &Job<'_>, done_bytes: u64, total_bytes: Option<u64>) {
    if let Some(progress) = &job.options.progress {
        progress(&Progress {
            file: job.file,
            done_bytes,
            total_bytes,
        });
    }
}

/// A partial file under a name that no other process uses.
struct Partial {
    own: PathBuf,
    common: PathBuf,
}

impl Partial {
    /// Takes over what an earlier download left, or starts afresh.
    fn claim(blob: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let with = |ending: &str| {
            let mut name = blob.file_name().unwrap_or_default().to_owned();
            name.push(ending);
            blob.with_file_name(name)
        };
        let folder = blob.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::io(folder, "make the folder", error))?;
        let common = with(".incomplete");
        let unique = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let own = with(&format!(".incomplete.{unique}"));
        // Failure is the usual case: there is nothing to take over.
        if std::fs::rename(&common, &own).is_err()
            && let Some(abandoned) = abandoned(folder, &common)
        {
            let _ = std::fs::rename(abandoned, &own);
        }
        Ok(Partial { own, common })
    }

    /// Leaves what there is to the next download.
    fn release(self) {
        // If this fails the next download starts afresh, which is no worse than an error.
        let _ = std::fs::rename(&self.own, &self.common);
    }
}

/// A claimed partial file of the same blob whose process must be gone.
fn abandoned(folder: &Path, common: &Path) -> Option<PathBuf> {
    let start = format!("{}.", common.file_name()?.to_str()?);
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let is_claimed = entry.file_name().to_str()?.starts_with(&start);
        let modified = entry.metadata().ok()?.modified().ok()?;
        (is_claimed && modified.elapsed().ok()? > ABANDONED).then(|| entry.path())
    })
}
