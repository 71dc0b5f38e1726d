//! The hub's HTTP interface: a listing, and files by commit.

use std::ffi::OsString;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body};

use super::{HubOptions, RepoId};
use crate::{Error, ErrorKind, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Longest listing of a repository.
const MAX_LISTING_BYTES: u64 = 50_000_000;

/// A redirect within the hub (a renamed repository) is followed at most so often.
const MAX_RENAMES: usize = 5;

/// What the hub says about a revision.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says about a file before it is downloaded.
pub(super) struct FileInfo {
    /// Names the contents; already checked to be a plain file name.
    pub(super) etag: String,
    pub(super) n_bytes: Option<u64>,
}

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(options: &HubOptions, env: &impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| env(name).and_then(|value| value.into_string().ok());
        let endpoint = options
            .endpoint
            .clone()
            .or_else(|| text("HF_ENDPOINT"))
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let token = options.token.clone().or_else(|| text("HF_TOKEN"));
        // Redirects go to a store that must not see the token; ureq's default already drops
        // it, and the choice is repeated because it matters.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::Never)
            .user_agent(concat!("quintic/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Client {
            agent,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
        }
    }

    pub(super) fn list(&self, id: &RepoId, revision: &str) -> Result<Listing> {
        let url = format!(
            "{}/api/models/{id}/revision/{}",
            self.endpoint,
            encode(revision, false)
        );
        let place = |error: Error| error.at(&url);
        let mut request = self.agent.get(&url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.call().map_err(unreachable_hub).map_err(place)?;
        self.check_status(&response, &format!("`{id}` at revision `{revision}`"))
            .map_err(place)?;
        let value: serde_json::Value = response
            .body_mut()
            .with_config()
            .limit(MAX_LISTING_BYTES)
            .read_json()
            .map_err(|error| place(damaged(format!("the listing cannot be read: {error}"))))?;
        let commit = value["sha"].as_str().unwrap_or_default().to_owned();
        if commit.len() < 7 || !commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(place(damaged(format!(
                "the listing names commit `{commit}`"
            ))));
        }
        let files = value["siblings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|file| Some(file["rfilename"].as_str()?.to_owned()))
            .collect();
        Ok(Listing { commit, files })
    }

    /// Asks for etag and size. Large files are answered by a redirect to a store, whose own
    /// etag means nothing, so it is not followed.
    pub(super) fn info(&self, id: &RepoId, commit: &str, file: &str) -> Result<FileInfo> {
        let mut url = self.file_url(id, commit, file);
        for _ in 0..MAX_RENAMES {
            let place = |error: Error| error.at(&url);
            let mut request = self.agent.head(&url).header("accept-encoding", "identity");
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request
                .config()
                .max_redirects(0)
                .build()
                .call()
                .map_err(unreachable_hub)
                .map_err(place)?;
            let header = |name: &str| response.headers().get(name)?.to_str().ok();
            let is_redirect = response.status().is_redirection();
            if let Some(location) =
                header("location").filter(|to| is_redirect && to.starts_with('/'))
            {
                url = format!("{}{location}", self.endpoint);
                continue;
            }
            if !is_redirect {
                self.check_status(&response, &format!("`{file}` of `{id}`"))
                    .map_err(place)?;
            }
            if let Some(served) = header("x-repo-commit").filter(|served| *served != commit) {
                return Err(place(damaged(format!(
                    "the hub serves commit `{served}`, expected `{commit}`"
                ))));
            }
            let etag = header("x-linked-etag")
                .or_else(|| header("etag"))
                .unwrap_or_default();
            let etag = etag.trim_start_matches("W/").trim_matches('"');
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if etag.is_empty()
                || etag.len() > 200
                || etag.starts_with('.')
                || !etag.chars().all(is_name)
            {
                return Err(place(damaged(format!(
                    "the hub sends the etag `{etag}`, expected a hash"
                ))));
            }
            let own_size = || header("content-length").filter(|_| !is_redirect);
            let n_bytes = header("x-linked-size")
                .or_else(own_size)
                .and_then(|n| n.parse().ok());
            return Ok(FileInfo {
                etag: etag.to_owned(),
                n_bytes,
            });
        }
        Err(damaged(format!("more than {MAX_RENAMES} redirects")).at(url))
    }

    /// The file's contents from byte `from` on. The status is 200 (from the start after
    /// all), 206 or 416; others are errors.
    pub(super) fn get(
        &self,
        id: &RepoId,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response<Body>> {
        let url = self.file_url(id, commit, file);
        let place = |error: Error| error.at(&url);
        let mut request = self.agent.get(&url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(unreachable_hub).map_err(place)?;
        if response.status() != 416 {
            self.check_status(&response, &format!("`{file}` of `{id}`"))
                .map_err(place)?;
        }
        Ok(response)
    }

    fn file_url(&self, id: &RepoId, commit: &str, file: &str) -> String {
        format!(
            "{}/{id}/resolve/{}/{}",
            self.endpoint,
            encode(commit, false),
            encode(file, true)
        )
    }

    fn check_status(&self, response: &Response<Body>, what: &str) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        // The hub hides private repositories behind 401, as it does those that do not exist.
        let reason = response
            .headers()
            .get("x-error-code")
            .and_then(|code| code.to_str().ok())
            .map_or(String::new(), |code| format!(" ({code})"));
        Err(match status.as_u16() {
            404 => Error::new(
                ErrorKind::NotFound,
                format!("the hub has no {what}{reason}"),
            ),
            401 | 403 => {
                damaged(format!("the hub refuses {what}: status {status}{reason}")).hint(match self
                    .token
                {
                    None => "it is private, gated or does not exist; `HF_TOKEN` sets a token",
                    Some(_) => {
                        "it is private, gated or does not exist; has the token access to it?"
                    }
                })
            }
            429 => damaged(format!("the hub has no time for {what}: status {status}"))
                .hint("try again later"),
            _ => damaged(format!(
                "the hub answers {what} with status {status}{reason}"
            )),
        })
    }
}

fn damaged(message: String) -> Error {
    Error::new(ErrorKind::Download, message)
}

fn unreachable_hub(error: ureq::Error) -> Error {
    damaged(format!("the hub cannot be reached: {error}")).source_error(error)
}

/// Percent-encodes what is not plain in a URL's path.
fn encode(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if is_plain || (keep_slashes && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_revisions_and_paths() {
        assert_eq!(encode("refs/pr/3", false), "refs%2Fpr%2F3");
        assert_eq!(encode("a b/ü.json", true), "a%20b/%C3%BC.json");
    }
}
