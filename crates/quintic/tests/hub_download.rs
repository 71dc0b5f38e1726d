//! Downloads from a small hub in this process. Needs cargo feature `hub`, not a network.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;
mod hub_support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use checkpoint_support::{Folder, Shape, encoder, safetensors};
use hub_support::{COMMIT, Hub};
use quintic::checkpoint::hub::{HubOptions, resolve};
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::{ErrorKind, Result};

const ID: &str = "org/tiny";
const WEIGHTS: &str = "model.safetensors";

fn options(hub: &Hub, cache: &Folder) -> HubOptions {
    HubOptions {
        cache_dir: Some(cache.path().to_path_buf()),
        endpoint: Some(hub.endpoint()),
        offline: Some(false),
        token: Some("secret".to_owned()),
        ..HubOptions::default()
    }
}

fn fetch(hub: &Hub, cache: &Folder) -> Result<PathBuf> {
    resolve(ID, &options(hub, cache))
}

fn weights() -> Vec<u8> {
    safetensors(&encoder(&Shape::default()), &[])
}

fn tiny() -> Hub {
    Hub::new()
        .with("README.md", b"not needed")
        .with("config.json", b"{}")
        .with("tokenizer.json", b"{}")
        .with("pytorch_model.bin", b"not needed")
        .with(WEIGHTS, &weights())
}

fn repo(cache: &Folder) -> PathBuf {
    cache.path().join("models--org--tiny")
}

/// Names of the files in a folder, sorted.
fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn downloads_what_a_model_needs_in_the_cache_layout() {
    let (hub, cache) = (tiny(), Folder::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = {
        let seen = seen.clone();
        move |progress: &quintic::checkpoint::hub::Progress<'_>| {
            let line = (
                progress.file.to_owned(),
                progress.done_bytes,
                progress.total_bytes,
            );
            seen.lock().unwrap().push(line);
        }
    };
    let with_progress = HubOptions {
        progress: Some(Arc::new(progress)),
        ..options(&hub, &cache)
    };
    let snapshot = resolve(ID, &with_progress).unwrap();
    assert_eq!(snapshot, repo(&cache).join("snapshots").join(COMMIT));
    assert_eq!(names(&snapshot), ["config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(
        std::fs::read_to_string(repo(&cache).join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(
        names(repo(&cache).join("blobs"))
            .iter()
            .all(|name| name.starts_with("etag-"))
    );
    let n_bytes = weights().len() as u64;
    assert_eq!(
        seen.lock().unwrap().last().unwrap(),
        &(WEIGHTS.to_owned(), n_bytes, Some(n_bytes))
    );
    let checkpoint = Checkpoint::open(&snapshot, &OpenOptions::default()).unwrap();
    assert_eq!(checkpoint.take("shared.weight").unwrap().to_f32()[1], 1.0);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(snapshot.join("config.json")).unwrap(),
        Path::new("../../blobs/etag-config.json")
    );
    // What is there is used without asking, offline or not.
    let n_requests = hub.requests().len();
    assert_eq!(fetch(&hub, &cache).unwrap(), snapshot);
    let offline = HubOptions {
        offline: Some(true),
        ..options(&hub, &cache)
    };
    assert_eq!(resolve(ID, &offline).unwrap(), snapshot);
    assert_eq!(hub.requests().len(), n_requests);
    // Unless told to: the listing is asked for, and no file is fetched again.
    let refresh = HubOptions {
        refresh: true,
        ..options(&hub, &cache)
    };
    assert_eq!(resolve(ID, &refresh).unwrap(), snapshot);
    assert_eq!(hub.requests().len(), n_requests + 1);
}

#[test]
fn large_files_come_from_a_store_that_never_sees_the_token() {
    let (hub, cache) = (tiny().store(WEIGHTS), Folder::new());
    let snapshot = fetch(&hub, &cache).unwrap();
    assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), weights());
    let (to_store, to_hub): (Vec<_>, Vec<_>) = hub
        .requests()
        .into_iter()
        .partition(|request| request.path.starts_with("/store/"));
    assert_eq!(to_store.len(), 1);
    assert!(
        to_store
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert!(
        to_hub
            .iter()
            .all(|request| request.header("authorization") == Some("Bearer secret"))
    );
}

#[test]
fn a_pipeline_in_subfolders() {
    let hub = Hub::new()
        .with(
            "model_index.json",
            br#"{"text_encoder_3": ["transformers", "T5EncoderModel"]}"#,
        )
        .with("text_encoder/model.safetensors", b"not needed")
        .with("text_encoder_3/config.json", b"{}")
        .with("text_encoder_3/model.fp16.safetensors", &weights())
        .with("text_encoder_3/model.safetensors", b"not needed")
        .with("tokenizer_3/spiece.model", b"")
        .with("tokenizer_3/spiece.model.txt", b"not needed");
    let cache = Folder::new();
    let variant = Some("fp16".to_owned());
    let options = HubOptions {
        variant: variant.clone(),
        ..options(&hub, &cache)
    };
    let snapshot = resolve(ID, &options).unwrap();
    let open = OpenOptions {
        variant,
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open(&snapshot, &open).unwrap();
    assert_eq!(
        checkpoint.path(),
        snapshot.join("text_encoder_3/model.fp16.safetensors")
    );
    assert_eq!(
        checkpoint.tokenizer_folder().unwrap(),
        snapshot.join("tokenizer_3")
    );
    assert_eq!(
        names(&snapshot),
        ["model_index.json", "text_encoder_3", "tokenizer_3"]
    );
    assert_eq!(names(snapshot.join("tokenizer_3")), ["spiece.model"]);
}

#[test]
fn shards_come_with_their_index() {
    let map = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let hub = Hub::new()
        .with("model.safetensors.index.json", map.as_bytes())
        .with("m-1.safetensors", b"1")
        .with("m-2.safetensors", b"2");
    let cache = Folder::new();
    let snapshot = fetch(&hub, &cache).unwrap();
    assert_eq!(names(&snapshot).len(), 3);
    // A shard that goes missing is fetched again.
    std::fs::remove_file(snapshot.join("m-2.safetensors")).unwrap();
    assert_eq!(fetch(&hub, &cache).unwrap(), snapshot);
    assert_eq!(names(&snapshot).len(), 3);
}

#[test]
fn a_broken_connection_is_resumed() {
    let (hub, cache) = (tiny().cut(WEIGHTS, 2), Folder::new());
    let snapshot = fetch(&hub, &cache).unwrap();
    assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), weights());
    let ranges: Vec<_> = hub
        .requests()
        .iter()
        .filter_map(|request| request.header("range").map(str::to_owned))
        .collect();
    let half = weights().len() / 2;
    assert_eq!(ranges[0], format!("bytes={half}-"));
    assert_eq!(ranges.len(), 2);
}

#[test]
fn a_server_that_cannot_resume_is_asked_from_the_start() {
    let (hub, cache) = (tiny().cut(WEIGHTS, 1).without_ranges(), Folder::new());
    let snapshot = fetch(&hub, &cache).unwrap();
    assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn a_download_that_fails_leaves_its_part_to_the_next() {
    let (broken, cache) = (tiny().cut(WEIGHTS, usize::MAX), Folder::new());
    let error = fetch(&broken, &cache).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert!(
        error.message().contains("the download broke off after"),
        "{error}"
    );
    assert!(error.place().unwrap().contains(WEIGHTS), "{error}");
    let part = repo(&cache).join("blobs/etag-model.safetensors.incomplete");
    let done = std::fs::metadata(&part).unwrap().len();
    assert!(done > 0 && done < weights().len() as u64);
    assert!(
        !repo(&cache).join("refs/main").exists(),
        "the reference comes last"
    );
    assert!(
        !repo(&cache)
            .join("snapshots")
            .join(COMMIT)
            .join(WEIGHTS)
            .exists()
    );

    let hub = tiny();
    let snapshot = fetch(&hub, &cache).unwrap();
    assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), weights());
    let resumed = format!("bytes={done}-");
    assert!(
        hub.requests()
            .iter()
            .any(|request| request.header("range") == Some(&resumed))
    );
    assert!(!part.exists());
}

#[test]
fn downloads_beside_each_other_do_not_disturb() {
    let (hub, cache) = (tiny().cut(WEIGHTS, 3), Folder::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let snapshot = fetch(&hub, &cache).unwrap();
                assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), weights());
            });
        }
    });
    let blobs = names(repo(&cache).join("blobs"));
    assert!(
        blobs.iter().all(|name| !name.contains("incomplete")),
        "{blobs:?}"
    );
}

#[test]
fn refusals_say_why() {
    let cache = Folder::new();
    let error = resolve("org/none", &options(&tiny(), &cache)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error
            .message()
            .contains("the hub has no `org/none` at revision `main`"),
        "{error}"
    );
    let revision = Some("v9".to_owned());
    let error = resolve(
        ID,
        &HubOptions {
            revision,
            ..options(&tiny(), &cache)
        },
    )
    .unwrap_err();
    assert!(error.message().contains("revision `v9`"), "{error}");

    let error = fetch(&tiny().status(401), &cache).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert!(
        error.hint_text().unwrap().contains("has the token access"),
        "{error}"
    );
    let error = fetch(&tiny().status(503), &cache).unwrap_err();
    assert!(error.message().contains("status 503"), "{error}");

    let nobody = HubOptions {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        ..options(&tiny(), &cache)
    };
    let error = resolve(ID, &nobody).unwrap_err();
    assert!(
        error.message().contains("the hub cannot be reached"),
        "{error}"
    );
    assert!(!repo(&cache).join("refs").exists());
}

#[test]
fn repositories_without_weights_or_of_another_variant() {
    let cache = Folder::new();
    let hub = Hub::new()
        .with("config.json", b"{}")
        .with("tf_model.h5", b"x");
    let error = fetch(&hub, &cache).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("`tf_model.h5`"), "{error}");
    let variant = Some("bf16".to_owned());
    let error = resolve(
        ID,
        &HubOptions {
            variant,
            ..options(&tiny(), &cache)
        },
    )
    .unwrap_err();
    assert!(
        error.message().contains("no weights of variant `bf16`"),
        "{error}"
    );
}

#[test]
fn a_hub_cannot_write_outside_the_cache() {
    let cache = Folder::new();
    let outer = Folder::new();
    let folder = outer.path().join("cache");
    let hub = Hub::new()
        .with("../config.json", b"{}")
        .with("../model.safetensors", b"x");
    let options = HubOptions {
        subfolder: Some("..".to_owned()),
        cache_dir: Some(folder),
        ..options(&hub, &cache)
    };
    let error = resolve(ID, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert!(
        error
            .message()
            .contains("expected a path inside the repository"),
        "{error}"
    );
    assert_eq!(names(outer.path()), [] as [&str; 0]);

    for etag in ["../../evil", "", ".hidden", "a/b"] {
        let error = fetch(&tiny().etag(etag), &cache).unwrap_err();
        assert!(
            error.message().contains("expected a hash"),
            "{etag}: {error}"
        );
    }
    let error = fetch(&tiny().commit_header("feedfeed"), &cache).unwrap_err();
    assert!(
        error.message().contains("the hub serves commit `feedfeed`"),
        "{error}"
    );
}

#[test]
fn a_reference_with_slashes_is_kept_as_one() {
    let (hub, cache) = (tiny(), Folder::new());
    let revision = Some("refs/pr/3".to_owned());
    let options = HubOptions {
        revision,
        ..options(&hub, &cache)
    };
    resolve(ID, &options).unwrap();
    assert_eq!(
        std::fs::read_to_string(repo(&cache).join("refs/refs/pr/3")).unwrap(),
        COMMIT
    );
    assert!(hub.requests()[0].path.ends_with("/revision/refs%2Fpr%2F3"));
}

#[test]
fn weights_in_the_cache_are_used_when_the_hub_cannot_be_asked_for_the_rest() {
    let (hub, cache) = (Hub::new().with(WEIGHTS, &weights()), Folder::new());
    let snapshot = fetch(&hub, &cache).unwrap();
    let down = Hub::new().status(503);
    assert_eq!(fetch(&down, &cache).unwrap(), snapshot);
    let refresh = HubOptions {
        refresh: true,
        ..options(&down, &cache)
    };
    assert_eq!(
        resolve(ID, &refresh).unwrap_err().kind(),
        ErrorKind::Download
    );
    // What was missing is fetched as soon as there is something to fetch.
    let hub = hub.with("config.json", b"{}");
    fetch(&hub, &cache).unwrap();
    assert_eq!(names(&snapshot), ["config.json", WEIGHTS]);
}
