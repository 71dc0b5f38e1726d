//! What a model builder asks of a checkpoint: tensors with accounts, the model's shape.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::*;
use quintic::checkpoint::{TensorSource, infer_shape};

const Q0: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

fn tiny() -> Vec<u8> {
    safetensors(&encoder(&Shape::default()), &[])
}

#[test]
fn shapes_are_inferred_from_the_tensors() {
    let open = |shape: &Shape| {
        let folder = Folder::new().with("x.safetensors", safetensors(&encoder(shape), &[]));
        infer_shape(&folder.open_file("x.safetensors").unwrap())
    };
    let umt5 = open(&Shape {
        bias_per_layer: true,
        ..Shape::default()
    })
    .unwrap();
    assert_eq!((umt5.d_model, umt5.d_kv, umt5.d_ff), (D_MODEL, D_KV, D_FF));
    assert_eq!(
        (umt5.n_heads, umt5.n_buckets, umt5.vocab_size),
        (HEADS, BUCKETS, VOCAB)
    );
    assert_eq!((umt5.n_layers, umt5.n_decoder_layers), (2, 0));
    assert!(umt5.has_bias_per_layer && umt5.is_gated && !umt5.has_lm_head);
    assert_eq!(
        (umt5.feed_forward_proj(), umt5.max_distance),
        ("gated-gelu", 128)
    );
    let embedding = "encoder.embed_tokens.weight";
    let old = Shape {
        gated: false,
        n_decoder_layers: 3,
        embedding,
        ..Shape::default()
    };
    let old = open(&old).unwrap();
    assert_eq!((old.feed_forward_proj(), old.n_decoder_layers), ("relu", 3));
    assert!(!old.has_bias_per_layer);
    let error = open(&Shape {
        embedding: "other.weight",
        ..Shape::default()
    })
    .unwrap_err();
    assert!(error.message().contains("there is no embedding"), "{error}");
}

#[test]
fn layers_missing_in_between_are_an_error() {
    let mut tensors = encoder(&Shape {
        n_layers: 3,
        ..Shape::default()
    });
    tensors.retain(|tensor| !tensor.name.contains("block.1."));
    let folder = Folder::new().with("x.safetensors", safetensors(&tensors, &[]));
    let error = infer_shape(&folder.open_file("x.safetensors").unwrap()).unwrap_err();
    assert_eq!(
        error.message(),
        "`encoder.block.1` is missing, found `encoder.block.2`"
    );
}

#[test]
fn the_accounts_of_a_source() {
    let folder = Folder::new().with("model.safetensors", tiny());
    let checkpoint = folder.open().unwrap();
    let mut source = TensorSource::new(&checkpoint, "config.json");
    source.take(Q0, &[6, 8]).unwrap();
    assert!(
        source
            .take_optional("lm_head.weight", &[1])
            .unwrap()
            .is_none()
    );
    let error = source
        .take_as("shared.weight", &[9, 8], "[vocab, d_model]")
        .unwrap_err();
    assert_eq!(
        error.message(),
        "has shape [11, 8], expected [9, 8] = [vocab, d_model] from config.json"
    );
    assert!(
        error
            .place()
            .unwrap()
            .ends_with("model.safetensors: tensor `shared.weight`")
    );
    source.take("shared.weight", &[11, 8]).unwrap();
    let ignored = source.finish(|name| name.starts_with("encoder.")).unwrap();
    assert_eq!(ignored.len(), encoder(&Shape::default()).len() - 2);

    let source = TensorSource::new(&checkpoint, "config.json");
    let error = source.finish(|name| !name.contains(".q.")).unwrap_err();
    assert_eq!(
        error.message(),
        "2 tensors have no place in the model that config.json describes: \
         `encoder.block.0.layer.0.SelfAttention.q.weight`, `encoder.block.1.layer.0.SelfAttention.q.weight`"
    );

    let mut source = TensorSource::new(&checkpoint, "config.json");
    let wanted = [
        ("a", vec![1]),
        ("shared.weight", vec![11, 8]),
        ("b", vec![2]),
    ];
    let error = source.require(wanted).unwrap_err();
    assert_eq!(
        error.message(),
        "2 of the tensors that config.json implies are missing: `a`, `b`"
    );
    let mut source = TensorSource::new(&checkpoint, "config.json");
    assert!(
        source
            .take("a", &[1])
            .unwrap_err()
            .place()
            .unwrap()
            .ends_with("tensor `a`")
    );
    assert!(
        source.finish(|_| true).is_err(),
        "a tensor asked for in vain is not forgotten"
    );
    let mut source = TensorSource::new(&checkpoint, "config.json");
    source.require([(Q0, [6, 8])]).unwrap();
    assert!(source.require([(Q0, [8, 6])]).is_err());
}
