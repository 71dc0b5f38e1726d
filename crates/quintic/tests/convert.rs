//! Models in other types and files: every value, every name, and what is in the way.

#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::convert::{
    GgufOptions, GgufWeights, SafetensorsOptions, Written, to_gguf, to_safetensors,
};
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::{
    BackendKind, Compute, DType, Decode, Error, ErrorKind, Result, Seq2Seq, Sources, TextEncoder,
};
use serde_json::Value;
use tempfile::TempDir;

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata")
        .join(path)
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default()).unwrap()
}

fn convert(from: &Checkpoint, options: &SafetensorsOptions, out: &Path) -> Result<Written> {
    let mut told = Vec::new();
    let written = to_safetensors(from, options, out, &mut |done, all| told.push((done, all)))?;
    let (done, all) = *told.last().unwrap();
    assert_eq!(done, all, "the end is told");
    Ok(written)
}

fn of(dtype: DType) -> SafetensorsOptions {
    SafetensorsOptions {
        dtype: Some(dtype),
        ..SafetensorsOptions::default()
    }
}

/// Every tensor of `found` is that of `source`, each value rounded once.
fn check_values(source: &Checkpoint, found: &Checkpoint, dtype: DType) {
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        checkpoint.names().map(str::to_owned).collect()
    };
    assert_eq!(names(source), names(found));
    for name in source.names() {
        let (a, b) = (source.take(name).unwrap(), found.take(name).unwrap());
        assert_eq!((b.dtype(), b.shape()), (dtype, a.shape()), "{name}");
        let expected: Vec<f32> = a
            .to_f32()
            .into_iter()
            .map(|value| match dtype {
                DType::BF16 => bf16::from_f32(value).to_f32(),
                DType::F16 => f16::from_f32(value).to_f32(),
                _ => value,
            })
            .collect();
        assert!(b.to_f32() == expected, "{name}");
    }
}

/// A copy of a golden model whose values need all bits of an f32.
fn f32_model(golden: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = open(testdata(golden));
    let tensors: Vec<_> = source
        .names()
        .map(|name| source.take(name).unwrap())
        .collect();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|tensor| TensorSpec::new(tensor.name(), DType::F32, tensor.shape()))
        .collect();
    let path = folder.path().join("model.safetensors");
    let mut file = SafetensorsWriter::create(&path, &specs, &[]).unwrap();
    for (idx, tensor) in tensors.iter().enumerate() {
        let values = tensor.to_f32();
        let values: Vec<f32> = values
            .iter()
            .enumerate()
            .map(|(i, value)| value * (1.0 + i as f32 * 1e-7) + 1e-5)
            .collect();
        file.append(idx, &values).unwrap();
    }
    file.finish().unwrap();
    let config = testdata(golden).join("config.json");
    std::fs::copy(config, folder.path().join("config.json")).unwrap();
    folder
}

fn logits(folder: &Path) -> Vec<f32> {
    let model =
        Seq2Seq::from_checkpoint(&open(folder), BackendKind::Reference, &Compute::default());
    let decoded = model.unwrap().decode(&Decode {
        sources: Sources::Ids(&[vec![5, 9, 33, 1], vec![7, 1]]),
        rows: &[vec![0, 3], vec![0, 8, 4]],
        targets: None,
        keep_logits: true,
        keep_inner: false,
        interrupted: None,
    });
    decoded.unwrap().logits
}

#[test]
fn every_type_and_both_stacks() {
    let folder = tempfile::tempdir().unwrap();
    let f32_model = f32_model("decoder_goldens/umt5");
    for (at, from) in [
        testdata("decoder_goldens/umt5"),
        f32_model.path().to_owned(),
    ]
    .iter()
    .enumerate()
    {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let source = open(from);
            let out = folder.path().join(format!("{at}-{dtype}"));
            let written = convert(&source, &of(dtype), &out).unwrap();
            check_values(&source, &open(&out), dtype);
            assert_eq!(written.n_saturated, 0);
            assert_eq!(logits(&out).len(), 5 * 64);
            if dtype == DType::F32 {
                assert_eq!(logits(&out), logits(from));
            }
        }
    }
}

#[test]
fn without_a_type_every_tensor_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(testdata("decoder_goldens/t5-v1_0"));
    let out = folder.path().join("out.safetensors");
    convert(&source, &SafetensorsOptions::default(), &out).unwrap();
    let found = open(&out);
    assert_eq!(source.names().len(), found.names().len());
    for (name, entry) in source.entries() {
        let (a, b) = (source.take(name).unwrap(), found.take(name).unwrap());
        assert_eq!(found.entry(name).unwrap().dtype_name(), entry.dtype_name());
        assert_eq!(a.bytes(), b.bytes(), "{name}");
    }
    assert_eq!(found.metadata().collect::<Vec<_>>(), [("format", "pt")]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn shards_are_as_large_as_they_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(testdata("decoder_goldens/t5-v1_1"));
    let out = folder.path().join("out");
    let max = 20_000;
    let options = SafetensorsOptions {
        max_shard_bytes: Some(max),
        ..of(DType::F32)
    };
    let written = convert(&source, &options, &out).unwrap();
    let found = open(&out);
    check_values(&source, &found, DType::F32);
    let index = std::fs::read(out.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], written.tensor_bytes);
    let n_shards = found.weight_files().len();
    assert!(n_shards > 2, "{n_shards}");
    for file in found.weight_files() {
        let size = std::fs::metadata(file).unwrap().len();
        // What the header takes does not count.
        assert!(size < max + 4096, "{}: {size}", file.display());
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            name.ends_with(&format!("-of-{n_shards:05}.safetensors")),
            "{name}"
        );
    }
    // Whoever changes the type of shards reads them like one file.
    let again = folder.path().join("again");
    convert(&found, &of(DType::BF16), &again).unwrap();
    check_values(&source, &open(&again), DType::BF16);
}

#[test]
fn what_makes_a_model_of_the_weights_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    let from = f32_model("decoder_goldens/t5-v1_1");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.path().join("config.json")).unwrap()).unwrap();
    config["torch_dtype"] = "float32".into();
    std::fs::write(from.path().join("config.json"), config.to_string()).unwrap();
    let others = [
        "generation_config.json",
        "tokenizer_config.json",
        "added_tokens.json",
    ];
    for name in others {
        std::fs::write(from.path().join(name), format!("{{\"{name}\": 1}}")).unwrap();
    }
    let out = folder.path().join("out");
    let written = convert(&open(from.path()), &of(DType::BF16), &out).unwrap();
    for name in others {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert_eq!(read(&out), read(from.path()), "{name}");
    }
    let read = std::fs::read(out.join("config.json")).unwrap();
    let read: Value = serde_json::from_slice(&read).unwrap();
    config["torch_dtype"] = "bfloat16".into();
    assert_eq!(read, config);
    let mut files: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut told: Vec<String> = written
        .files
        .iter()
        .map(|f| f.display().to_string())
        .collect();
    told.sort();
    assert_eq!(files, told);
}

/// A single file of an encoder with a tokenizer inside, under a prefix, beside another model.
fn all_in_one(path: &Path, value: f32) {
    let source = open(testdata("goldens/umt5"));
    let prefix = "text_encoders.umt5xxl.transformer.";
    let mut specs = vec![
        TensorSpec::new("vae.weight", DType::F32, &[2]),
        TensorSpec::new(format!("{prefix}spiece_model"), DType::U8, &[3]),
    ];
    let tensors: Vec<_> = source
        .names()
        .map(|name| source.take(name).unwrap())
        .collect();
    for tensor in &tensors {
        let name = format!("{prefix}{}", tensor.name());
        specs.push(TensorSpec::new(name, DType::F32, tensor.shape()));
    }
    let mut file = SafetensorsWriter::create(path, &specs, &[]).unwrap();
    file.append(0, &[1.0, 2.0]).unwrap();
    file.append_bytes(1, &[1, 2, 3]).unwrap();
    for (idx, tensor) in tensors.iter().enumerate() {
        let mut values = tensor.to_f32();
        if tensor.name() == "encoder.block.1.layer.1.DenseReluDense.wo.weight" {
            values[5] = value;
        }
        file.append(idx + 2, &values).unwrap();
    }
    file.finish().unwrap();
}

#[test]
fn of_a_file_of_several_models_the_t5_alone() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("all.safetensors");
    all_in_one(&from, 1.5);
    let source = open(&from);
    let out = folder.path().join("out");
    convert(&source, &of(DType::F16), &out).unwrap();
    assert_eq!(std::fs::read(out.join("spiece.model")).unwrap(), [1, 2, 3]);
    let found = open(&out);
    assert!(!found.contains("spiece_model") && !found.contains("vae.weight"));
    assert_eq!(found.prefix(), "");
    // A config is written for a model that had none, and says the same.
    let load = |checkpoint: &Checkpoint| {
        TextEncoder::from_checkpoint(checkpoint, BackendKind::Reference, &Compute::default())
            .unwrap()
    };
    let (a, b) = (load(&source), load(&found));
    assert_eq!(a.config(), b.config());

    let file = folder.path().join("out.safetensors");
    convert(&source, &of(DType::F16), &file).unwrap();
    let found = open(&file);
    let tokenizer = found.embedded_tokenizer().unwrap().unwrap();
    assert_eq!(tokenizer.bytes(), [1, 2, 3]);
    assert_eq!(found.names().len(), source.names().len());
}

#[test]
fn f16_overflow_is_named_or_saturates() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("all.safetensors");
    all_in_one(&from, -1e5);
    let name = "encoder.block.1.layer.1.DenseReluDense.wo.weight";
    for out in ["out", "out.safetensors"] {
        let out = folder.path().join(out);
        let error = convert(&open(&from), &of(DType::F16), &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        let text = error.to_string();
        let expected = format!("tensor `{name}`: value -100000 at element 5 is beyond");
        assert!(text.contains(&expected), "{text}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing is left"
        );
    }
    let out = folder.path().join("out");
    let options = SafetensorsOptions {
        saturate: true,
        ..of(DType::F16)
    };
    assert_eq!(
        convert(&open(&from), &options, &out).unwrap().n_saturated,
        1
    );
    assert_eq!(open(&out).take(name).unwrap().to_f32()[5], -65504.0);
    // bf16 holds it.
    let out = folder.path().join("bf16");
    convert(&open(&from), &of(DType::BF16), &out).unwrap();
    assert_eq!(open(&out).take(name).unwrap().to_f32()[5], -99840.0);
}

#[test]
fn what_is_in_the_way_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(testdata("goldens/t5-v1_1"));
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "mine").unwrap();
    let error = convert(&source, &of(DType::F16), &out).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);

    let file = folder.path().join("x.safetensors");
    let options = SafetensorsOptions {
        max_shard_bytes: Some(1),
        ..of(DType::F16)
    };
    let error = convert(&source, &options, &file).unwrap_err();
    assert!(error.to_string().contains("expected a folder"), "{error}");
    let error = convert(&source, &of(DType::I64), &file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(!file.exists());
}

fn gguf(from: &Path, options: &GgufOptions<'_>, out: &Path) -> Result<Written> {
    to_gguf(&open(from), options, out, &mut |_, _| {})
}

const Q8_0: GgufOptions<'static> = GgufOptions {
    weights: GgufWeights::Q8_0,
    tokenizer: None,
    saturate: false,
    name: None,
};

/// The package `gguf` reads such files back in `tools/oracle/test_convert.py`.
#[test]
fn a_gguf_file_has_its_names_and_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.gguf");
    let written = gguf(&testdata("decoder_goldens/t5-v1_1"), &Q8_0, &out).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    assert!(bytes.starts_with(b"GGUF\x03\0\0\0"));
    let has = |text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    for name in [
        "t5.decoder_block_count",
        "dec.blk.0.cross_attn_q.weight",
        "output.weight",
    ] {
        assert!(has(name), "{name}");
    }
    // d_ff is 40 and n_heads * d_kv 24, no multiples of 32.
    assert!(
        written
            .not_quantised
            .contains(&"enc.blk.0.ffn_down.weight".to_owned())
    );
    assert!(
        !written
            .not_quantised
            .contains(&"enc.blk.0.ffn_up.weight".to_owned())
    );
    assert!(
        written
            .notes
            .iter()
            .any(|note| note.contains("no tokenizer")),
        "{written:?}"
    );
    let out = folder.path().join("encoder.gguf");
    gguf(&testdata("goldens/mt5"), &Q8_0, &out).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    assert!(
        bytes
            .windows(22)
            .any(|window| window == b"t5encoder.block_count\x04")
    );
}

/// In f32 nothing is lost on the way; blocks are decoded once, and compute the same before and after.
#[test]
fn through_gguf_and_back() {
    let folder = tempfile::tempdir().unwrap();
    for golden in ["decoder_goldens/t5-v1_1", "decoder_goldens/umt5"] {
        let source = f32_model(golden);
        for weights in [GgufWeights::F32, GgufWeights::Q8_0, GgufWeights::Q4_0] {
            let name = format!("{}-{}", golden.replace('/', "-"), weights.name());
            let file = folder.path().join(format!("{name}.gguf"));
            let options = GgufOptions { weights, ..Q8_0 };
            gguf(source.path(), &options, &file).unwrap();
            let back = folder.path().join(&name);
            convert(&open(&file), &of(DType::F32), &back).unwrap();
            check_values(&open(&file), &open(&back), DType::F32);
            if weights == GgufWeights::F32 {
                check_values(&open(source.path()), &open(&back), DType::F32);
            }
            assert_eq!(logits(&file), logits(&back), "{name}");
            let config = std::fs::read(back.join("config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            // The file has no tokenizer that would say otherwise.
            assert_eq!(
                (&config["pad_token_id"], &config["eos_token_id"]),
                (&Value::from(0), &Value::from(1))
            );
        }
    }
}

#[test]
fn what_gguf_cannot_describe_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.gguf");
    let refused = |from: &Path, options: &GgufOptions<'_>| -> Error {
        let error = gguf(from, options, &out).unwrap_err();
        assert!(!out.exists());
        error
    };
    let far = refused(&testdata("decoder_goldens/far-buckets"), &Q8_0);
    assert_eq!(far.kind(), ErrorKind::Unsupported);
    assert!(
        far.to_string()
            .contains("is 100, but in a GGUF file it is 128"),
        "{far}"
    );
    let silu = refused(&testdata("goldens/gated-silu-outliers"), &Q8_0);
    assert!(
        silu.to_string().contains("the activation is `silu`"),
        "{silu}"
    );
    let spiece = testdata("tokenizers/t5/spiece.model");
    let named = GgufOptions {
        tokenizer: Some(&spiece),
        ..Q8_0
    };
    let other = refused(&testdata("decoder_goldens/t5-v1_1"), &named);
    assert_eq!(other.kind(), ErrorKind::Tokenizer);
    assert!(other.to_string().contains("32000 pieces"), "{other}");
    let nothing = GgufOptions {
        tokenizer: Some(folder.path()),
        ..Q8_0
    };
    let missing = refused(&testdata("decoder_goldens/t5-v1_1"), &nothing);
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}
