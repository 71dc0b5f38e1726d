//! Single weight files: encoders alone, under a prefix, under other names.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::*;
use quintic::ErrorKind;
use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile, infer_shape};

const Q0: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

fn tiny() -> Vec<u8> {
    safetensors(&encoder(&Shape::default()), &[])
}

#[test]
fn single_files_bare_and_under_every_known_prefix() {
    for prefix in [
        "",
        "text_encoders.t5xxl.transformer.",
        "text_encoders.pile_t5xl.transformer.",
        "text_encoders.umt5xxl.transformer.",
        "cond_stage_model.transformer.",
    ] {
        let mut tensors = encoder(&Shape {
            prefix,
            ..Shape::default()
        });
        if !prefix.is_empty() {
            tensors.push(ramp("model.diffusion_model.x", &[2], 0.0));
            tensors.push(ramp("text_encoders.clip_l.transformer.y", &[2], 0.0));
        }
        let folder = Folder::new().with("one.safetensors", safetensors(&tensors, &[]));
        let checkpoint = folder.open_file("one.safetensors").unwrap();
        assert_eq!(checkpoint.prefix(), prefix);
        assert_eq!(checkpoint.config_path(), None);
        assert_eq!(checkpoint.names().len(), encoder(&Shape::default()).len());
        assert_eq!(checkpoint.take(Q0).unwrap().name(), Q0);
        assert_eq!(
            checkpoint.entry(Q0).unwrap().name(),
            format!("{prefix}{Q0}")
        );
        assert_eq!(infer_shape(&checkpoint).unwrap().n_layers, 2);
    }
}

#[test]
fn a_file_named_as_in_a_model_folder_takes_the_config_and_tokenizer_beside_it() {
    let folder = Folder::new()
        .with("config.json", b"{}")
        .with("spiece.model", vec![])
        .with("model.safetensors", tiny())
        .with("t5xxl.safetensors", tiny());
    let named = folder.open_file("model.safetensors").unwrap();
    assert!(named.config_path().unwrap().ends_with("config.json"));
    assert!(named.tokenizer_folder().unwrap().is_dir());
    let alone = folder.open_file("t5xxl.safetensors").unwrap();
    assert_eq!(
        (alone.config_path(), alone.tokenizer_folder()),
        (None, None)
    );
}

#[test]
fn two_encoders_in_one_file_must_be_chosen_between() {
    let mut tensors = encoder(&Shape {
        prefix: "a.",
        ..Shape::default()
    });
    tensors.extend(encoder(&Shape {
        prefix: "b.",
        n_layers: 1,
        ..Shape::default()
    }));
    let folder = Folder::new().with("two.safetensors", safetensors(&tensors, &[]));
    let error = folder.open_file("two.safetensors").unwrap_err();
    assert!(
        error.message().ends_with("under the prefixes `a.`, `b.`"),
        "{error}"
    );
    let options = OpenOptions {
        prefix: Some("b.".to_owned()),
        ..OpenOptions::default()
    };
    let chosen = Checkpoint::open(folder.path().join("two.safetensors"), &options).unwrap();
    assert_eq!(infer_shape(&chosen).unwrap().n_layers, 1);
}

#[test]
fn a_single_file_takes_no_variant_or_subfolder() {
    let folder = Folder::new().with("x.safetensors", tiny());
    let path = folder.path().join("x.safetensors");
    for options in [
        OpenOptions {
            variant: Some("fp16".into()),
            ..OpenOptions::default()
        },
        OpenOptions {
            subfolder: Some("a".into()),
            ..OpenOptions::default()
        },
    ] {
        assert_eq!(
            Checkpoint::open(&path, &options).unwrap_err().kind(),
            ErrorKind::Input
        );
    }
    assert_eq!(
        folder
            .with("x.txt", "GGUF")
            .open_file("x.txt")
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn the_embedded_tokenizer_and_the_metadata() {
    let spiece = |name: &str| Stored {
        name: name.to_owned(),
        dtype: "U8",
        shape: vec![3],
        bytes: vec![10, 20, 30],
    };
    for (prefix, name) in [
        ("", "spiece_model"),
        (
            "text_encoders.umt5xxl.transformer.",
            "text_encoders.umt5xxl.transformer.spiece_model",
        ),
        (
            "text_encoders.umt5xxl.transformer.",
            "text_encoders.umt5xxl.spiece_model",
        ),
        ("text_encoders.umt5xxl.transformer.", "spiece_model"),
    ] {
        let mut tensors = encoder(&Shape {
            prefix,
            ..Shape::default()
        });
        tensors.push(spiece(name));
        let bytes = safetensors(&tensors, &[("format", "pt")]);
        let folder = Folder::new().with("x.safetensors", bytes);
        let checkpoint = folder.open_file("x.safetensors").unwrap();
        let found = checkpoint.embedded_tokenizer().unwrap().expect(name);
        assert_eq!(found.bytes(), [10, 20, 30]);
        assert!(checkpoint.metadata().eq([("format", "pt")]));
    }
    let checkpoint = Folder::new()
        .with("model.safetensors", tiny())
        .open()
        .unwrap();
    assert!(checkpoint.embedded_tokenizer().unwrap().is_none());
    let mut tensors = encoder(&Shape::default());
    tensors.push(ramp("spiece_model", &[3], 0.0));
    let folder = Folder::new().with("model.safetensors", safetensors(&tensors, &[]));
    let error = folder.open().unwrap().embedded_tokenizer().unwrap_err();
    assert_eq!(
        error.message(),
        "has shape [3] of f32, expected one extent of u8"
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_rather_than_waited_for() {
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        return; // no mkfifo, no pipe
    }
    assert_eq!(
        folder.open_file("x.safetensors").unwrap_err().kind(),
        ErrorKind::Io
    );
    assert_eq!(
        SafetensorsFile::open(&path).unwrap_err().kind(),
        ErrorKind::Io
    );
}

#[test]
fn the_names_of_the_wan_release_are_turned_into_those_of_transformers() {
    let mut tensors = vec![
        ramp("token_embedding.weight", &[VOCAB, D_MODEL], 1.0),
        ramp("norm.weight", &[D_MODEL], 2.0),
    ];
    let inner = D_KV * HEADS;
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push(ramp(format!("blocks.{layer}.{name}.weight"), shape, 3.0));
        };
        add("norm1", &[D_MODEL]);
        add("norm2", &[D_MODEL]);
        for name in ["attn.q", "attn.k", "attn.v"] {
            add(name, &[inner, D_MODEL]);
        }
        add("attn.o", &[D_MODEL, inner]);
        add("pos_embedding.embedding", &[BUCKETS, HEADS]);
        add("ffn.gate.0", &[D_FF, D_MODEL]);
        add("ffn.fc1", &[D_FF, D_MODEL]);
        add("ffn.fc2", &[D_MODEL, D_FF]);
    }
    let folder = Folder::new().with("wan.safetensors", safetensors(&tensors, &[]));
    let checkpoint = folder.open_file("wan.safetensors").unwrap();
    let q = checkpoint.take(Q0).unwrap();
    assert_eq!((q.name(), q.shape()), (Q0, &[inner, D_MODEL][..]));
    assert_eq!(
        checkpoint.entry(Q0).unwrap().name(),
        "blocks.0.attn.q.weight"
    );
    assert!(
        checkpoint
            .names()
            .all(|name| name == "shared.weight" || name.starts_with("encoder."))
    );
    let shape = infer_shape(&checkpoint).unwrap();
    assert!(shape.has_bias_per_layer && shape.is_gated);
    assert_eq!(
        (shape.n_layers, shape.vocab_size, shape.d_kv),
        (2, VOCAB, D_KV)
    );
}
