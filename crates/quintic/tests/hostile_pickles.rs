//! Damaged and hostile PyTorch files: refused with an error of their own, never run.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::*;
use quintic::checkpoint::PytorchFile;
use quintic::{Error, ErrorKind};

fn pytorch_error(bytes: impl AsRef<[u8]>) -> Error {
    let folder = Folder::new();
    let error = PytorchFile::open(&folder.write("x.bin", bytes))
        .err()
        .expect("an error");
    assert!(error.place().unwrap().contains("x.bin"), "{error}");
    error
}

fn torch_file(name: &str) -> Vec<u8> {
    std::fs::read(pytorch_file(name)).unwrap()
}

#[test]
fn pickles_that_would_run_code_are_refused() {
    // The module's name is that of the system it was pickled on.
    for (file, place) in [("evil.bin", "config: "), ("evil_plain.bin", "w: ")] {
        let error = pytorch_error(torch_file(file));
        assert_eq!(error.kind(), ErrorKind::Checkpoint);
        assert!(
            error.message().contains(&format!(
                "other than tensors and plain values: `{place}posix.system`"
            )),
            "{error}"
        );
    }
}

#[test]
fn pytorch_files_that_are_none() {
    for (bytes, expected) in [
        (&b""[..], "the file is empty"),
        (b"hello", "not a PyTorch checkpoint"),
        (b"PK\x03\x04", "cannot be read as a PyTorch file"),
        (b"\x80\x02.", "cannot be read as a PyTorch file"),
        (b"\x80\x02}.", "a plain pickle without tensors"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer",
        ),
    ] {
        let error = pytorch_error(bytes);
        assert!(
            error.message().contains(expected),
            "found: {error}\nexpected: {expected}"
        );
    }
    assert!(
        pytorch_error(torch_file("no_tensors.bin"))
            .message()
            .contains("without tensors")
    );
    let whole = safetensors(&encoder(&Shape::default()), &[]);
    assert!(
        pytorch_error(whole)
            .message()
            .contains("is a safetensors file")
    );
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    assert_eq!(pytorch_error(tar).kind(), ErrorKind::Unsupported);
}

#[test]
fn truncated_archives() {
    for file in ["plain.bin", "legacy.bin"] {
        let whole = torch_file(file);
        for len in [whole.len() / 4, whole.len() / 2, whole.len() - 20] {
            let error = pytorch_error(&whole[..len]);
            assert_eq!(
                error.kind(),
                ErrorKind::Checkpoint,
                "{file} cut to {len}: {error}"
            );
        }
    }
}

/// Replaces the only occurrence of `from` by `to`, of the same length.
fn patched(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at: Vec<_> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    assert_eq!(at.len(), 1, "found at {at:?}");
    bytes[at[0]..at[0] + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn shapes_larger_than_their_storage() {
    // The legacy format has no checksum in the way. Pickled, the embedding's shape (10, 4)
    // is two one-byte integers and a tuple of them.
    let legacy = torch_file("legacy.bin");
    let bytes = patched(legacy, b"K\x0aK\x04\x86", b"K\xc8K\x04\x86");
    let error = pytorch_error(bytes);
    assert!(
        error.message().contains("needs 800 elements, but storage"),
        "{error}"
    );
}

#[test]
fn broadcast_views_cannot_claim_memory() {
    let file = PytorchFile::open(&pytorch_file("broadcast.bin")).unwrap();
    assert_eq!(file.entry("w").unwrap().n_bytes(), 4 << 29);
    let error = file.take("w").unwrap_err();
    assert!(
        error
            .message()
            .contains("takes 2147483648 bytes, the whole file has"),
        "{error}"
    );
}
