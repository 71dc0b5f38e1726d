//! GGUF files that are written: every type of blocks, and the tokenizer on every way into a file.

#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

#[path = "gguf_support/blocks.rs"]
mod blocks;
mod common;

use std::collections::BTreeMap;
use std::path::Path;

use blocks::Random;
use common::{check_ids, data, fetched, t5_json, vectors, with_flags};
use quintic::batch::PackedBatch;
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::convert::{
    GgufOptions, GgufWeights, SafetensorsOptions, Written, to_gguf, to_safetensors,
};
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::{
    BackendKind, BlockType, DType, ErrorKind, LoadOptions, Result, TextEncoder, Tokenizer,
    TokenizerChoice,
};
use tempfile::TempDir;

const HEADS: usize = 2;

/// An encoder of one layer, with random weights in f32.
fn model(vocab: usize, d_model: usize, d_ff: usize, d_kv: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "t5", "vocab_size": vocab, "d_model": d_model, "d_kv": d_kv, "d_ff": d_ff,
        "num_layers": 1, "num_heads": HEADS, "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let inner = HEADS * d_kv;
    let attention = "encoder.block.0.layer.0";
    let feed_forward = "encoder.block.0.layer.1";
    let specs: Vec<TensorSpec> = [
        ("shared".to_owned(), vec![vocab, d_model]),
        ("encoder.final_layer_norm".to_owned(), vec![d_model]),
        (format!("{attention}.layer_norm"), vec![d_model]),
        (format!("{attention}.SelfAttention.q"), vec![inner, d_model]),
        (format!("{attention}.SelfAttention.k"), vec![inner, d_model]),
        (format!("{attention}.SelfAttention.v"), vec![inner, d_model]),
        (format!("{attention}.SelfAttention.o"), vec![d_model, inner]),
        (
            format!("{attention}.SelfAttention.relative_attention_bias"),
            vec![32, HEADS],
        ),
        (format!("{feed_forward}.layer_norm"), vec![d_model]),
        (
            format!("{feed_forward}.DenseReluDense.wi_0"),
            vec![d_ff, d_model],
        ),
        (
            format!("{feed_forward}.DenseReluDense.wi_1"),
            vec![d_ff, d_model],
        ),
        (
            format!("{feed_forward}.DenseReluDense.wo"),
            vec![d_model, d_ff],
        ),
    ]
    .into_iter()
    .map(|(name, shape)| TensorSpec::new(format!("{name}.weight"), DType::F32, &shape))
    .collect();
    let path = folder.path().join("model.safetensors");
    let mut file = SafetensorsWriter::create(&path, &specs, &[]).unwrap();
    let mut random = Random::new(5);
    for (idx, spec) in specs.iter().enumerate() {
        let n = spec.shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| random.value() / 8.0).collect();
        file.append(idx, &values).unwrap();
    }
    file.finish().unwrap();
    folder
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default()).unwrap()
}

fn convert(
    from: &Path,
    weights: GgufWeights,
    tokenizer: Option<&Path>,
    out: &Path,
) -> Result<Written> {
    let options = GgufOptions {
        weights,
        tokenizer,
        saturate: false,
        name: None,
    };
    to_gguf(&open(from), &options, out, &mut |_, _| {})
}

fn dtypes(path: &Path) -> BTreeMap<String, DType> {
    let checkpoint = open(path);
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let dtype = |name: String| {
        let dtype = checkpoint.take(&name).unwrap().dtype();
        (name, dtype)
    };
    names.into_iter().map(dtype).collect()
}

fn states(path: &Path, backend: BackendKind) -> Vec<f32> {
    let options = LoadOptions {
        backend,
        ..LoadOptions::default()
    };
    let encoder = TextEncoder::load(path.to_str().unwrap(), &options).unwrap();
    let rows: Vec<Vec<u32>> = vec![vec![4, 5, 6, 7, 1], vec![1], (0..39).collect()];
    let batch = PackedBatch::from_rows(&rows, encoder.config().vocab_size).unwrap();
    encoder.hidden_states(&batch, false).unwrap().last
}

/// Root mean square of the differences of a tensor, over that of its values.
fn relative_error(a: &Checkpoint, b: &Checkpoint, name: &str) -> f64 {
    let (a, b) = (
        a.take(name).unwrap().to_f32(),
        b.take(name).unwrap().to_f32(),
    );
    let square = |x: f32| f64::from(x).powi(2);
    let errors: f64 = a.iter().zip(&b).map(|(a, b)| square(a - b)).sum();
    (errors / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

const WO: &str = "encoder.block.0.layer.1.DenseReluDense.wo.weight";

/// From the worst to the best; each has the type of its embedding beside it.
const BLOCKS: [(GgufWeights, BlockType, BlockType); 10] = [
    (GgufWeights::Q2_K, BlockType::Q2_K, BlockType::Q6_K),
    (GgufWeights::Q3_K, BlockType::Q3_K, BlockType::Q6_K),
    (GgufWeights::Q4_0, BlockType::Q4_0, BlockType::Q8_0),
    (GgufWeights::Q4_K, BlockType::Q4_K, BlockType::Q6_K),
    (GgufWeights::Q4_1, BlockType::Q4_1, BlockType::Q8_0),
    (GgufWeights::Q5_0, BlockType::Q5_0, BlockType::Q8_0),
    (GgufWeights::Q5_K, BlockType::Q5_K, BlockType::Q6_K),
    (GgufWeights::Q5_1, BlockType::Q5_1, BlockType::Q8_0),
    (GgufWeights::Q6_K, BlockType::Q6_K, BlockType::Q6_K),
    (GgufWeights::Q8_0, BlockType::Q8_0, BlockType::Q8_0),
];

#[test]
fn every_type_of_blocks_is_written_and_computes_what_it_says() {
    let source = model(64, 256, 512, 128);
    let folder = tempfile::tempdir().unwrap();
    let mut errors = BTreeMap::new();
    for (weights, dtype, embedding) in BLOCKS {
        let file = folder.path().join(format!("{}.gguf", weights.name()));
        let written = convert(source.path(), weights, None, &file).unwrap();
        assert!(written.other_blocks.is_empty() && written.not_quantised.is_empty());
        for (name, found) in dtypes(&file) {
            let is_float = name.contains("norm") || name.contains("bias");
            let expected = match name.as_str() {
                _ if is_float => DType::F32,
                "shared.weight" => DType::Blocks(embedding),
                _ => DType::Blocks(dtype),
            };
            assert_eq!(found, expected, "{}: {name}", weights.name());
        }
        // A model of the decoded values has the same states, bit for bit, on either backend.
        let back = folder.path().join(weights.name());
        let options = SafetensorsOptions {
            dtype: Some(DType::F32),
            ..SafetensorsOptions::default()
        };
        to_safetensors(&open(&file), &options, &back, &mut |_, _| {}).unwrap();
        for backend in [BackendKind::Reference, BackendKind::Cpu] {
            let (found, expected) = (states(&file, backend), states(&back, backend));
            assert!(expected.iter().any(|&x| x != 0.0));
            assert!(found == expected, "{}", weights.name());
        }
        errors.insert(
            weights.name(),
            relative_error(&open(&file), &open(source.path()), WO),
        );
    }
    // More bits, smaller errors, in either family.
    for ladder in [
        &["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"][..],
        &["q4_0", "q5_0", "q8_0"],
        &["q4_1", "q5_1", "q8_0"],
    ] {
        for pair in ladder.windows(2) {
            assert!(errors[pair[0]] > errors[pair[1]], "{pair:?}: {errors:?}");
        }
    }
}

#[test]
fn rows_of_other_lengths_have_the_type_that_is_told() {
    // Rows of 96 values, of 256 values (`wo`) and of 40 (`o`).
    let source = model(64, 96, 256, 20);
    let folder = tempfile::tempdir().unwrap();
    for (weights, other, embedding) in [
        (GgufWeights::Q2_K, BlockType::Q4_0, BlockType::Q8_0),
        (GgufWeights::Q3_K, BlockType::Q4_0, BlockType::Q8_0),
        (GgufWeights::Q4_K, BlockType::Q5_0, BlockType::Q8_0),
        (GgufWeights::Q5_K, BlockType::Q5_1, BlockType::Q8_0),
        (GgufWeights::Q6_K, BlockType::Q8_0, BlockType::Q8_0),
    ] {
        let file = folder.path().join(format!("{}.gguf", weights.name()));
        let written = convert(source.path(), weights, None, &file).unwrap();
        let dtypes = dtypes(&file);
        let name = |dtype: DType| dtype.to_string().to_lowercase();
        assert_eq!(name(dtypes[WO]), weights.name());
        assert_eq!(dtypes["shared.weight"], DType::Blocks(embedding));
        let q = dtypes["encoder.block.0.layer.0.SelfAttention.q.weight"];
        assert_eq!(q, DType::Blocks(other));
        assert_eq!(
            dtypes["encoder.block.0.layer.0.SelfAttention.o.weight"],
            DType::F16
        );
        assert_eq!(written.not_quantised, ["enc.blk.0.attn_o.weight"]);
        let told: Vec<(&str, &str, &str)> = written
            .other_blocks
            .iter()
            .map(|told| (told.tensor.as_str(), told.wanted, told.found))
            .collect();
        // The embedding, q, k, v, wi_0, wi_1.
        assert_eq!(told.len(), 6, "{told:?}");
        let (other, embedding) = (name(DType::Blocks(other)), name(DType::Blocks(embedding)));
        assert!(told.contains(&("token_embd.weight", "q6_k", embedding.as_str())));
        assert!(told.contains(&("enc.blk.0.attn_q.weight", weights.name(), other.as_str())));
        assert!(!told.iter().any(|(tensor, ..)| tensor.contains("ffn_down")));
    }
}

fn tokenizer_of(file: &Path) -> Tokenizer {
    open(file).tokenizer().unwrap().unwrap()
}

#[test]
fn a_gguf_file_in_another_type_keeps_its_tokenizer() {
    let source = model(32128, 32, 32, 16);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let spiece = data("t5/spiece.model");
    convert(source.path(), GgufWeights::F16, Some(&spiece), &path("f16")).unwrap();
    std::fs::rename(path("f16"), path("f16.gguf")).unwrap();
    let written = convert(&path("f16.gguf"), GgufWeights::Q4_K, None, &path("q4.gguf")).unwrap();
    assert_eq!(written.notes, [] as [String; 0]);
    check_ids("t5_slow_legacy", &tokenizer_of(&path("q4.gguf")));
    // Of the same values the same file, whichever way the tokenizer came into it.
    convert(
        &path("f16.gguf"),
        GgufWeights::Q4_K,
        Some(&spiece),
        &path("again.gguf"),
    )
    .unwrap();
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    assert!(read("q4.gguf") == read("again.gguf"));
}

/// What a GGUF file has of a `tokenizer.json` is what it has of the model that the JSON was made
/// of.
#[test]
fn a_tokenizer_json_gives_the_vocabulary_of_its_model() {
    let source = model(32128, 32, 32, 16);
    let folder = tempfile::tempdir().unwrap();
    let spiece = folder.path().join("spiece.gguf");
    convert(
        source.path(),
        GgufWeights::F16,
        Some(&data("t5/spiece.model")),
        &spiece,
    )
    .unwrap();
    for name in ["flan", "flux", "sd3"] {
        // As a file by itself, and beside the weights, with the flag files.
        let model_path = |file: &str| source.path().join(file);
        std::fs::write(model_path("tokenizer.json"), t5_json(name)).unwrap();
        let file = folder.path().join(format!("{name}.gguf"));
        for named in [Some(model_path("tokenizer.json")), None] {
            if named.is_none() && name != "flan" {
                let flags = data("t5").join(name).join("tokenizer_config.json");
                std::fs::copy(flags, model_path("tokenizer_config.json")).unwrap();
            }
            let written =
                convert(source.path(), GgufWeights::F16, named.as_deref(), &file).unwrap();
            assert!(written.notes[0].contains("`tokenizer.json`"), "{written:?}");
            assert!(std::fs::read(&file).unwrap() == std::fs::read(&spiece).unwrap());
        }
        let found = tokenizer_of(&file);
        check_ids("t5_slow_legacy", &found);
        // The file itself gives the same ids but where spaces meet an end or an added token.
        let json = Tokenizer::from_json_bytes(&t5_json(name)).unwrap();
        let (mut n_equal, mut others) = (0, Vec::new());
        for vector in vectors() {
            let text = vector.text();
            if json.encode(text, true).unwrap() == found.encode(text, true).unwrap() {
                n_equal += 1;
            } else if !text.contains('<')
                && !text.contains('\u{2581}')
                && text.trim() == text
                // A text of characters that the charsmap makes spaces of is all end.
                && text.contains(char::is_alphanumeric)
            {
                others.push(text.to_owned());
            }
        }
        println!("{name}: {n_equal} of 86 texts have equal ids");
        assert!(others.is_empty(), "{name}: {others:?}");
        assert!(n_equal >= 50, "{name}: {n_equal}");
    }
}

#[test]
fn what_a_gguf_file_cannot_describe_is_an_error_if_named_and_else_a_note() {
    let source = model(64, 32, 32, 16);
    let json = source.path().join("tokenizer.json");
    let bpe = serde_json::json!({
        "version": "1.0", "added_tokens": [
            {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
        ],
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [], "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []},
    });
    std::fs::write(&json, bpe.to_string()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.gguf");
    let error = convert(source.path(), GgufWeights::F16, Some(&json), &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(
        text.contains("tokenizer.json") && text.contains("`BPE`, expected `Unigram`"),
        "{text}"
    );
    assert!(!out.exists());
    let written = convert(source.path(), GgufWeights::F16, None, &out).unwrap();
    let note = &written.notes[0];
    assert!(
        note.contains("`BPE`") && note.contains("the file has no tokenizer"),
        "{note}"
    );
    assert!(open(&out).tokenizer().unwrap().is_none());
    // A damaged one is an error either way.
    std::fs::write(&json, "{").unwrap();
    let error = convert(source.path(), GgufWeights::F16, None, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokenizer, "{error}");
}

/// mT5's bytes and sentinels, UMT5's bytes, and Pile-T5's BPE, through a file and back.
#[test]
fn the_tokenizers_of_all_families_pass_through_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let umt5 = with_flags("umt5", fetched("umt5/spiece.model"), "spiece.model");
    let pile = with_flags(
        "pile-t5",
        fetched("pile-t5/tokenizer.model"),
        "tokenizer.model",
    );
    for (vocab, tokenizer, set_up, vocab_size) in [
        (
            250_112,
            fetched("mt5/spiece.model").as_path(),
            "mt5_slow_legacy",
            250_100,
        ),
        (256_384, umt5.path(), "umt5_slow_recon_legacy", 256_300),
        (32_128, pile.path(), "pile_t5_slow", 32_100),
    ] {
        let source = model(vocab, 32, 32, 16);
        let file = path(&format!("{set_up}.gguf"));
        convert(source.path(), GgufWeights::Q8_0, Some(tokenizer), &file).unwrap();
        let found = tokenizer_of(&file);
        check_ids(set_up, &found);
        assert_eq!(found.vocab_size(), vocab_size, "{set_up}");
        assert_eq!(
            found.token_id("<extra_id_0>").is_some(),
            set_up != "mt5_slow_legacy"
        );
    }
    let pile = tokenizer_of(&path("pile_t5_slow.gguf"));
    assert_eq!(
        (pile.eos_id(), pile.unk_id(), pile.pad_id()),
        (Some(2), Some(0), None)
    );
    assert_eq!(pile.token_id("<extra_id_0>"), Some(32099));
}

/// UMT5's JSON lists the same pieces; it knows nothing of bytes.
#[test]
fn the_json_of_umt5() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(256_384, 32, 32, 16);
    let file = folder.path().join("x.gguf");
    let json = fetched("umt5/tokenizer.json");
    convert(source.path(), GgufWeights::Q8_0, Some(&json), &file).unwrap();
    let (found, json) = (tokenizer_of(&file), Tokenizer::from_file(&json).unwrap());
    assert_eq!(found.vocab_size(), 256_300);
    for id in (0..256_300).step_by(97) {
        assert_eq!(found.token(id), json.token(id), "{id}");
    }
    let mut n_equal = 0;
    for vector in vectors() {
        let text = vector.text();
        n_equal +=
            usize::from(json.encode(text, true).unwrap() == found.encode(text, true).unwrap());
    }
    println!("{n_equal} of 86 texts have equal ids");
    assert!(n_equal >= 50, "{n_equal}");
    // Auto takes the JSON of a folder, too.
    let flags = with_flags("umt5", fetched("umt5/tokenizer.json"), "tokenizer.json");
    assert!(Tokenizer::from_dir(flags.path(), TokenizerChoice::Auto).is_ok());
}
