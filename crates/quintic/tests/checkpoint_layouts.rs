//! Every layout that models are published in, as small files in temporary folders.

#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::*;
use quintic::checkpoint::{Checkpoint, Format, OpenOptions, SafetensorsFile};
use quintic::{DType, ErrorKind};

const Q0: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

fn tiny() -> Vec<u8> {
    safetensors(&encoder(&Shape::default()), &[])
}

/// A tiny model whose embedding starts at `mark`, to tell two files apart.
fn marked(mark: f32) -> Vec<u8> {
    let mut tensors = encoder(&Shape::default());
    tensors[0] = ramp("shared.weight", &[VOCAB, D_MODEL], mark);
    safetensors(&tensors, &[])
}

fn mark(checkpoint: &Checkpoint) -> f32 {
    checkpoint.take("shared.weight").unwrap().to_f32()[0]
}

fn torch_file(name: &str) -> Vec<u8> {
    std::fs::read(pytorch_file(name)).unwrap()
}

/// The tiny model in two shards, and an index of this name.
fn sharded(folder: Folder, index: &str) -> Folder {
    let mut first = encoder(&Shape::default());
    let second = first.split_off(4);
    let mut map = serde_json::Map::new();
    for (tensors, file) in [
        (&first, "a-1-of-2.safetensors"),
        (&second, "a-2-of-2.safetensors"),
    ] {
        folder.write(file, safetensors(tensors, &[]));
        map.extend(
            tensors
                .iter()
                .map(|tensor| (tensor.name.clone(), file.into())),
        );
    }
    let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    folder.with(index, text)
}

#[test]
fn a_model_folder() {
    let folder = Folder::new()
        .with("config.json", "{}")
        .with("spiece.model", "")
        .with("model.safetensors", tiny());
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.format(), Format::Safetensors);
    assert_eq!(
        checkpoint.config_path().unwrap(),
        folder.path().join("config.json")
    );
    assert_eq!(checkpoint.tokenizer_folder().unwrap(), folder.path());
    assert_eq!(checkpoint.prefix(), "");
    assert_eq!(checkpoint.weight_files().len(), 1);
    assert!(checkpoint.contains(Q0));
    assert_eq!(checkpoint.names().len(), encoder(&Shape::default()).len());
    let entry = checkpoint.entry(Q0).unwrap();
    assert_eq!(
        (entry.dtype(), entry.dtype_name()),
        (Some(DType::F32), "F32")
    );
    assert_eq!(entry.n_bytes(), 4 * 6 * 8);
    let tensor = checkpoint.take(Q0).unwrap();
    assert_eq!((tensor.name(), tensor.shape()), (Q0, &[6, 8][..]));
    assert_eq!(tensor.to_f32()[..3], [100.0, 101.0, 102.0]);
    // A tensor outlives its checkpoint, and can be taken twice.
    let again = checkpoint.take(Q0).unwrap();
    drop(checkpoint);
    assert_eq!(again.bytes(), tensor.bytes());
}

#[test]
fn a_folder_without_config_or_tokenizer_says_so() {
    let checkpoint = Folder::new()
        .with("model.safetensors", tiny())
        .open()
        .unwrap();
    assert_eq!(
        (checkpoint.config_path(), checkpoint.tokenizer_folder()),
        (None, None)
    );
}

#[test]
fn safetensors_win_over_pytorch() {
    let folder = Folder::new()
        .with("pytorch_model.bin", torch_file("plain.bin"))
        .with("model.safetensors", tiny());
    assert_eq!(folder.open().unwrap().format(), Format::Safetensors);
}

#[test]
fn shards_with_an_index() {
    let folder = sharded(Folder::new(), "model.safetensors.index.json");
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.weight_files().len(), 2);
    assert_eq!(checkpoint.names().len(), encoder(&Shape::default()).len());
    for name in checkpoint.names() {
        assert_eq!(checkpoint.take(name).unwrap().name(), name);
    }
    assert_eq!(
        checkpoint.file_of("shared.weight").unwrap(),
        folder.path().join("a-1-of-2.safetensors")
    );
    // The index by itself is as good as its folder.
    let by_index = folder.open_file("model.safetensors.index.json").unwrap();
    assert!(by_index.names().eq(checkpoint.names()));
}

#[test]
fn variants_in_every_published_spelling() {
    let folder = Folder::new()
        .with("model.safetensors", marked(1.0))
        .with("model.fp16.safetensors", marked(2.0))
        .with("pytorch_model.bf16.bin", torch_file("plain.bin"));
    assert_eq!(mark(&folder.open().unwrap()), 1.0);
    assert_eq!(mark(&folder.open_variant("fp16").unwrap()), 2.0);
    assert_eq!(
        folder.open_variant("bf16").unwrap().format(),
        Format::Pytorch
    );
    for index in [
        "model.safetensors.index.fp16.json",
        "model.fp16.safetensors.index.json",
    ] {
        let folder = sharded(Folder::new(), index);
        assert_eq!(
            folder.open_variant("fp16").unwrap().weight_files().len(),
            2,
            "{index}"
        );
        assert_eq!(folder.open().unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_missing_variant_is_an_error_that_lists_those_there() {
    let folder = Folder::new()
        .with("model.safetensors", tiny())
        .with("model.fp16.safetensors", tiny());
    let error = folder.open_variant("bf16").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.message(),
        "there are no weights of variant `bf16`, the variants there are: the one without a name, `fp16`"
    );
    let folder = Folder::new().with("model.fp16.safetensors", tiny());
    let error = folder.open().unwrap_err();
    assert_eq!(
        error.message(),
        "there are no weights without a variant, the variants there are: `fp16`"
    );
}

#[test]
fn pytorch_folders_whole_and_sharded() {
    let folder = Folder::new().with("pytorch_model.bin", torch_file("plain.bin"));
    let whole = folder.open().unwrap();
    assert_eq!(whole.format(), Format::Pytorch);
    assert_eq!(whole.take(Q0).unwrap().to_f32()[..3], [1.0, 1.5, 2.0]);
    let map: serde_json::Map<_, _> = whole
        .names()
        .map(|name| (name.to_owned(), "p-1-of-1.bin".into()))
        .collect();
    let folder = Folder::new()
        .with("p-1-of-1.bin", torch_file("plain.bin"))
        .with(
            "pytorch_model.bin.index.json",
            serde_json::json!({"weight_map": map}).to_string(),
        );
    assert!(folder.open().unwrap().names().eq(whole.names()));
}

fn pipeline(index: &str) -> Folder {
    Folder::new()
        .with("model_index.json", index)
        .with(
            "text_encoder/config.json",
            r#"{"architectures": ["CLIPTextModel"]}"#,
        )
        .with(
            "text_encoder_2/config.json",
            r#"{"architectures": ["T5EncoderModel"]}"#,
        )
        .with("text_encoder_2/model.safetensors", tiny())
        .with("tokenizer/vocab.json", "{}")
        .with("tokenizer_2/spiece.model", "")
}

const FLUX: &str = r#"{
    "_class_name": "FluxPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"]
}"#;

#[test]
fn a_pipeline() {
    let folder = pipeline(FLUX);
    let checkpoint = folder.open().unwrap();
    assert_eq!(
        checkpoint.path(),
        folder.path().join("text_encoder_2/model.safetensors")
    );
    assert_eq!(
        checkpoint.config_path().unwrap(),
        folder.path().join("text_encoder_2/config.json")
    );
    assert_eq!(
        checkpoint.tokenizer_folder().unwrap(),
        folder.path().join("tokenizer_2")
    );
    // The same by name.
    let subfolder = Some("text_encoder_2".to_owned());
    let options = OpenOptions {
        subfolder,
        ..OpenOptions::default()
    };
    let named = Checkpoint::open(folder.path(), &options).unwrap();
    assert_eq!(named.path(), checkpoint.path());
    assert_eq!(named.tokenizer_folder(), checkpoint.tokenizer_folder());
}

#[test]
fn a_pipeline_without_its_index_is_found_by_the_configs() {
    let folder = pipeline(FLUX);
    std::fs::remove_file(folder.path().join("model_index.json")).unwrap();
    assert_eq!(
        folder.open().unwrap().tokenizer_folder().unwrap(),
        folder.path().join("tokenizer_2")
    );
}

#[test]
fn a_pipeline_without_t5_says_what_it_has() {
    let folder = pipeline(r#"{"text_encoder": ["transformers", "CLIPTextModel"]}"#);
    let error = folder.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.message().contains("`text_encoder: CLIPTextModel`"),
        "{error}"
    );
    assert!(error.place().unwrap().ends_with("model_index.json"));
}

#[test]
fn subfolders_cannot_leave_the_model() {
    let folder = pipeline(FLUX);
    for subfolder in ["..", "../x", "/etc", "a/../../b"] {
        let options = OpenOptions {
            subfolder: Some(subfolder.to_owned()),
            ..OpenOptions::default()
        };
        let error = Checkpoint::open(folder.path(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    }
    let options = OpenOptions {
        subfolder: Some("none".to_owned()),
        ..OpenOptions::default()
    };
    let error = Checkpoint::open(folder.path(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn types_that_cannot_be_loaded_are_listed_but_not_taken() {
    let mut tensors = encoder(&Shape::default());
    for (name, dtype, bytes) in [
        ("fp8", "F8_E8M0", 4),
        ("double", "F64", 32),
        ("four", "F4", 2),
    ] {
        let bytes = vec![0; bytes];
        tensors.push(Stored {
            name: name.into(),
            dtype,
            shape: vec![4],
            bytes,
        });
    }
    let folder = Folder::new().with("model.safetensors", safetensors(&tensors, &[]));
    let checkpoint = folder.open().unwrap();
    let entry = checkpoint.entry("fp8").unwrap();
    assert_eq!(
        (entry.dtype_name(), entry.dtype(), entry.shape()),
        ("F8_E8M0", None, &[4][..])
    );
    let error = checkpoint.take("fp8").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .place()
            .unwrap()
            .ends_with("model.safetensors: tensor `fp8`"),
        "{error}"
    );
    assert!(
        error.message().starts_with(
            "element type `F8_E8M0` cannot be loaded, supported are F32, F16, BF16, F8_E4M3, "
        ),
        "{error}"
    );
}

#[test]
fn files_of_the_reference_writer_are_read() {
    let values: Vec<u8> = (0u8..24).collect();
    let view = |dtype, shape: &[usize], n: usize| {
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &values[..n]).unwrap()
    };
    let tensors = [
        ("a", view(safetensors::Dtype::U8, &[3], 3)),
        ("b", view(safetensors::Dtype::F32, &[2, 3], 24)),
        ("c", view(safetensors::Dtype::BF16, &[0, 5], 0)),
        ("d", view(safetensors::Dtype::I64, &[], 8)),
        ("e", view(safetensors::Dtype::F8_E5M2, &[7], 7)),
    ];
    let bytes = safetensors::serialize(tensors.clone(), None).unwrap();
    let folder = Folder::new();
    let file = SafetensorsFile::open(&folder.write("x.safetensors", bytes)).unwrap();
    for (name, tensor) in &tensors {
        assert_eq!(file.entry(name).unwrap().shape(), tensor.shape());
        if *name != "e" {
            assert_eq!(file.take(name).unwrap().bytes(), tensor.data(), "{name}");
        }
    }
}

#[test]
fn a_component_of_a_pipeline_by_its_own_path() {
    let folder = pipeline(FLUX);
    let checkpoint = Checkpoint::open(
        folder.path().join("text_encoder_2"),
        &OpenOptions::default(),
    )
    .unwrap();
    assert_eq!(
        checkpoint.tokenizer_folder().unwrap(),
        folder.path().join("tokenizer_2")
    );
}
