//! Packed models: the same bits as the models that were packed, from the map, and an error for
//! whatever is damaged.

#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

use std::path::{Path, PathBuf};

use quintic::backend::cpu::Cpu;
use quintic::backend::reference::Reference;
use quintic::backend::{Backend, Weights};
use quintic::batch::PackedBatch;
use quintic::checkpoint::{Checkpoint, OpenOptions, TensorSource};
use quintic::config::T5Config;
use quintic::model::{Encoder, Product, TakeTensor};
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::synthetic::SyntheticWeights;
use quintic::{
    BackendKind, Compute, ComputeChoice, ComputeType, DType, Error, ErrorKind, Keep, LoadOptions,
    MatmulPrecision, Pass, ProductKind, TextEncoder, WeightType, packed,
};
use quintic_kernels::Isa;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a random model in `plain/`.
struct Model(TempDir);

impl Model {
    fn new(model_type: &str, feed_forward: &str, stored: DType) -> Self {
        let model = Model(tempfile::tempdir().unwrap());
        // Widths that fill no panel of columns and no chunk of depth.
        let config = json!({
            "model_type": model_type, "feed_forward_proj": feed_forward, "vocab_size": 50,
            "d_model": 40, "d_kv": 8, "num_heads": 3, "d_ff": 72, "num_layers": 3,
        });
        let folder = model.path("plain");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let config = T5Config::from_file(&folder.join("config.json")).unwrap();
        write_weights(&folder.join("model.safetensors"), config, stored);
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(self.path(name), &OpenOptions::default()).unwrap()
    }

    fn pack(&self, cpu: &Cpu) {
        let layers = &mut Vec::new();
        let written = packed::write(
            &self.open("plain"),
            cpu,
            &self.path("packed"),
            &mut |done, all| layers.push((done, all)),
        )
        .unwrap();
        assert_eq!(layers.last(), Some(&(3, 3)));
        let size = std::fs::metadata(self.packed_file()).unwrap().len();
        assert_eq!(written.packed_bytes, size);
    }

    fn packed_file(&self) -> PathBuf {
        self.path("packed/model.packed.safetensors")
    }

    fn load(&self, choice: ComputeChoice) -> Result<TextEncoder, Error> {
        let options = LoadOptions {
            compute: choice,
            ..LoadOptions::default()
        };
        TextEncoder::load(self.path("packed").to_str().unwrap(), &options)
    }

    /// Changes header and data of the packed file, and loads it.
    #[track_caller]
    fn damaged(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Error {
        let path = self.packed_file();
        let original = std::fs::read(&path).unwrap();
        let (mut header, mut data) = split(&original);
        change(&mut header, &mut data);
        std::fs::write(&path, join(&header, &data, 64)).unwrap();
        let error = self.load(ComputeChoice::default()).err().unwrap();
        std::fs::write(&path, original).unwrap();
        assert!(self.load(ComputeChoice::default()).is_ok());
        error
    }
}

fn names(config: &T5Config) -> Vec<(String, Vec<usize>)> {
    /// Says what is asked for.
    struct Asked(SyntheticWeights, Vec<(String, Vec<usize>)>);
    impl TakeTensor for Asked {
        fn contains(&self, name: &str) -> bool {
            self.0.contains(name)
        }
        fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> quintic::Result<()> {
            self.1 = wanted.to_vec();
            Ok(())
        }
        fn take(&mut self, name: &str, shape: &[usize]) -> quintic::Result<quintic::Tensor> {
            self.0.take(name, shape)
        }
    }
    let weights = SyntheticWeights::new(config.clone(), DType::F32);
    let mut asked = Asked(weights, Vec::new());
    Encoder::load(Reference, config.clone(), &mut asked).unwrap();
    asked.1
}

fn write_weights(path: &Path, config: T5Config, stored: DType) {
    let names = names(&config);
    let specs: Vec<TensorSpec> = names
        .iter()
        .map(|(name, shape)| TensorSpec::new(name, stored, shape))
        .collect();
    let mut weights = SyntheticWeights::new(config, stored);
    let mut file = SafetensorsWriter::create(path, &specs, &[]).unwrap();
    for (idx, (name, shape)) in names.iter().enumerate() {
        let tensor = weights.take(name, shape).unwrap();
        file.append_bytes(idx, tensor.bytes()).unwrap();
    }
    file.finish().unwrap();
}

fn split(file: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = serde_json::from_slice(&file[8..8 + length]).unwrap();
    (header, file[8 + length..].to_vec())
}

fn join(header: &Value, data: &[u8], alignment: usize) -> Vec<u8> {
    let mut header = header.to_string().into_bytes();
    let end = (8 + header.len()).next_multiple_of(64) + alignment % 64;
    header.resize(end - 8, b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}

fn states(cpu: Cpu, checkpoint: &Checkpoint) -> quintic::Result<Vec<f32>> {
    let config = quintic::config_of(checkpoint)?;
    let mut source = TensorSource::new(checkpoint, "config.json");
    let encoder = Encoder::load(cpu, config, &mut source)?;
    source.finish(|_| false)?;
    let rows = [vec![3, 49, 7, 1], vec![1], (0..37).collect()];
    let batch = PackedBatch::from_rows(&rows, 50)?;
    let states = encoder
        .backend()
        .read_stream(&encoder.encode(&batch, &Pass::default()).unwrap().last)
        .unwrap();
    assert!(states.iter().all(|value| value.is_finite()));
    Ok(states)
}

fn computes() -> Vec<Compute> {
    let mut computes = Vec::new();
    for fold_norm_gains in [false, true] {
        for (dtype, matmul_precision) in [
            (ComputeType::F32, MatmulPrecision::Highest),
            (ComputeType::F32, MatmulPrecision::High),
            (ComputeType::F32, MatmulPrecision::Medium),
            (ComputeType::Bf16, MatmulPrecision::Highest),
            (ComputeType::F16, MatmulPrecision::Highest),
        ] {
            computes.push(Compute {
                dtype,
                matmul_precision,
                fold_norm_gains,
                ..Compute::default()
            });
        }
    }
    for (weights, keep) in [
        (WeightType::Int8, "none"),
        (WeightType::Int4, "qkv"),
        (WeightType::W8A8, "wo"),
    ] {
        for (dtype, matmul_precision) in [
            (ComputeType::F32, MatmulPrecision::Highest),
            (ComputeType::F32, MatmulPrecision::High),
            (ComputeType::Bf16, MatmulPrecision::Highest),
        ] {
            computes.push(Compute {
                dtype,
                matmul_precision,
                weights,
                keep: Keep::parse(keep).unwrap(),
                ..Compute::default()
            });
        }
    }
    computes
}

fn bf16() -> Compute {
    Compute {
        dtype: ComputeType::Bf16,
        ..Compute::default()
    }
}

#[test]
fn a_packed_model_gives_the_same_bits_with_every_instruction_set() {
    for (model_type, feed_forward) in [("t5", "relu"), ("t5", "gated-gelu"), ("umt5", "gated-gelu")]
    {
        for stored in [DType::F32, DType::BF16, DType::F16] {
            let model = Model::new(model_type, feed_forward, stored);
            for compute in computes() {
                let writer = Cpu::new(&compute).unwrap();
                let writer_isa = writer.isa();
                model.pack(&writer);
                for isa in Isa::available() {
                    let cpu = || Cpu::with_isa(isa, &compute).unwrap();
                    let what = format!("{model_type} {feed_forward} {stored} {compute:?} {isa}");
                    let expected = states(cpu(), &model.open("plain")).unwrap();
                    match states(cpu(), &model.open("packed")) {
                        Ok(found) => assert!(found == expected, "{what}"),
                        // Two forms of one precision.
                        Err(error) => {
                            assert_eq!(compute.matmul_precision, MatmulPrecision::High, "{what}");
                            assert_ne!(writer_isa, Some(isa.name()), "{what}: {error}");
                            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                            assert!(
                                error.to_string().contains("precision `high` with"),
                                "{error}"
                            );
                        }
                    }
                }
                std::fs::remove_dir_all(model.path("packed")).unwrap();
            }
        }
    }
}

#[test]
fn packed_weights_stay_in_the_map() {
    let model = Model::new("umt5", "gated-gelu", DType::F32);
    let cpu = Cpu::new(&bf16()).unwrap();
    model.pack(&cpu);
    let checkpoint = model.open("packed");
    let mut source = TensorSource::new(&checkpoint, "config.json");
    for layer in 0..3 {
        for product in Product::ALL {
            let weights = source.take_packed(&product.name(layer)).unwrap();
            let mapped = weights.bytes.bytes().as_ptr_range();
            let matrix = cpu.prepare_matrix(Weights::Packed(weights), None).unwrap();
            assert_eq!(matrix.bytes().as_ptr_range(), mapped);
            assert_eq!(mapped.start as usize % 64, 0);
        }
    }
}

#[test]
fn what_is_left_open_is_as_the_model_was_packed() {
    let model = Model::new("t5", "relu", DType::F32);
    let compute = Compute {
        fold_norm_gains: true,
        ..bf16()
    };
    model.pack(&Cpu::new(&compute).unwrap());
    let encoder = model.load(ComputeChoice::default()).unwrap();
    assert_eq!(*encoder.compute(), compute);
    assert_eq!(encoder.surplus_tensors().count(), 0);
    assert!(model.load(compute.into()).is_ok());
    // A precision says nothing about bf16.
    let choice = ComputeChoice {
        matmul_precision: Some(MatmulPrecision::Medium),
        ..ComputeChoice::default()
    };
    assert!(model.load(choice).is_ok());

    let refused = |choice: ComputeChoice, expected: &str| {
        let error = model.load(choice).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let choice = ComputeChoice {
        dtype: Some(ComputeType::F16),
        ..ComputeChoice::default()
    };
    refused(
        choice,
        "`dtype` is `f16`, but the model is packed for `bf16`",
    );
    let choice = ComputeChoice {
        fold_norm_gains: Some(false),
        ..ComputeChoice::default()
    };
    refused(
        choice,
        "`fold_norm_gains` is `false`, but the model is packed for `true`",
    );
    let choice = ComputeChoice {
        weights: Some(WeightType::Int8),
        ..ComputeChoice::default()
    };
    refused(
        choice,
        "`weights` is `int8`, but the model is packed for `as-stored`",
    );
    // The encoder itself guards what would give other numbers.
    let error = states(Cpu::new(&bf16()).unwrap(), &model.open("packed")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
}

#[test]
fn integers_are_part_of_what_a_model_is_packed_for() {
    let model = Model::new("t5", "relu", DType::F32);
    let compute = Compute {
        weights: WeightType::W8A8,
        keep: Keep::of(&[ProductKind::O]),
        ..bf16()
    };
    model.pack(&Cpu::new(&compute).unwrap());
    for choice in [ComputeChoice::default(), compute.into()] {
        assert_eq!(*model.load(choice).unwrap().compute(), compute);
    }
    for (weights, keep, expected) in [
        (Some(WeightType::AsStored), None, "`weights` is `as-stored`"),
        (Some(WeightType::Int4), None, "`weights` is `int4`"),
        (
            None,
            Some(Keep::default()),
            "`keep` is `none`, but the model is packed for `o`",
        ),
    ] {
        let choice = ComputeChoice {
            weights,
            keep,
            ..ComputeChoice::default()
        };
        let error = model.load(choice).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    for (name, value) in [("quintic.weights", "int3"), ("quintic.keep", "up")] {
        let error = model.damaged(|header, _| header["__metadata__"][name] = json!(value));
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.to_string().contains(value), "{error}");
    }
}

#[test]
fn a_precision_is_part_of_what_f32_is_packed_for() {
    let model = Model::new("t5", "relu", DType::F32);
    let compute = Compute {
        matmul_precision: MatmulPrecision::Medium,
        ..Compute::default()
    };
    model.pack(&Cpu::new(&compute).unwrap());
    let choice = ComputeChoice {
        matmul_precision: Some(MatmulPrecision::Highest),
        ..ComputeChoice::default()
    };
    let error = model.load(choice).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("`matmul_precision` is `highest`, but the model is packed for `medium`"),
        "{error}"
    );
}

#[test]
fn the_reference_refuses_a_packed_model() {
    let model = Model::new("t5", "relu", DType::F32);
    model.pack(&Cpu::new(&bf16()).unwrap());
    let options = LoadOptions {
        backend: BackendKind::Reference,
        ..LoadOptions::default()
    };
    let by_the_way_in = TextEncoder::load(model.path("packed").to_str().unwrap(), &options);
    let checkpoint = model.open("packed");
    let mut source = TensorSource::new(&checkpoint, "config.json");
    let config = quintic::config_of(&checkpoint).unwrap();
    let by_itself = Encoder::load(Reference, config, &mut source);
    for error in [by_the_way_in.err().unwrap(), by_itself.err().unwrap()] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains("the model is packed for"),
            "{error}"
        );
    }
}

#[test]
fn a_weight_file_alone_gets_the_config_that_its_shapes_say() {
    let model = Model::new("umt5", "gated-gelu", DType::BF16);
    std::fs::rename(
        model.path("plain/model.safetensors"),
        model.path("encoder.safetensors"),
    )
    .unwrap();
    let cpu = || Cpu::new(&bf16()).unwrap();
    let alone = model.open("encoder.safetensors");
    packed::write(&alone, &cpu(), &model.path("packed"), &mut |_, _| {}).unwrap();
    assert_eq!(
        states(cpu(), &model.open("packed")).unwrap(),
        states(cpu(), &alone).unwrap()
    );
    std::fs::remove_file(model.path("packed/config.json")).unwrap();
    let error = model.load(ComputeChoice::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(
        error.to_string().contains("needs the config.json"),
        "{error}"
    );
}

#[test]
fn nothing_is_written_where_something_is_or_goes_wrong() {
    let model = Model::new("t5", "relu", DType::F32);
    let cpu = Cpu::new(&bf16()).unwrap();
    let write = |from: &str, to: &str| {
        packed::write(&model.open(from), &cpu, &model.path(to), &mut |_, _| {})
    };
    let error = write("plain", "plain").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    assert!(error.to_string().contains("not empty"), "{error}");
    std::fs::create_dir(model.path("packed")).unwrap();
    write("plain", "packed").unwrap();
    let error = write("packed", "again").unwrap_err();
    assert!(error.to_string().contains("packed already"), "{error}");

    // A weight that f16 cannot hold is found in the middle of writing.
    let path = model.path("plain/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (header, mut data) = split(&bytes);
    let last = &header["encoder.block.2.layer.1.DenseReluDense.wo.weight"]["data_offsets"][0];
    let at = last.as_u64().unwrap() as usize;
    data[at..at + 4].copy_from_slice(&1e6f32.to_le_bytes());
    std::fs::write(&path, join(&header, &data, 64)).unwrap();
    let f16 = Cpu::new(&Compute {
        dtype: ComputeType::F16,
        ..Compute::default()
    })
    .unwrap();
    let plain = model.open("plain");
    let error = packed::write(&plain, &f16, &model.path("f16"), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("f16 cannot hold"), "{error}");
    let mut there: Vec<_> = std::fs::read_dir(model.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    there.sort();
    assert_eq!(there, ["packed", "plain"], "no temporary folder either");
}

#[test]
fn the_files_beside_the_weights_come_along() {
    let model = Model::new("t5", "relu", DType::F32);
    let plain = model.path("plain");
    let write = |name: &str, text: &str| {
        let path = plain.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "tokenizer_config.json",
        r#"{"tokenizer_class": "ByT5Tokenizer"}"#,
    );
    write("special_tokens_map.json", "{}");
    write("README.md", "not the model's");
    let modules = r#"[
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;
    write("modules.json", modules);
    write(
        "1_Pooling/config.json",
        r#"{"pooling_mode_mean_tokens": true}"#,
    );
    model.pack(&Cpu::new(&bf16()).unwrap());
    let there = |name: &str| model.path("packed").join(name).is_file();
    for name in [
        "config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        assert!(there(name), "{name}");
    }
    assert!(!there("README.md"));
    let encoder = model.load(ComputeChoice::default()).unwrap();
    let head = encoder.sentence_head().unwrap().unwrap();
    assert_eq!(head.describe(), "mean, normalize");
}

#[test]
fn damaged_files_are_named() {
    let model = Model::new("t5", "gated-gelu", DType::F32);
    model.pack(&Cpu::new(&bf16()).unwrap());
    let qkv = "encoder.block.1.qkv";
    let metadata = |name: &'static str, value: &'static str| {
        move |header: &mut Value, _: &mut Vec<u8>| {
            header["__metadata__"][name] = json!(value);
        }
    };
    let matrix = |name: &'static str, value: Value| {
        move |header: &mut Value, _: &mut Vec<u8>| {
            let matrices = &mut header["__metadata__"]["quintic.matrices"];
            let mut map: Value = serde_json::from_str(matrices.as_str().unwrap()).unwrap();
            map[qkv][name] = value;
            *matrices = json!(map.to_string());
        }
    };
    let check = |error: Error, kind: ErrorKind, parts: &[&str]| {
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains("model.packed.safetensors"), "{text}");
        for part in parts {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
    };
    use ErrorKind::{Checkpoint as Damaged, Unsupported};

    check(
        model.damaged(|_, data| data.truncate(1000)),
        Damaged,
        &["lie outside the data"],
    );
    check(
        model.damaged(metadata("quintic.packed", "2")),
        Unsupported,
        &["format version `2`", "reads `1`"],
    );
    check(
        model.damaged(metadata("quintic.layout", "panels-of-48/7")),
        Unsupported,
        &["`panels-of-48/7`", quintic_kernels::LAYOUT],
    );
    check(
        model.damaged(metadata("quintic.dtype", "f8")),
        Damaged,
        &["quintic.dtype", "`f8`"],
    );
    check(
        model.damaged(metadata("quintic.matmul_precision", "low")),
        Damaged,
        &["quintic.matmul_precision", "`low`"],
    );
    check(
        model.damaged(metadata("quintic.fold_norm_gains", "perhaps")),
        Damaged,
        &["quintic.fold_norm_gains", "`perhaps`"],
    );
    check(
        model.damaged(metadata("quintic.matrices", "[")),
        Damaged,
        &["quintic.matrices"],
    );
    check(
        model.damaged(|header, _| {
            let metadata = header["__metadata__"].as_object_mut().unwrap();
            metadata.remove("quintic.layout");
        }),
        Damaged,
        &["quintic.layout", "is missing"],
    );
    check(
        model.damaged(matrix("storage", json!("q4"))),
        Damaged,
        &[qkv, "unknown storage `q4`"],
    );
    // Known, but of another size than the bytes; then one whose bytes nothing here reads.
    check(
        model.damaged(matrix("storage", json!("f32"))),
        not_read_or_too_few(&model),
        &[qkv],
    );
    check(
        model.damaged(matrix("columns", json!(73))),
        Damaged,
        &[qkv, "packed as 73 x 40, ungated", "expected 72 x 40"],
    );
    check(
        model.damaged(matrix("depth", json!(u64::MAX))),
        Damaged,
        &[qkv, "expected 72 x 40"],
    );
    check(
        model.damaged(matrix("gated", json!(true))),
        Damaged,
        &[qkv, "72 x 40, gated"],
    );
    check(
        model.damaged(matrix("columns", json!(-1))),
        Damaged,
        &["quintic.matrices"],
    );
    check(
        model.damaged(|header, _| {
            let matrices = &mut header["__metadata__"]["quintic.matrices"];
            let mut map: Value = serde_json::from_str(matrices.as_str().unwrap()).unwrap();
            map.as_object_mut().unwrap().remove(qkv);
            *matrices = json!(map.to_string());
        }),
        Damaged,
        &[qkv, "does not say how it is packed"],
    );
    check(
        model.damaged(|header, _| {
            let header = header.as_object_mut().unwrap();
            let entry = header.remove(qkv).unwrap();
            header.insert("encoder.block.1.vkq".to_owned(), entry);
        }),
        Damaged,
        &["are missing: `encoder.block.1.qkv`"],
    );
    check(
        model.damaged(|header, _| {
            let header = header.as_object_mut().unwrap();
            let entry = header
                .remove("encoder.block.1.layer.0.layer_norm.weight")
                .unwrap();
            header.insert("other".to_owned(), entry);
        }),
        Damaged,
        &["are missing: `encoder.block.1.layer.0.layer_norm.weight`"],
    );
    // Other bytes: half as many of another type, or a part of them.
    check(
        model.damaged(|header, _| {
            let bytes = header[qkv]["shape"][0].as_u64().unwrap();
            header[qkv]["shape"] = json!([bytes / 2]);
            header[qkv]["dtype"] = json!("BF16");
        }),
        Damaged,
        &[qkv, "expected packed bytes in u8"],
    );
    check(
        model.damaged(|header, _| {
            let offsets = header[qkv]["data_offsets"].clone();
            let (begin, end) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
            header[qkv]["data_offsets"] = json!([begin, begin + 64]);
            header[qkv]["shape"] = json!([64]);
            let rest = json!({"dtype": "U8", "shape": [end - begin - 64], "data_offsets": [begin + 64, end]});
            header.as_object_mut().unwrap().insert("rest".to_owned(), rest);
        }),
        Damaged,
        &[qkv, "packed weights have 64 bytes"],
    );
}

/// Products of bf16 that read no f32, or products of f32 that find too few bytes.
fn not_read_or_too_few(model: &Model) -> ErrorKind {
    let encoder = model.load(ComputeChoice::default()).unwrap();
    match encoder.isa() {
        Some("amx" | "avx512bf16") => ErrorKind::Unsupported,
        _ => ErrorKind::Checkpoint,
    }
}

#[test]
fn a_misaligned_file_is_refused() {
    let model = Model::new("t5", "relu", DType::F32);
    model.pack(&Cpu::new(&bf16()).unwrap());
    let (header, data) = split(&std::fs::read(model.packed_file()).unwrap());
    std::fs::write(model.packed_file(), join(&header, &data, 8)).unwrap();
    let error = model.load(ComputeChoice::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert!(
        error.to_string().contains("not aligned to 64 bytes"),
        "{error}"
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let model = Model::new("t5", "relu", DType::F32);
    model.pack(&Cpu::new(&bf16()).unwrap());
    let whole = std::fs::read(model.packed_file()).unwrap();
    for n_bytes in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
        std::fs::write(model.packed_file(), &whole[..n_bytes]).unwrap();
        let error = model.load(ComputeChoice::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{n_bytes}: {error}");
    }
}
