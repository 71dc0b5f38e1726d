use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn env_of(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
    move |name| {
        pairs
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.into())
    }
}

fn cache_of(pairs: &'static [(&str, &str)]) -> PathBuf {
    cache_folder(&HubOptions::default(), env_of(pairs)).unwrap()
}

/// A cache with one repository, whose `main` is at [`COMMIT`].
fn cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--google--flan-t5-small");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
    std::fs::write(repo.join("refs/main"), format!("{COMMIT}\n")).unwrap();
    std::fs::write(repo.join("refs/refs/pr/3"), COMMIT).unwrap();
    std::fs::write(repo.join("refs/evil"), "../../..").unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    cache
}

fn look_up(cache: &Path, id: &str, revision: Option<&str>) -> Result<PathBuf> {
    let options = HubOptions {
        cache_dir: Some(cache.to_path_buf()),
        revision: revision.map(str::to_owned),
        offline: Some(true),
        ..HubOptions::default()
    };
    resolve(id, &options)
}

#[test]
fn the_environment_chooses_the_cache_in_order() {
    let home = ("HOME", "/home/a");
    let xdg = ("XDG_CACHE_HOME", "/xdg");
    let hf_home = ("HF_HOME", "/hf");
    let old = ("HUGGINGFACE_HUB_CACHE", "/old");
    let new = ("HF_HUB_CACHE", "~/hub");
    // A slice of each length, from the weakest to the strongest.
    let all: &'static [_] = Box::leak(Box::new([home, xdg, hf_home, old, new]));
    let expected = [
        "/home/a/.cache/huggingface/hub",
        "/xdg/huggingface/hub",
        "/hf/hub",
        "/old",
        "/home/a/hub",
    ];
    for (n, expected) in expected.iter().enumerate() {
        assert_eq!(cache_of(&all[..=n]), Path::new(expected));
    }
    let error = cache_folder(&HubOptions::default(), |_| None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn finds_branches_references_and_commits() {
    let cache = cache();
    let id = "google/flan-t5-small";
    let expected = cache
        .path()
        .join("models--google--flan-t5-small/snapshots")
        .join(COMMIT);
    for revision in [None, Some("main"), Some("refs/pr/3"), Some(COMMIT)] {
        assert_eq!(
            look_up(cache.path(), id, revision).unwrap(),
            expected,
            "{revision:?}"
        );
    }
}

#[test]
fn says_where_it_looked_and_what_is_there() {
    let cache = cache();
    let error = look_up(cache.path(), "google/flan-t5-large", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.message().contains("models--google--flan-t5-large"),
        "{error}"
    );
    assert!(
        error
            .hint_text()
            .unwrap()
            .contains("`hf download google/flan-t5-large`")
    );
    let error = look_up(cache.path(), "google/flan-t5-small", Some("v2")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("revision `v2`"), "{error}");
    assert!(error.message().contains("`main`"), "{error}");
}

#[test]
fn revisions_and_references_cannot_leave_the_cache() {
    let cache = cache();
    for revision in ["../../x", "/etc", "", "a/../../b", "a\\b"] {
        let error = look_up(cache.path(), "google/flan-t5-small", Some(revision)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{revision}: {error}");
    }
    let error = look_up(cache.path(), "google/flan-t5-small", Some("evil")).unwrap_err();
    assert!(error.message().contains("expected a commit"), "{error}");
}

#[test]
fn an_existing_path_wins_and_a_missing_one_is_no_repository() {
    let cache = cache();
    let here = cache.path().to_str().unwrap();
    assert_eq!(resolve(here, &HubOptions::default()).unwrap(), cache.path());
    for path in [
        "./nothing",
        "/nothing/here",
        "a/b/c",
        "nothing.safetensors",
        "google/x.bin",
        "nothing/",
    ] {
        let error = look_up(cache.path(), path, None).unwrap_err();
        assert_eq!(error.message(), "there is no such file or folder", "{path}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    for text in ["", "a b", "-x/y", "a--b", "x..y", "ü/x"] {
        let error = look_up(cache.path(), text, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{text}: {error}");
    }
    assert!(RepoId::parse("t5-small").is_ok());
    assert!(RepoId::parse("EleutherAI/pile-t5-base").is_ok());
}

#[test]
fn the_token_is_not_shown() {
    let options = HubOptions {
        token: Some("hf_secret".into()),
        ..HubOptions::default()
    };
    assert!(!format!("{options:?}").contains("secret"));
}

#[test]
fn the_environment_can_forbid_downloads() {
    let is_off = |value: &'static str| {
        is_offline(&HubOptions::default(), &|name: &str| {
            (name == "HF_HUB_OFFLINE").then(|| value.into())
        })
    };
    for value in ["1", "true", "YES", "On"] {
        assert!(is_off(value), "{value}");
    }
    for value in ["0", "false", "no"] {
        assert_eq!(is_off(value), cfg!(not(feature = "hub")), "{value}");
    }
    let options = HubOptions {
        offline: Some(true),
        ..HubOptions::default()
    };
    assert!(is_offline(&options, &|_: &str| None));
}
