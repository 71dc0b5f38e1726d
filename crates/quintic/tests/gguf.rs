//! Models in GGUF files: the same numbers as the same weights in safetensors, and what is refused.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

#[path = "gguf_support/blocks.rs"]
mod blocks;
mod checkpoint_support;
mod common;
mod gguf_support;

use std::path::{Path, PathBuf};

use blocks::{Random, id, random_blocks};
use checkpoint_support::{Folder, Stored, safetensors};
use gguf_support::{Gguf, Meta};
use quintic::batch::PackedBatch;
use quintic::checkpoint::{Checkpoint, Format, OpenOptions};
use quintic::generate::GenerateOptions;
use quintic::{
    BackendKind, BlockType, ComputeChoice, ComputeType, ErrorKind, LoadOptions, Seq2Seq, Sources,
    TextEncoder, config_of,
};

const BACKENDS: [BackendKind; 2] = [BackendKind::Reference, BackendKind::Cpu];

fn options(backend: BackendKind) -> LoadOptions {
    LoadOptions {
        backend,
        ..LoadOptions::default()
    }
}

fn states(path: &Path, options: &LoadOptions) -> Vec<f32> {
    let encoder = TextEncoder::load(path.to_str().unwrap(), options).unwrap();
    let rows: Vec<Vec<u32>> = vec![
        vec![4, 5, 6, 7, 1],
        vec![1],
        (0..39).map(|n| n * 7 % 40).collect(),
    ];
    let batch = PackedBatch::from_rows(&rows, encoder.config().vocab_size).unwrap();
    encoder.hidden_states(&batch, false).unwrap().last
}

fn golden(name: &str) -> PathBuf {
    common::root().join("testdata/gguf").join(name)
}

/// Equal to the last bit, and not because nothing was computed.
fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert!(expected.iter().all(|x| x.is_finite()), "{what}");
    assert!(expected.iter().any(|&x| x != 0.0), "{what}");
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(found), bits(expected), "{what}");
}

#[test]
fn models_written_by_the_reference_package_compute_what_their_values_say() {
    for name in ["umt5", "t5"] {
        let folder = golden(name);
        let file = folder.join("model.gguf");
        for backend in BACKENDS {
            let options = options(backend);
            assert_same(
                &states(&file, &options),
                &states(&folder, &options),
                &format!("{name} {}", backend.name()),
            );
        }
        let open = |path: &Path| Checkpoint::open(path, &OpenOptions::default()).unwrap();
        let checkpoint = open(&file);
        assert_eq!(checkpoint.format(), Format::Gguf);
        assert!(checkpoint.names().eq(open(&folder).names()));
        let (found, expected) = (
            config_of(&checkpoint).unwrap(),
            config_of(&open(&folder)).unwrap(),
        );
        assert_eq!(found, expected, "{name}");
        let tokenizer = checkpoint.tokenizer().unwrap().unwrap();
        assert_eq!(tokenizer.encode("ab b", true).unwrap(), [6, 3, 5, 1]);
        // The eight pieces that are no filling; there is no room for sentinels above them.
        assert_eq!(tokenizer.vocab_size(), 8);
        assert_eq!(checkpoint.warnings().unwrap().len(), 1);
    }
}

#[test]
fn decoders_generate_the_same_tokens() {
    let sources = [vec![4, 5, 6, 7, 1], vec![9, 8, 1]];
    for backend in BACKENDS {
        let generate = |path: PathBuf| {
            let model = Seq2Seq::load(path.to_str().unwrap(), &options(backend)).unwrap();
            assert!(model.is_tied());
            let mut config = model.generation_config().unwrap();
            let chosen = serde_json::json!({ "max_new_tokens": 12, "min_new_tokens": 12 });
            config.choose(chosen.as_object().unwrap()).unwrap();
            let found = model
                .generate(Sources::Ids(&sources), &config, &GenerateOptions::default())
                .unwrap();
            let tokens = |row: usize| found[row][0].new_tokens().to_vec();
            [tokens(0), tokens(1)]
        };
        let expected = generate(golden("t5"));
        assert_eq!(expected[0].len(), 12);
        assert_eq!(generate(golden("t5").join("model.gguf")), expected);
    }
}

/// Extents of a model whose rows are whole blocks of every type.
const D_MODEL: usize = 256;
const VOCAB: usize = 40;
const LAYERS: usize = 2;
const BUCKETS: usize = 8;
const HEADS: usize = 4;
const D_KV: usize = 64;
const D_FF: usize = 512;

/// GGUF and transformers' names and the shape of every tensor.
fn tensors(gated: bool, bias_per_layer: bool) -> Vec<(String, String, Vec<usize>)> {
    let mut all = vec![
        ("token_embd".into(), "shared".into(), vec![VOCAB, D_MODEL]),
        (
            "enc.output_norm".into(),
            "encoder.final_layer_norm".into(),
            vec![D_MODEL],
        ),
    ];
    for layer in 0..LAYERS {
        let mut add = |theirs: &str, ours: &str, shape: &[usize]| {
            all.push((
                format!("enc.blk.{layer}.{theirs}"),
                format!("encoder.block.{layer}.layer.{ours}"),
                shape.to_vec(),
            ));
        };
        add("attn_norm", "0.layer_norm", &[D_MODEL]);
        for part in ["q", "k", "v", "o"] {
            add(
                &format!("attn_{part}"),
                &format!("0.SelfAttention.{part}"),
                &[D_MODEL, D_MODEL],
            );
        }
        if layer == 0 || bias_per_layer {
            add(
                "attn_rel_b",
                "0.SelfAttention.relative_attention_bias",
                &[BUCKETS, HEADS],
            );
        }
        add("ffn_norm", "1.layer_norm", &[D_MODEL]);
        if gated {
            add("ffn_gate", "1.DenseReluDense.wi_0", &[D_FF, D_MODEL]);
        }
        let up = if gated {
            "1.DenseReluDense.wi_1"
        } else {
            "1.DenseReluDense.wi"
        };
        add("ffn_up", up, &[D_FF, D_MODEL]);
        add("ffn_down", "1.DenseReluDense.wo", &[D_MODEL, D_FF]);
    }
    all
}

fn metadata(architecture: &str) -> Gguf {
    let key = |name: &str| format!("{architecture}.{name}");
    Gguf::new(architecture)
        .with(&key("embedding_length"), Meta::U32(D_MODEL as u32))
        .with(&key("feed_forward_length"), Meta::U32(D_FF as u32))
        .with(&key("block_count"), Meta::U32(LAYERS as u32))
        .with(&key("attention.head_count"), Meta::U32(HEADS as u32))
        .with(&key("attention.key_length"), Meta::U32(D_KV as u32))
        .with(&key("attention.value_length"), Meta::U32(D_KV as u32))
        .with(
            &key("attention.relative_buckets_count"),
            Meta::U32(BUCKETS as u32),
        )
        .with(&key("attention.layer_norm_rms_epsilon"), Meta::F32(1e-6))
}

/// How the matrices of a model are stored.
#[derive(Clone, Copy, Debug)]
enum Kind {
    F32,
    F16,
    Bf16,
    Blocks(BlockType),
}

/// GGML's number, the safetensors name, the bytes for GGUF, those for safetensors.
fn values(kind: Kind, n: usize, random: &mut Random) -> (u32, &'static str, Vec<u8>, Vec<u8>) {
    let mut floats = || (0..n).map(|_| random.value() / 8.0).collect::<Vec<f32>>();
    let f32_bytes = |values: Vec<f32>| {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes);
        bytes.collect::<Vec<u8>>()
    };
    match kind {
        Kind::F32 => {
            let bytes = f32_bytes(floats());
            (0, "F32", bytes.clone(), bytes)
        }
        Kind::F16 => {
            let bytes: Vec<u8> = floats()
                .into_iter()
                .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
                .collect();
            (1, "F16", bytes.clone(), bytes)
        }
        Kind::Bf16 => {
            let bytes: Vec<u8> = floats()
                .into_iter()
                .flat_map(|x| half::bf16::from_f32(x).to_le_bytes())
                .collect();
            (30, "BF16", bytes.clone(), bytes)
        }
        Kind::Blocks(kind) => {
            let blocks = random_blocks(kind, n, random);
            let mut values = vec![0.0; n];
            kind.decode(&blocks, &mut values);
            (id(kind), "F32", blocks, f32_bytes(values))
        }
    }
}

/// The same model in both formats; matrix `i` is stored as `kinds[i % n]`.
fn models(kinds: &[Kind], gated: bool, bias_per_layer: bool) -> Folder {
    let mut random = Random::new(kinds.len() as u64 + 7);
    let (mut gguf, mut plain) = (metadata("t5encoder"), Vec::new());
    for (idx, (theirs, ours, shape)) in tensors(gated, bias_per_layer).into_iter().enumerate() {
        let is_matrix = shape.len() == 2 && !theirs.ends_with("rel_b");
        let kind = if is_matrix {
            kinds[idx % kinds.len()]
        } else {
            Kind::F32
        };
        let n = shape.iter().product();
        let (id, dtype, blocks, bytes) = values(kind, n, &mut random);
        gguf = gguf.tensor(&format!("{theirs}.weight"), id, &shape, blocks);
        plain.push(Stored {
            name: format!("{ours}.weight"),
            dtype,
            shape,
            bytes,
        });
    }
    Folder::new()
        .with("m.gguf", gguf.bytes())
        .with("m.safetensors", safetensors(&plain, &[]))
}

fn check_same(folder: &Folder, what: &str) {
    let mut all: Vec<LoadOptions> = BACKENDS.into_iter().map(options).collect();
    all.push(LoadOptions {
        compute: ComputeChoice {
            dtype: Some(ComputeType::Bf16),
            ..ComputeChoice::default()
        },
        ..options(BackendKind::Cpu)
    });
    all.push(LoadOptions {
        compute: ComputeChoice {
            fold_norm_gains: Some(true),
            ..ComputeChoice::default()
        },
        ..options(BackendKind::Cpu)
    });
    for options in all {
        let of = |name: &str| states(&folder.path().join(name), &options);
        let what = format!("{what} {} {:?}", options.backend.name(), options.compute);
        assert_same(&of("m.gguf"), &of("m.safetensors"), &what);
    }
}

#[test]
fn plain_types_compute_the_same_as_in_safetensors() {
    for kind in [Kind::F32, Kind::F16, Kind::Bf16] {
        check_same(&models(&[kind], true, false), &format!("{kind:?}"));
    }
    check_same(
        &models(&[Kind::F32, Kind::F16, Kind::Bf16], false, true),
        "mixed",
    );
}

#[test]
fn blocks_compute_the_same_as_their_values_in_f32() {
    for kind in BlockType::ALL {
        let gated = kind.values() == 256;
        check_same(&models(&[Kind::Blocks(kind)], gated, !gated), kind.name());
    }
    // As llama.cpp mixes them: q, k and v are one product.
    let mixed = [
        Kind::Blocks(BlockType::Q4_K),
        Kind::Blocks(BlockType::Q6_K),
        Kind::F16,
        Kind::Blocks(BlockType::Q8_0),
        Kind::F32,
    ];
    check_same(&models(&mixed, true, false), "mixed blocks");
}

#[test]
fn the_tokenizer_in_the_metadata_is_the_model_that_it_was_taken_from() {
    let spiece = std::fs::read(common::data("t5/spiece.model")).unwrap();
    let (mut tokens, mut scores, mut kinds, mut charsmap) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, value) in common::fields(&spiece) {
        if number == 1 {
            let (mut text, mut score) = (String::new(), 0.0);
            for (number, value) in common::fields(value) {
                match number {
                    1 => text = String::from_utf8(value.to_vec()).unwrap(),
                    _ => score = f32::from_le_bytes(value.try_into().unwrap()),
                }
            }
            kinds.push(match text.as_str() {
                "<pad>" | "</s>" => 3,
                "<unk>" => 2,
                _ => 1,
            });
            tokens.push(text);
            scores.push(score);
        } else if number == 3 {
            for (number, value) in common::fields(value) {
                if number == 2 {
                    charsmap = value.to_vec();
                }
            }
        }
    }
    let n_pieces = tokens.len();
    assert_eq!(n_pieces, 32000);
    let with = |tokens: &[String], scores: &[f32], kinds: &[i32], charsmap: &[u8]| {
        let gguf = metadata("t5encoder")
            .with("tokenizer.ggml.model", Meta::Text("t5".into()))
            .with("tokenizer.ggml.tokens", Meta::Texts(tokens.to_vec()))
            .with("tokenizer.ggml.scores", Meta::Floats(scores.to_vec()))
            .with("tokenizer.ggml.token_type", Meta::Ints(kinds.to_vec()))
            .with(
                "tokenizer.ggml.precompiled_charsmap",
                Meta::Bytes(charsmap.to_vec()),
            )
            .with("tokenizer.ggml.add_eos_token", Meta::Bool(true));
        let folder = Folder::new().with("m.gguf", gguf.bytes());
        let checkpoint = folder.open_file("m.gguf").unwrap();
        let warnings = checkpoint.warnings().unwrap();
        (checkpoint.tokenizer(), warnings)
    };
    // Filled up with nothing but padding, and with the sentinels of added_tokens.json.
    for has_sentinels in [false, true] {
        for id in n_pieces..32128 {
            let sentinel = has_sentinels && id < 32100;
            tokens.push(match sentinel {
                true => format!("<extra_id_{}>", 32099 - id),
                false => format!("[PAD{id}]"),
            });
            scores.push(if sentinel { -1000.0 } else { -10000.0 });
            kinds.push(if sentinel { 4 } else { 5 });
        }
        let (tokenizer, warnings) = with(&tokens, &scores, &kinds, &charsmap);
        let tokenizer = tokenizer.unwrap().unwrap();
        common::check_ids("t5_slow_legacy", &tokenizer);
        assert_eq!(tokenizer.vocab_size(), 32100);
        assert_eq!(warnings, [] as [String; 0]);
        tokens.truncate(n_pieces);
        scores.truncate(n_pieces);
        kinds.truncate(n_pieces);
    }
    let (tokenizer, warnings) = with(&tokens, &scores, &kinds, &[]);
    assert!(!tokenizer.unwrap().unwrap().describe().contains("charsmap"));
    assert!(warnings[0].contains("precompiled_charsmap"), "{warnings:?}");
    for (wrong, kind) in [
        (
            with(&tokens, &scores[1..], &kinds, &charsmap).0,
            ErrorKind::Checkpoint,
        ),
        (
            with(&tokens, &scores, &[&[9], &kinds[1..]].concat(), &charsmap).0,
            ErrorKind::Tokenizer,
        ),
        (
            with(&tokens, &scores, &kinds, &[1, 2]).0,
            ErrorKind::Tokenizer,
        ),
    ] {
        let error = wrong.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("m.gguf"), "{error}");
    }
}

/// The error of a file, which must name it.
fn refused(bytes: &[u8], kind: ErrorKind, parts: &[&str]) {
    let folder = Folder::new().with("m.gguf", bytes);
    let path = folder.path().join("m.gguf");
    let error = TextEncoder::load(path.to_str().unwrap(), &LoadOptions::default())
        .err()
        .unwrap();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for part in parts.iter().chain([&"m.gguf"]) {
        assert!(text.contains(part), "{text:?} does not contain {part:?}");
    }
}

fn file() -> Gguf {
    let mut random = Random::new(3);
    let mut gguf = metadata("t5encoder");
    for (theirs, _, shape) in tensors(true, false) {
        let (id, _, bytes, _) = values(Kind::F32, shape.iter().product(), &mut random);
        gguf = gguf.tensor(&format!("{theirs}.weight"), id, &shape, bytes);
    }
    gguf
}

#[test]
fn models_that_are_no_t5_or_contradict_themselves_are_refused() {
    use ErrorKind::{Checkpoint, Unsupported};
    let architecture = "general.architecture";
    let text = |text: &str| Meta::Text(text.into());
    let loads = Folder::new().with("m.gguf", file().bytes());
    assert_eq!(
        states(&loads.path().join("m.gguf"), &options(BackendKind::Cpu)).len(),
        45 * 256
    );
    for (gguf, kind, parts) in [
        (
            file().without(architecture),
            Checkpoint,
            &["general.architecture", "`t5encoder`"][..],
        ),
        (
            file().with(architecture, text("pig")),
            Unsupported,
            &["found `pig`"],
        ),
        (
            file().with(architecture, Meta::U32(1)),
            Checkpoint,
            &["found u32, expected a text"],
        ),
        (
            file().with("t5encoder.block_count", Meta::U32(3)),
            Checkpoint,
            &[
                "t5encoder.block_count",
                "found 3, expected 2 from the tensors",
            ],
        ),
        (
            file().with("t5encoder.attention.key_length", Meta::U64(1 << 40)),
            Checkpoint,
            &["key_length", "expected 64"],
        ),
        (
            file().with(
                "t5encoder.attention.layer_norm_rms_epsilon",
                Meta::F32(f32::NAN),
            ),
            Checkpoint,
            &["epsilon", "finite"],
        ),
        (
            file().with("split.count", Meta::U32(2)),
            Unsupported,
            &["one of 2 parts"],
        ),
        (
            file().with("general.alignment", Meta::U32(24)),
            Checkpoint,
            &["power of two"],
        ),
        (
            file().with("general.alignment", Meta::U32(0)),
            Checkpoint,
            &["power of two"],
        ),
        (
            Gguf {
                version: 1,
                ..file()
            },
            Unsupported,
            &["GGUF version 1"],
        ),
        (
            Gguf {
                version: 3 << 24,
                ..file()
            },
            Unsupported,
            &["big-endian"],
        ),
        (
            Gguf {
                tensors: file().tensors[1..].to_vec(),
                ..file()
            },
            Checkpoint,
            &["there is no embedding"],
        ),
    ] {
        refused(&gguf.bytes(), kind, parts);
    }
    let mut twice = file();
    twice.tensors[3].name = twice.tensors[2].name.clone();
    refused(&twice.bytes(), Checkpoint, &["appears twice"]);
    let mut twice = file();
    twice.meta.push(twice.meta[1].clone());
    refused(&twice.bytes(), Checkpoint, &["appears twice"]);
    let mut other = file();
    other.tensors[3].kind = 16;
    other.tensors[3].bytes = vec![0; 256 * 66];
    refused(
        &other.bytes(),
        Unsupported,
        &["IQ2_XXS", "cannot be loaded", "Q4_K"],
    );
    other.tensors[3].kind = 4;
    refused(&other.bytes(), Checkpoint, &["unknown element type 4"]);
}

#[test]
fn hostile_headers_are_refused_before_they_size_anything() {
    use ErrorKind::{Checkpoint, Input, Unsupported};
    let whole = file().bytes();
    // Every claimed number in turn made huge, without the bytes behind it.
    let start = |tensors: u64, keys: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes
    };
    let key = |kind: u32, rest: &[u64]| {
        let mut bytes = start(0, 1);
        bytes.extend(1u64.to_le_bytes());
        bytes.push(b'k');
        bytes.extend(kind.to_le_bytes());
        if kind == 9 {
            bytes.extend((rest[0] as u32).to_le_bytes());
        }
        for number in &rest[usize::from(kind == 9)..] {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    };
    for (bytes, kind, part) in [
        (b"GGU".to_vec(), Checkpoint, "does not start with `GGUF`"),
        (b"GGUF".to_vec(), Checkpoint, "the version"),
        (start(0, 0)[..20].to_vec(), Checkpoint, "the number of keys"),
        (
            start(u64::MAX, 0),
            Checkpoint,
            "claims 18446744073709551615 tensors",
        ),
        (
            start(0, u64::MAX),
            Checkpoint,
            "claims 18446744073709551615 keys",
        ),
        (start(0, 1), Checkpoint, "a key takes 8 bytes"),
        (
            key(8, &[u64::MAX]),
            Checkpoint,
            "the text takes 18446744073709551615 bytes",
        ),
        (key(9, &[8, u64::MAX]), Checkpoint, "a text of the list"),
        (key(9, &[6, u64::MAX]), Checkpoint, "the list takes"),
        (key(9, &[6, 1 << 62]), Checkpoint, "the list takes"),
        (key(9, &[9, 1]), Unsupported, "a list of lists"),
        (key(9, &[77, 1]), Checkpoint, "unknown type 77"),
        (key(77, &[]), Checkpoint, "unknown type 77"),
        (key(7, &[2]), Checkpoint, "expected a bool"),
        (start(1, 0), Checkpoint, "the name of a tensor"),
        (
            whole[..whole.len() - 1].to_vec(),
            Checkpoint,
            "was the download or copy cut short",
        ),
        (
            b"version https://git-lfs".to_vec(),
            Checkpoint,
            "Git LFS pointer",
        ),
    ] {
        refused(&bytes, kind, &[part]);
    }
    let one = |shape: &[u64], kind: u32, offset: u64| {
        let mut gguf = Gguf::new("t5");
        gguf.tensors.push(gguf_support::Stored {
            name: "t".into(),
            shape: shape.to_vec(),
            kind,
            bytes: Vec::new(),
        });
        let mut bytes = gguf.header(&[offset]);
        bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
        bytes
    };
    for (bytes, part) in [
        (one(&[1 << 33, 1 << 33], 0, 0), "overflows"),
        (one(&[u64::MAX], 0, 0), "overflows"),
        (one(&[16, 33], 8, 0), "no whole blocks of 32 values"),
        (one(&[2, 2, 2, 2, 2], 0, 0), "has 5 extents"),
        (one(&[4], 0, 16), "expected a multiple of 32"),
        (one(&[4], 0, 1 << 63), "needs 16 bytes"),
        (one(&[4], 0, 0u64.wrapping_sub(32)), "needs 16 bytes"),
        (one(&[17], 0, 0), "needs 68 bytes"),
    ] {
        refused(&bytes, Checkpoint, &[part, "tensor `t`"]);
    }
    let mut overlapping = file();
    overlapping.tensors.truncate(2);
    let mut bytes = overlapping.header(&[0, 32]);
    bytes.resize(bytes.len() + (1 << 20), 0);
    refused(
        &bytes,
        Checkpoint,
        &["overlap those of tensor `token_embd.weight`"],
    );
    let folder = Folder::new().with("m.gguf", &whole);
    let prefix = Some("a.".to_owned());
    let error = quintic::checkpoint::Checkpoint::open(
        folder.path().join("m.gguf"),
        &OpenOptions {
            prefix,
            ..OpenOptions::default()
        },
    )
    .unwrap_err();
    assert_eq!(error.kind(), Input, "{error}");
    let error = folder.open().unwrap_err();
    assert!(error.to_string().contains("`m.gguf`"), "{error}");
}
