//! Models by repository id, such as `google/flan-t5-small`, in the local Hugging Face cache.
//!
//! The cache is the one that `huggingface_hub`, transformers and the `hf` command share:
//!
//! ```text
//! <cache>/models--google--flan-t5-small/refs/main               a commit, as text
//!                                      /snapshots/<commit>/...  the files, mostly links to
//!                                      /blobs/<etag>            their contents
//! ```
//!
//! Reading it needs no cargo feature and no network. With feature `hub`, what is missing is
//! downloaded into it.
//!
//! Environment, each read only where the field of [`HubOptions`] is not set; an empty
//! variable counts as unset:
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE` | the cache itself |
//! | `HF_HOME` | the cache is `hub` in it |
//! | `XDG_CACHE_HOME` | the cache is `huggingface/hub` in it; default `~/.cache` |
//! | `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on`: never download |
//! | `HF_ENDPOINT` | the hub's address; default `https://huggingface.co` |
//! | `HF_TOKEN` | sent to the hub, and to nobody it redirects to |

#[cfg(feature = "hub")]
mod blob;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod select;

use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::layout::{self, OpenOptions};
use super::shards::{ShardIndex, is_plain_name, read_bounded};
use crate::{Error, ErrorKind, Result};

const DEFAULT_REVISION: &str = "main";

/// Choices for [`resolve`]. Fields that are not set come from the environment, see the
/// [module](self).
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Branch, tag, reference such as `refs/pr/3`, or full commit; `main` if not set.
    pub revision: Option<String>,
    /// The cache folder that holds `models--org--name`.
    pub cache_dir: Option<PathBuf>,
    /// Download the weights of this variant, see [`OpenOptions::variant`].
    pub variant: Option<String>,
    /// Download this folder of the repository, see [`OpenOptions::subfolder`].
    pub subfolder: Option<String>,
    /// Never download. Without cargo feature `hub` this is always so.
    pub offline: Option<bool>,
    /// Ask the hub which commit the revision is at even if the cache has one.
    pub refresh: bool,
    /// Address of the hub.
    pub endpoint: Option<String>,
    /// Access token of the hub.
    pub token: Option<String>,
    /// Called while a file is downloaded, several times a second at most.
    pub progress: Option<ProgressCallback>,
}

/// Who is told of a download's progress.
pub type ProgressCallback = Arc<dyn Fn(&Progress<'_>) + Send + Sync>;

/// How far the download of one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Path inside the repository.
    pub file: &'a str,
    /// Bytes that are there, those of an earlier interrupted download included.
    pub done_bytes: u64,
    /// Size of the file, if the hub says it.
    pub total_bytes: Option<u64>,
}

impl fmt::Debug for HubOptions {
    /// Shows everything but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("cache_dir", &self.cache_dir)
            .field("variant", &self.variant)
            .field("subfolder", &self.subfolder)
            .field("offline", &self.offline)
            .field("refresh", &self.refresh)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

/// The folder or file that `path_or_id` stands for: itself if it exists, else the snapshot
/// of that repository in the cache, downloaded first if need be and possible.
///
/// # Errors
///
/// - [`ErrorKind::NotFound`]: it looks like a path (`./x`, `a/b/c`, `x.safetensors`) and
///   does not exist; the cache lacks the repository, the revision or the weights, and
///   nothing may be downloaded; the hub has no such repository, revision or weights;
/// - [`ErrorKind::Input`]: it is neither a path nor a repository id;
/// - [`ErrorKind::Download`]: the hub cannot be reached, refuses, or sends less than it said;
/// - [`ErrorKind::Io`]: the cache cannot be read or written.
pub fn resolve(path_or_id: &str, options: &HubOptions) -> Result<PathBuf> {
    let path = Path::new(path_or_id);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if looks_like_path(path_or_id) {
        return Err(
            Error::new(ErrorKind::NotFound, "there is no such file or folder").at(path.display()),
        );
    }
    let id = RepoId::parse(path_or_id)?;
    let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = cache_folder(options, env)?;
    resolve_id(&id, &cache, options, env)
}

fn resolve_id(
    id: &RepoId,
    cache: &Path,
    options: &HubOptions,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf> {
    let offline = is_offline(options, &env);
    let cached = find_cached(id, cache, options);
    let found = match &cached {
        Ok(snapshot) => completeness(snapshot, options),
        Err(_) => Completeness::Nothing,
    };
    if offline || (found == Completeness::Everything && !options.refresh) {
        return cached.map_err(|error| with_download_hint(error, id));
    }
    #[cfg(feature = "hub")]
    return match download::download(id, cache, options, &env) {
        // Some repositories have no tokenizer, and the network may be down.
        Err(error)
            if error.kind() == ErrorKind::Download
                && found == Completeness::Weights
                && !options.refresh =>
        {
            cached
        }
        result => result,
    };
    #[cfg(not(feature = "hub"))]
    cached.map_err(|error| with_download_hint(error, id))
}

/// Without feature `hub` there is nothing else to be.
fn is_offline(options: &HubOptions, env: &impl Fn(&str) -> Option<OsString>) -> bool {
    cfg!(not(feature = "hub"))
        || options.offline.unwrap_or_else(|| {
            env("HF_HUB_OFFLINE").is_some_and(|value| {
                let value = value.to_string_lossy().to_ascii_lowercase();
                ["1", "true", "yes", "on"].contains(&value.as_str())
            })
        })
}

fn with_download_hint(error: Error, id: &RepoId) -> Error {
    let why = match cfg!(feature = "hub") {
        true => "downloads are switched off",
        false => "this build does not download",
    };
    error.hint(format!(
        "{why}; `hf download {id}` puts the model into the cache"
    ))
}

/// The snapshot of the revision, complete or not.
fn find_cached(id: &RepoId, cache: &Path, options: &HubOptions) -> Result<PathBuf> {
    let repo = cache.join(id.folder_name());
    if !repo.is_dir() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "the model is neither a path nor in the cache, looked for `{}`",
                repo.display()
            ),
        )
        .at(format!("`{id}`")));
    }
    let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    let commit = match read_ref(&repo, revision)? {
        Some(commit) => commit,
        None => revision.to_owned(),
    };
    let snapshot = repo.join("snapshots").join(&commit);
    if is_plain_name(&commit) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!(
            "revision `{revision}` is not in the cache, looked in `{}`; there are {}",
            repo.display(),
            cached_revisions(&repo)
        ),
    )
    .at(format!("`{id}`")))
}

/// The commit that `refs/<revision>` holds, if there is such a file.
fn read_ref(repo: &Path, revision: &str) -> Result<Option<String>> {
    check_revision(revision)?;
    let path = repo.join("refs").join(revision);
    if !path.is_file() {
        return Ok(None);
    }
    let commit = read_bounded(&path, 1000)?.trim().to_owned();
    if !is_plain_name(&commit) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the reference holds `{commit}`, expected a commit"),
        )
        .at(path.display()));
    }
    Ok(Some(commit))
}

/// A revision becomes a path, so it must not leave its folder.
fn check_revision(revision: &str) -> Result<()> {
    let is_inside = Path::new(revision)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !revision.is_empty() && is_inside && !revision.contains(['\\', '\0']) {
        return Ok(());
    }
    Err(Error::input(format!(
        "`{revision}` is no revision, expected a branch, a tag or a commit"
    )))
}

fn cached_revisions(repo: &Path) -> String {
    let mut names: Vec<String> = ["refs", "snapshots"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(repo.join(folder)).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    match names.is_empty() {
        true => "none".to_owned(),
        false => super::entry::list_names(names, 8),
    }
}

/// How much of a model a snapshot holds, as the options want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Completeness {
    /// No weights, or not all shards.
    Nothing,
    /// Weights, but no config or no tokenizer.
    Weights,
    Everything,
}

fn completeness(snapshot: &Path, options: &HubOptions) -> Completeness {
    let open_options = OpenOptions {
        variant: options.variant.clone(),
        subfolder: options.subfolder.clone(),
        prefix: None,
    };
    let Ok(layout) = layout::find(snapshot, &open_options) else {
        return Completeness::Nothing;
    };
    if layout.is_index {
        let folder = layout.weights.parent().unwrap_or(snapshot);
        let has_shards = ShardIndex::open(&layout.weights)
            .is_ok_and(|index| index.shard_names().all(|name| folder.join(name).is_file()));
        if !has_shards {
            return Completeness::Nothing;
        }
    }
    match (layout.config, layout.tokenizer) {
        (Some(_), Some(_)) => Completeness::Everything,
        _ => Completeness::Weights,
    }
}

/// The folder that holds `models--org--name`.
fn cache_folder(options: &HubOptions, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(folder) = &options.cache_dir {
        return Ok(folder.clone());
    }
    let home = || {
        env("HOME")
            .or_else(|| env("USERPROFILE"))
            .map(PathBuf::from)
    };
    let set = |name: &str| {
        let path = PathBuf::from(env(name)?);
        Some(match path.strip_prefix("~") {
            Ok(rest) => home()?.join(rest),
            Err(_) => path,
        })
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface").join("hub")))
        .or_else(|| Some(home()?.join(".cache").join("huggingface").join("hub")))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "there is no cache folder: none of `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` and `HOME` is set",
            )
        })
}

/// `org/name`, or `name` for the few oldest repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RepoId(String);

impl RepoId {
    fn parse(text: &str) -> Result<Self> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        let n_parts = text.split('/').count();
        let is_id = n_parts <= 2
            && text.len() <= 96
            && text.split('/').all(is_part)
            && !text.contains("--")
            && !text.contains("..");
        if is_id {
            return Ok(RepoId(text.to_owned()));
        }
        Err(Error::input(format!(
            "`{text}` is neither an existing path nor a repository id, expected one such as `google/flan-t5-small`"
        )))
    }

    fn folder_name(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text that names nothing on this machine was meant to.
fn looks_like_path(text: &str) -> bool {
    const ENDINGS: [&str; 8] = [
        ".safetensors",
        ".sft",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".json",
        ".gguf",
    ];
    let path = Path::new(text);
    path.is_absolute()
        || text.starts_with(['.', '/', '~'])
        || text.ends_with('/')
        || text.contains('\\')
        || text.matches('/').count() > 1
        || ENDINGS.iter().any(|ending| text.ends_with(ending))
}

#[cfg(test)]
mod tests;
