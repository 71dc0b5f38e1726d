//! Models whose files are sound but do not fit each other: each contradiction has its own
//! error.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::{BackendKind, Compute, DType, ErrorKind, Result, TextEncoder};

const CONFIG: &str = r#"{"model_type":"t5","vocab_size":11,"d_model":4,"d_kv":2,"d_ff":6,
    "num_layers":2,"num_heads":3,"feed_forward_proj":"gated-gelu"}"#;

/// Names and shapes of the model that `CONFIG` describes.
fn tensors() -> Vec<TensorSpec> {
    let mut specs = vec![("shared".to_owned(), vec![11, 4])];
    for layer in 0..2 {
        let mut add = |part: &str, shape: &[usize]| {
            specs.push((
                format!("encoder.block.{layer}.layer.{part}"),
                shape.to_vec(),
            ));
        };
        add("0.layer_norm", &[4]);
        for part in ["q", "k", "v"] {
            add(&format!("0.SelfAttention.{part}"), &[6, 4]);
        }
        add("0.SelfAttention.o", &[4, 6]);
        if layer == 0 {
            add("0.SelfAttention.relative_attention_bias", &[32, 3]);
        }
        add("1.layer_norm", &[4]);
        add("1.DenseReluDense.wi_0", &[6, 4]);
        add("1.DenseReluDense.wi_1", &[6, 4]);
        add("1.DenseReluDense.wo", &[4, 6]);
    }
    specs.push(("encoder.final_layer_norm".to_owned(), vec![4]));
    let spec = |(name, shape): (String, Vec<usize>)| {
        TensorSpec::new(format!("{name}.weight"), DType::F32, &shape)
    };
    specs.into_iter().map(spec).collect()
}

fn write(folder: &Path, config: &str, specs: &[TensorSpec]) {
    std::fs::write(folder.join("config.json"), config).unwrap();
    let path = folder.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, specs, &[]).unwrap();
    for (idx, spec) in specs.iter().enumerate() {
        let n: usize = spec.shape.iter().product();
        match spec.dtype {
            DType::I64 => writer.append_i64(idx, &vec![1; n]).unwrap(),
            _ => writer.append(idx, &vec![0.5; n]).unwrap(),
        }
    }
    writer.finish().unwrap();
}

fn load(config: &str, specs: &[TensorSpec]) -> Result<TextEncoder> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, specs);
    let checkpoint = Checkpoint::open(folder.path(), &OpenOptions::default())?;
    TextEncoder::from_checkpoint(&checkpoint, BackendKind::Reference, &Compute::default())
}

fn error(config: &str, change: impl FnOnce(&mut Vec<TensorSpec>)) -> String {
    let mut specs = tensors();
    change(&mut specs);
    let error = load(config, &specs).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    error.to_string()
}

#[test]
fn the_model_itself_loads_and_reports_what_it_does_not_use() {
    let mut specs = tensors();
    for name in [
        "lm_head.weight",
        "decoder.x.weight",
        "classification_head.weight",
    ] {
        specs.push(TensorSpec::new(name, DType::F32, &[3]));
    }
    let encoder = load(CONFIG, &specs).unwrap();
    let surplus: Vec<&str> = encoder.surplus_tensors().collect();
    assert_eq!(surplus, ["classification_head.weight"]);
}

#[test]
fn all_missing_tensors_are_named_at_once() {
    let text = error(CONFIG, |specs| {
        specs.retain(|spec| !spec.name.contains("block.1.layer.0.SelfAttention"));
    });
    for part in ["q", "k", "v", "o"] {
        let name = format!("encoder.block.1.layer.0.SelfAttention.{part}.weight");
        assert!(text.contains(&name), "{text}");
    }
    assert!(text.contains("4 of the tensors"), "{text}");
    let text = error(CONFIG, |specs| {
        specs.retain(|spec| spec.name != "shared.weight")
    });
    assert!(text.contains("shared.weight"), "{text}");
    let text = error(CONFIG, |specs| {
        specs.retain(|s| !s.name.contains("relative_attention"))
    });
    assert!(
        text.contains("block.0.layer.0.SelfAttention.relative_attention_bias"),
        "{text}"
    );
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let text = error(&CONFIG.replace("\"d_ff\":6", "\"d_ff\":7"), |_| {});
    assert!(
        text.contains("wi_0.weight") && text.contains("[6, 4]"),
        "{text}"
    );
    assert!(text.contains("expected [7, 4]"), "{text}");
}

#[test]
fn a_gate_that_config_and_tensors_disagree_about() {
    let text = error(&CONFIG.replace("gated-gelu", "relu"), |_| {});
    assert!(
        text.contains("two input products, `wi_0` and `wi_1`"),
        "{text}"
    );
    let text = error(CONFIG, |specs| {
        specs.retain(|spec| !spec.name.contains("wi_1"));
        for spec in specs {
            spec.name = spec.name.replace("wi_0", "wi");
        }
    });
    assert!(text.contains("one input product, `wi`"), "{text}");
}

#[test]
fn bias_tables_that_config_and_tensors_disagree_about() {
    let text = error(&CONFIG.replace("\"t5\"", "\"umt5\""), |_| {});
    assert!(
        text.contains("in 1 of 2 encoder layers, expected 2 for `umt5`"),
        "{text}"
    );
    let second = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight";
    let add = |specs: &mut Vec<TensorSpec>| {
        specs.push(TensorSpec::new(second, DType::F32, &[32, 3]));
    };
    let text = error(CONFIG, add);
    assert!(
        text.contains("in 2 of 2 encoder layers, expected 1 for `t5`"),
        "{text}"
    );
    // Stock UMT5 names no family: the tensors decide.
    let mut specs = tensors();
    add(&mut specs);
    assert!(load(&CONFIG.replace("\"model_type\":\"t5\",", ""), &specs).is_ok());
    assert!(load(&CONFIG.replace("\"t5\"", "\"umt5\""), &specs).is_ok());
}

#[test]
fn a_layer_too_many_means_another_models_config() {
    let text = error(
        &CONFIG.replace("\"num_layers\":2", "\"num_layers\":1"),
        |_| {},
    );
    assert!(text.contains("have no place in the model"), "{text}");
    assert!(
        text.contains("encoder.block.1.layer.0.SelfAttention.k.weight"),
        "{text}"
    );
}

#[test]
fn a_weight_that_holds_integers() {
    let text = error(CONFIG, |specs| {
        let weight = specs
            .iter_mut()
            .find(|spec| spec.name.ends_with("0.SelfAttention.q.weight"));
        weight.unwrap().dtype = DType::I64;
    });
    assert!(
        text.contains("is of type i64, expected a weight in a float type or in blocks"),
        "{text}"
    );
}
