//! The inputs that fuzzing starts from: committed test data where it is small, and small
//! files of every kind made here where it is not.

use serde_json::{Value, json};

use super::gguf_support::{Gguf, Meta};
use super::mutate::Random;
use super::tokenizers::Parts;

/// The test data, above the crate that is built: this one or that of the fuzz targets.
pub fn testdata() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("testdata"))
        .find(|folder| folder.is_dir())
        .unwrap()
}

/// Largest seed; the targets' own limit is larger.
const MAX_BYTES: u64 = 12_000;

/// Files of a folder of the test data and of those in it, by the end of their names.
fn files(folder: &str, end: &str) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    let mut folders = vec![testdata().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => paths.push(path),
            }
        }
    }
    paths.sort();
    paths
        .iter()
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .filter(|path| path.metadata().unwrap().len() <= MAX_BYTES)
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// Published configs and those of the goldens.
pub fn config() -> Vec<Vec<u8>> {
    let mut seeds = files("configs", ".json");
    seeds.extend(files("goldens", "config.json"));
    seeds
}

/// The goldens' weights, their headers alone, and their index with made-up shards.
pub fn safetensors() -> Vec<Vec<u8>> {
    let input = |kind: u8, n: usize, parts: &[&[u8]]| {
        let mut input = vec![kind];
        input.extend((n as u16).to_le_bytes());
        input.extend(parts.concat());
        input
    };
    let mut seeds = Vec::new();
    for file in files("goldens", ".safetensors") {
        seeds.push(input(0, 0, &[&file]));
        let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let (header, data) = file[8..].split_at(len);
        seeds.push(input(1, data.len(), &[header]));
    }
    let entry = |dtype: &str, shape: &[usize], begin: usize, end: usize| json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
    for header in [
        json!({}),
        json!({"__metadata__": {"format": "pt"}, "w": entry("F32", &[2, 2], 0, 16)}),
        json!({"a": entry("BF16", &[], 0, 2), "b": entry("F8_E4M3", &[3, 0], 2, 2), "c": entry("I64", &[1], 2, 10)}),
        json!({"spiece_model": entry("U8", &[5], 0, 5), "x.encoder.block.0.layer.0.SelfAttention.q.weight": entry("F16", &[1, 1], 5, 7)}),
        json!({"a.weight": entry("F8_E4M3", &[2, 2], 0, 4), "a.scale_weight": entry("F32", &[], 4, 8),
            "a.comfy_quant": entry("U8", &[3], 8, 11), "scaled_fp8": entry("F8_E4M3", &[1], 11, 12)}),
        encoder("", 2, true),
        encoder("text_encoders.t5xxl.transformer.", 1, false),
        wan(),
    ] {
        let end = |entry: &Value| entry["data_offsets"][1].as_u64();
        let n = header.as_object().unwrap().values().filter_map(end).max();
        seeds.push(input(
            1,
            n.unwrap_or(0) as usize,
            &[header.to_string().as_bytes()],
        ));
    }
    let shard = |name: &str| {
        let header = json!({name: entry("U8", &[2], 0, 2)}).to_string();
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            b"12",
        ]
        .concat()
    };
    let name = "encoder.block.0.layer.0.SelfAttention.q.weight";
    for map in [
        json!({name: "a"}),
        json!({name: "a", "encoder.block.0.layer.0.SelfAttention.k.weight": "b"}),
    ] {
        let index = json!({"metadata": {"total_size": 2}, "weight_map": map}).to_string();
        let (a, b) = (shard(name), shard(&name.replace(".q.", ".k.")));
        let shards: &[&[u8]] = match map.as_object().unwrap().len() {
            1 => &[&a],
            _ => &[&a, &b],
        };
        let parts = [&[index.as_bytes()], shards].concat();
        seeds.push(input(2, index.len(), &parts));
    }
    for index in files("goldens", ".index.json") {
        seeds.push(input(2, index.len(), &[&index]));
    }
    seeds
}

/// A whole encoder with a tokenizer, one with blocks, and files without a model.
pub fn gguf() -> Vec<Vec<u8>> {
    let encoder = |architecture: &str, kind: u32, width: usize, block: usize| {
        let mut file = Gguf::new(architecture)
            .with(&format!("{architecture}.block_count"), Meta::U32(1))
            .with(
                &format!("{architecture}.attention.key_length"),
                Meta::U64(2),
            )
            .with(
                &format!("{architecture}.attention.layer_norm_rms_epsilon"),
                Meta::F32(1e-6),
            );
        let mut add = |name: &str, shape: &[usize]| {
            // Rows of one block.
            let (kind, n) = match shape.last() {
                Some(&n) if n == width => (kind, shape.iter().product::<usize>() / width * block),
                _ => (0, 4 * shape.iter().product::<usize>()),
            };
            let name = format!("{name}.weight");
            file = std::mem::take(&mut file).tensor(&name, kind, shape, vec![1; n]);
        };
        add("token_embd", &[3, width]);
        add("enc.output_norm", &[width]);
        for name in ["q", "k", "v", "o"] {
            add(&format!("enc.blk.0.attn_{name}"), &[width, width]);
        }
        add("enc.blk.0.attn_rel_b", &[4, 1]);
        for name in ["attn_norm", "ffn_norm"] {
            add(&format!("enc.blk.0.{name}"), &[width]);
        }
        for name in ["gate", "up", "down"] {
            add(&format!("enc.blk.0.ffn_{name}"), &[width, width]);
        }
        file
    };
    let tokens = ["<pad>", "</s>", "<unk>", "a", "[PAD4]"].map(str::to_owned);
    let plain = encoder("t5encoder", 0, 2, 8)
        .with("tokenizer.ggml.model", Meta::Text("t5".into()))
        .with("tokenizer.ggml.tokens", Meta::Texts(tokens.to_vec()))
        .with("tokenizer.ggml.scores", Meta::Floats(vec![-1.0; 5]))
        .with("tokenizer.ggml.token_type", Meta::Ints(vec![3, 3, 2, 1, 5]))
        .with(
            "tokenizer.ggml.precompiled_charsmap",
            Meta::Bytes(Vec::new()),
        )
        .with("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    [
        plain,
        Gguf {
            alignment: 8,
            ..encoder("t5", 8, 32, 34).with("general.alignment", Meta::U32(8))
        },
        Gguf::new("t5"),
        Gguf {
            version: 2,
            ..Gguf::new("llama")
        },
    ]
    .map(|file| file.bytes())
    .to_vec()
}

/// The header of a whole encoder with extents of 1 and 4.
fn encoder(prefix: &str, n_layers: usize, gated: bool) -> Value {
    let mut names = vec![
        ("shared".to_owned(), [3, 1]),
        ("encoder.final_layer_norm".to_owned(), [1, 0]),
    ];
    for layer in 0..n_layers {
        let mut add =
            |name: &str, shape| names.push((format!("encoder.block.{layer}.layer.{name}"), shape));
        for name in ["q", "k", "v", "o"] {
            add(&format!("0.SelfAttention.{name}"), [1, 1]);
        }
        if layer == 0 {
            add("0.SelfAttention.relative_attention_bias", [4, 1]);
        }
        add("0.layer_norm", [1, 0]);
        add("1.layer_norm", [1, 0]);
        for name in if gated {
            &["wi_0", "wi_1", "wo"][..]
        } else {
            &["wi", "wo"]
        } {
            add(&format!("1.DenseReluDense.{name}"), [1, 1]);
        }
    }
    header(
        names
            .into_iter()
            .map(|(name, shape)| (format!("{prefix}{name}.weight"), shape)),
    )
}

/// The header of a file under the names of Wan's own release.
fn wan() -> Value {
    let names = [
        "token_embedding",
        "blocks.0.attn.q",
        "blocks.0.ffn.gate.0",
        "blocks.0.norm1",
        "norm",
    ];
    header(
        names
            .into_iter()
            .map(|name| (format!("{name}.weight"), [1, 1])),
    )
}

/// F32 tensors end to end; a second extent of 0 stands for none.
fn header(names: impl Iterator<Item = (String, [usize; 2])>) -> Value {
    let mut header = serde_json::Map::new();
    let mut begin = 0;
    for (name, [rows, columns]) in names {
        let end = begin + rows * columns.max(1) * 4;
        let shape = if columns == 0 {
            vec![rows]
        } else {
            vec![rows, columns]
        };
        header.insert(
            name,
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}),
        );
        begin = end;
    }
    header.into()
}

/// A field of a protobuf message that holds bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    let mut varint = |mut value: usize| {
        while value >= 0x80 {
            field.push(value as u8 | 0x80);
            value >>= 7;
        }
        field.push(value as u8);
    };
    varint(usize::from(number) << 3 | 2);
    varint(bytes.len());
    field.extend(bytes);
    field
}

/// A field that holds a number below 128.
fn number(field: u16, value: u8) -> Vec<u8> {
    match field {
        0..16 => vec![(field << 3) as u8, value],
        _ => vec![(field << 3) as u8 | 0x80, (field >> 4) as u8, value],
    }
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let mut piece = field(1, text.as_bytes());
    piece.push(2 << 3 | 5);
    piece.extend(score.to_le_bytes());
    piece.extend(number(3, kind));
    field(1, &piece)
}

/// A charsmap of two rules: `a` becomes `xy`, `ab` becomes nothing.
pub fn charsmap() -> Vec<u8> {
    let mut units = vec![0u32; 256];
    let unit = |offset: u32, label: u8| offset << 10 | 1 << 8 | u32::from(label);
    units[97] = unit(97 ^ 1, b'a');
    units[1] = 1 << 31;
    units[1 ^ 98] = unit(99 ^ 2, b'b');
    units[2] = 1 << 31 | 2;
    let mut blob = 1024u32.to_le_bytes().to_vec();
    blob.extend(units.into_iter().flat_map(u32::to_le_bytes));
    blob.extend(b"xy\0\0");
    blob
}

/// Small SentencePiece models: both algorithms, byte fallback, charsmap, every kind of piece.
pub fn spiece() -> Vec<Vec<u8>> {
    let words = [
        "\u{2581}",
        "a",
        "b",
        "ab",
        "abc",
        "\u{2581}a",
        "\u{2581}the",
        "he",
        "t",
        "h",
        "e",
        "é",
        "xy",
        "x",
        "y",
    ];
    let vocabulary = |last: &[Vec<u8>]| {
        let mut model = [
            piece("<pad>", 0.0, 3),
            piece("</s>", 0.0, 3),
            piece("<unk>", 0.0, 2),
        ]
        .concat();
        for (idx, word) in words.into_iter().enumerate() {
            model.extend(piece(word, -1.5 - idx as f32, 1));
        }
        model.extend(last.concat());
        model
    };
    let bytes: Vec<Vec<u8>> = (0..256)
        .map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, 6))
        .collect();
    let odd = [
        piece("<x>", 0.0, 4),
        piece("unused", -3.0, 5),
        piece("un", -2.0, 1),
        piece("used", -2.5, 1),
    ];
    let plain = vocabulary(&[]);
    let mut models = vec![
        plain.clone(),
        [vocabulary(&odd), field(2, &number(3, 1))].concat(),
        [vocabulary(&odd), field(2, &number(3, 2))].concat(),
        [
            plain.clone(),
            field(3, &[number(3, 0), number(4, 0), number(5, 0)].concat()),
        ]
        .concat(),
        [
            plain.clone(),
            field(2, &[number(24, 1), field(5, b"x")].concat()),
        ]
        .concat(),
        [plain.clone(), field(3, &field(2, &charsmap()))].concat(),
        [plain, field(5, &field(2, &charsmap()))].concat(),
    ];
    for kind in [1, 2] {
        models.push(
            [
                vocabulary(&bytes),
                field(2, &[number(3, kind), number(35, 1)].concat()),
            ]
            .concat(),
        );
    }
    with_texts(models)
}

/// Each model with a few texts and flags.
fn with_texts(models: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let texts = [
        "the abc unused",
        " a  b\u{2581}é <extra_id_0></s> ",
        "<x>ab\u{1f600}\0",
        "",
        "aaaaaaaaaabab",
    ];
    let mut seeds = Vec::new();
    for (idx, model) in models.iter().enumerate() {
        for (flags, text) in texts.iter().enumerate() {
            if (flags + idx) % 2 == 0 || flags == 0 {
                seeds.push(Parts::join((flags * 3 + idx) as u8, text, model));
            }
        }
    }
    seeds
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            text.push(match place <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

/// Small `tokenizer.json` files that have each of the models, normalizers, pre-tokenizers,
/// post-processors and decoders in at least one of them.
pub fn tokenizer_json() -> Vec<Vec<u8>> {
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}});
    let token = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": true, "normalized": false, "special": true});
    let unigram = json!({"type": "Unigram", "unk_id": 2, "byte_fallback": false,
        "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u{2581}", -2.0], ["a", -3.0], ["ab", -2.5], ["\u{2581}the", -4.0], ["t", -5.0]]});
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "\u{120}": 4, "<0x41>": 5, "abab": 6, "c": 7},
        "merges": [["a", "b"], ["ab", "ab"]]});
    let word_piece = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "##b": 2, "[CLS]": 3, "[SEP]": 4, "the": 5}});
    let word_level = json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "the": 1, "abc": 2}});
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let sequence = |key: &str, parts: Value| json!({"type": "Sequence", key: parts});
    let file = |model: &Value, normalizer: Value, pre: Value, post: Value, decoder: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [token(0, "<pad>"), token(1, "</s>"), token(100, "<extra_id_0>")],
            "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model})
    };
    let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": base64(&charsmap())});
    let simple = |name: &str| json!({"type": name});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let mut cut = file(
        &unigram,
        Value::Null,
        metaspace.clone(),
        template.clone(),
        metaspace.clone(),
    );
    cut["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    cut["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    let files = [
        file(
            &unigram,
            precompiled.clone(),
            metaspace.clone(),
            template.clone(),
            metaspace.clone(),
        ),
        file(
            &unigram,
            sequence(
                "normalizers",
                json!([precompiled, replace(json!({"Regex": " {2,}"}), "\u{2581}"), {"type": "Strip", "strip_left": false, "strip_right": true}]),
            ),
            sequence(
                "pretokenizers",
                json!([simple("WhitespaceSplit"), metaspace]),
            ),
            template.clone(),
            sequence(
                "decoders",
                json!([replace(json!({"String": "\u{2581}"}), " "), simple("ByteFallback"), simple("Fuse"), {"type": "Strip", "content": " ", "start": 1, "stop": 0}]),
            ),
        ),
        file(
            &bpe,
            sequence(
                "normalizers",
                json!([simple("NFKC"), simple("Lowercase"), {"type": "Prepend", "prepend": "\u{2581}"}, simple("StripAccents")]),
            ),
            byte_level.clone(),
            sequence("processors", json!([byte_level, template])),
            byte_level.clone(),
        ),
        file(
            &bpe,
            sequence(
                "normalizers",
                json!([
                    simple("NFC"),
                    simple("NFD"),
                    simple("NFKD"),
                    simple("Nmt"),
                    simple("ByteLevel")
                ]),
            ),
            sequence(
                "pretokenizers",
                json!([{"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|a(?!b)"}, "behavior": "Isolated", "invert": false},
                {"type": "Digits", "individual_digits": true}, {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "CharDelimiterSplit", "delimiter": "x"}, {"type": "FixedLength", "length": 3}, simple("UnicodeScripts")]),
            ),
            json!({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": true}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
        ),
        file(
            &word_piece,
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
            simple("BertPreTokenizer"),
            json!({"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        ),
        file(
            &word_level,
            simple("Lowercase"),
            simple("Whitespace"),
            Value::Null,
            json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
        ),
        cut,
    ];
    with_texts(
        files
            .iter()
            .map(|file| file.to_string().into_bytes())
            .collect(),
    )
}

/// Random bytes, which `arbitrary` turns into batches.
pub fn masks() -> Vec<Vec<u8>> {
    let mut random = Random::new(0x4D41_534B);
    (0..48)
        .map(|idx| (0..16 + idx * 3).map(|_| random.below(256) as u8).collect())
        .collect()
}
