//! Damaged and hostile safetensors files and indexes: each has an error of its own, none
//! panics, none makes us allocate what it merely claims.

#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::*;
use quintic::checkpoint::SafetensorsFile;
use quintic::{Error, ErrorKind};

fn safetensors_error(bytes: &[u8]) -> Error {
    let folder = Folder::new();
    let error = SafetensorsFile::open(&folder.write("x.safetensors", bytes)).unwrap_err();
    assert!(error.place().unwrap().contains("x.safetensors"), "{error}");
    error
}

#[track_caller]
fn check_safetensors(bytes: &[u8], expected: &str) {
    let error = safetensors_error(bytes);
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert!(
        error.to_string().contains(expected),
        "found: {error}\nexpected: {expected}"
    );
}

/// A file whose header has these entries, over 16 bytes of data.
#[track_caller]
fn check_entries(entries: &str, expected: &str) {
    check_safetensors(&with_header(&format!("{{{entries}}}"), &[0; 16]), expected);
}

#[test]
fn empty_and_short_files() {
    check_safetensors(b"", "the file is empty");
    check_safetensors(b"\x08\0\0", "the file has 3 bytes, expected at least the 8");
}

#[test]
fn header_lengths_that_lie() {
    let mut bytes = with_header("{}", &[]);
    bytes[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    check_safetensors(
        &bytes,
        "header length is 100000001 bytes, expected at most 100000000",
    );
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    check_safetensors(&bytes, "header length is 18446744073709551615 bytes");
    bytes[..8].copy_from_slice(&99_999_999u64.to_le_bytes());
    check_safetensors(
        &bytes,
        "the header has 99999999 bytes, the file ends after 2 of them",
    );
}

#[test]
fn headers_that_are_no_json_objects() {
    check_safetensors(&with_header("", &[]), "does not start with `{`");
    check_safetensors(&with_header("[1]", &[]), "does not start with `{`");
    check_safetensors(
        &with_header("{\"a\": ", &[]),
        "the header cannot be read: `a`: EOF",
    );
    check_safetensors(&with_header("{}x", &[]), "trailing characters");
    let mut bytes = with_header("{\"aa\": 1}", &[]);
    bytes[10] = 0xFF;
    check_safetensors(&bytes, "the header is not UTF-8");
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    check_safetensors(&with_header(&deep, &[]), "the header cannot be read");
}

#[test]
fn entries_that_lack_or_repeat_something() {
    check_entries(r#""w": 3"#, "`w`: invalid type");
    check_entries(
        r#""w": {"shape": [], "data_offsets": [0, 4]}"#,
        "`w`: missing field `dtype`",
    );
    check_entries(
        r#""w": {"dtype": "F32", "data_offsets": [0, 4]}"#,
        "missing field `shape`",
    );
    check_entries(
        r#""w": {"dtype": "F32", "shape": [1]}"#,
        "missing field `data_offsets`",
    );
    check_entries(
        r#""w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}"#,
        "`w`: invalid value",
    );
    check_entries(
        r#""w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}"#,
        "`w`: ",
    );
    check_entries(
        r#""__metadata__": {"a": 1}"#,
        "`__metadata__`: invalid type",
    );
    let entry = r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    check_entries(
        &format!(r#""w": {entry}, "w": {entry}"#),
        "name `w` appears twice",
    );
    let many = vec!["1"; 1000].join(",");
    check_entries(
        &format!(r#""w": {{"dtype": "F32", "shape": [{many}], "data_offsets": [0, 4]}}"#),
        "more than 32 extents",
    );
}

#[test]
fn unknown_types() {
    check_entries(
        r#""w": {"dtype": "Q4_K", "shape": [4], "data_offsets": [0, 16]}"#,
        "x.safetensors: tensor `w`: unknown element type `Q4_K`",
    );
}

#[test]
fn sizes_and_offsets_that_do_not_fit() {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}"#)
    };
    let one = |dtype, shape, offsets| entry("w", dtype, shape, offsets);
    check_entries(
        &one("F32", "[5]", "[0, 16]"),
        "hold 16 bytes, expected 20 for shape [5] of F32",
    );
    check_entries(
        &one("F32", "[8]", "[0, 32]"),
        "[0, 32] lie outside the data, which has 16 bytes",
    );
    check_entries(
        &one("F32", "[0]", "[18446744073709551615, 18446744073709551615]"),
        "outside the data",
    );
    check_entries(&one("F32", "[1]", "[8, 4]"), "[8, 4] run backwards");
    check_entries(
        &one("F32", "[9223372036854775807, 4]", "[0, 16]"),
        "overflows",
    );
    check_entries(&one("F4", "[3]", "[0, 1]"), "does not fill whole bytes");
    check_entries(
        &one("F32", "[1]", "[0, 4]"),
        "the file has 12 bytes after the last tensor",
    );
    check_entries(
        &format!(
            "{}, {}",
            entry("a", "U8", "[12]", "[0, 12]"),
            entry("b", "U8", "[8]", "[8, 16]")
        ),
        "tensor `b`: the bytes overlap those of tensor `a`",
    );
    check_entries(
        &format!(
            "{}, {}",
            entry("a", "U8", "[4]", "[0, 4]"),
            entry("b", "U8", "[8]", "[8, 16]")
        ),
        "tensor `b`: 4 bytes before the data belong to no tensor",
    );
}

#[test]
fn truncated_bodies() {
    let whole = safetensors(&encoder(&Shape::default()), &[]);
    check_safetensors(&whole[..whole.len() - 1], "lie outside the data");
    let error = safetensors_error(&whole[..whole.len() / 2]);
    assert_eq!(
        error.hint_text(),
        Some("was the download or copy cut short?")
    );
}

#[test]
fn other_formats_under_the_wrong_name() {
    check_safetensors(
        b"version https://git-lfs.github.com/spec/v1\n",
        "Git LFS pointer",
    );
    check_safetensors(b"PK\x03\x04aaaaaaaaaaaaaaa", "a zip archive");
    check_safetensors(b"<!DOCTYPE html><html>", "an HTML page");
    check_safetensors(b"GGUF\x03\0\0\0aaaaaaaaaa", "a GGUF file");
}

/// Opens a folder with this index beside one good shard `s.safetensors`.
fn index_error(index: &str) -> Error {
    let folder = Folder::new()
        .with(
            "s.safetensors",
            safetensors(&[ramp("a", &[1], 0.0), ramp("b", &[1], 0.0)], &[]),
        )
        .with("model.safetensors.index.json", index);
    let error = folder.open().unwrap_err();
    assert!(
        error
            .place()
            .unwrap()
            .contains("model.safetensors.index.json"),
        "{error}"
    );
    error
}

#[test]
fn indexes_that_lie() {
    for (index, expected) in [
        ("", "the index cannot be read"),
        ("{}", "missing field `weight_map`"),
        (
            r#"{"weight_map": {"a": "../s.safetensors"}}"#,
            "`../s.safetensors` is not a plain file name",
        ),
        (
            r#"{"weight_map": {"a": "/etc/passwd"}}"#,
            "`/etc/passwd` is not a plain file name",
        ),
        (
            r#"{"weight_map": {"a": "s.safetensors", "b": "t.safetensors"}}"#,
            "1 of 2 shards are not beside the index: `t.safetensors`",
        ),
        (
            r#"{"weight_map": {"a": "s.safetensors", "b": "s.safetensors", "c": "s.safetensors"}}"#,
            "shard `s.safetensors` does not hold `c` that the index places there",
        ),
        (
            r#"{"weight_map": {"a": "s.safetensors"}}"#,
            "shard `s.safetensors` holds `b` that the index does not place there",
        ),
        (
            r#"{"weight_map": {"a": "s.safetensors", "a": "s.safetensors"}}"#,
            "tensor `a` appears twice",
        ),
        (
            r#"{"weight_map": {"a": "model.safetensors.index.json"}}"#,
            "not a weight file by its name",
        ),
    ] {
        let error = index_error(index);
        assert!(
            error.to_string().contains(expected),
            "found: {error}\nexpected: {expected}"
        );
    }
    let missing = index_error(r#"{"weight_map": {"a": "t.safetensors"}}"#);
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn files_without_an_encoder() {
    let folder = Folder::new().with(
        "model.safetensors",
        safetensors(&[ramp("a", &[1], 0.0)], &[]),
    );
    let error = folder.open().unwrap_err();
    assert!(error.message().contains("no T5 encoder found"), "{error}");
    let folder = Folder::new().with("model.safetensors", with_header("{}", &[]));
    assert!(folder.open().unwrap_err().message().contains("no tensors"));
}
