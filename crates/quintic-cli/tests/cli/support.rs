//! Running the command, and tiny models for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quintic::checkpoint::SafetensorsFile;
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::tokenizer::{Tokenizer, TokenizerChoice};
use quintic::{DType, LoadOptions, TextEncoder};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a run of the command left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Asserts success.
    pub(crate) fn good(self) -> Ran {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    /// Asserts failure with `code` and a message that holds all `parts`.
    pub(crate) fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "no `{part}` in: {}", self.err);
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Runs the command with empty standard input.
pub(crate) fn run(args: &[&str]) -> Ran {
    run_with(args, b"")
}

/// Runs the command with empty standard input and an instruction set named by the environment, or by nobody.
pub(crate) fn run_as(isa: Option<&str>, args: &[&str]) -> Ran {
    let mut command = quintic();
    command.args(args).env_remove("QUINTIC_ISA");
    if let Some(isa) = isa {
        command.env("QUINTIC_ISA", isa);
    }
    run_command(command, b"")
}

/// Runs the command.
pub(crate) fn run_with(args: &[&str], stdin: &[u8]) -> Ran {
    let mut command = quintic();
    command.args(args);
    run_command(command, stdin)
}

/// Whatever the command was asked, it must not panic or show Rust's debug form.
fn run_command(mut command: Command, stdin: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that never reads its input may be gone by now.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let ran = Ran {
        code: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    for dump in ["panicked at", "RUST_BACKTRACE", "Error {", "Os {", "Some("] {
        assert!(!ran.err.contains(dump), "{}", ran.err);
    }
    ran
}

pub(crate) fn quintic() -> Command {
    Command::new(env!("CARGO_BIN_EXE_quintic"))
}

pub(crate) fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata")
        .join(path)
}

pub(crate) fn golden(name: &str) -> String {
    testdata("goldens").join(name).to_str().unwrap().to_owned()
}

/// A temporary folder with a model in `model/`.
pub(crate) struct Model {
    pub(crate) folder: TempDir,
}

impl Model {
    /// A random two-layer model with bytes for tokens.
    pub(crate) fn bytes() -> Model {
        Model::bytes_with_gain(1.0)
    }

    /// The same with a last norm that scales by `gain`.
    pub(crate) fn bytes_with_gain(gain: f32) -> Model {
        let model = Model {
            folder: tempfile::tempdir().unwrap(),
        };
        write_encoder(&model.file("model"), 384, gain);
        let config = r#"{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125}"#;
        std::fs::write(model.file("model/tokenizer_config.json"), config).unwrap();
        model
    }

    /// A random two-layer model with T5's SentencePiece model.
    pub(crate) fn pieces() -> Model {
        let model = Model {
            folder: tempfile::tempdir().unwrap(),
        };
        write_encoder(&model.file("model"), 32100, 1.0);
        let spiece = testdata("tokenizers/t5/spiece.model");
        std::fs::copy(spiece, model.file("model/spiece.model")).unwrap();
        model
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.file(name), bytes).unwrap();
        self.path(name)
    }

    /// `encode --model … -o OUT` with more arguments.
    pub(crate) fn encode(&self, out: &str, args: &[&str]) -> Ran {
        let (model, out) = (self.path("model"), self.path(out));
        run(&[&["encode", "--model", &model, "-o", &out], args].concat())
    }

    pub(crate) fn encoder(&self) -> TextEncoder {
        TextEncoder::load(&self.path("model"), &LoadOptions::default()).unwrap()
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_dir(&self.file("model"), TokenizerChoice::Auto).unwrap()
    }

    /// Ids of texts, framed.
    pub(crate) fn ids(&self, texts: &[&str]) -> Vec<Vec<u32>> {
        let tokenizer = self.tokenizer();
        texts
            .iter()
            .map(|text| tokenizer.encode(text, true).unwrap())
            .collect()
    }

    /// Names of everything in the temporary folder.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn tensors(&self, name: &str) -> SafetensorsFile {
        SafetensorsFile::open(&self.file(name)).unwrap()
    }

    /// Shape and values of a float tensor.
    pub(crate) fn floats(&self, file: &str, tensor: &str) -> (Vec<usize>, Vec<f32>) {
        let tensor = self.tensors(file).take(tensor).unwrap();
        (tensor.shape().to_vec(), tensor.to_f32())
    }

    /// Shape and values of an i64 tensor.
    pub(crate) fn integers(&self, file: &str, tensor: &str) -> (Vec<usize>, Vec<i64>) {
        let tensor = self.tensors(file).take(tensor).unwrap();
        assert_eq!(tensor.dtype(), DType::I64);
        let values = tensor.bytes().chunks_exact(8);
        let values = values.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()));
        (tensor.shape().to_vec(), values.collect())
    }
}

/// Writes `config.json` and `model.safetensors` of a random encoder: d_model 8, 2 layers.
fn write_encoder(folder: &Path, vocab_size: usize, gain: f32) {
    std::fs::create_dir(folder).unwrap();
    let config = json!({
        "model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_layers": 2,
        "vocab_size": vocab_size, "feed_forward_proj": "relu", "pad_token_id": 0,
        "eos_token_id": 1, "relative_attention_num_buckets": 8,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("shared.weight".to_owned(), vec![vocab_size, 8]),
        ("encoder.final_layer_norm.weight".to_owned(), vec![8]),
    ];
    for layer in 0..2 {
        let mut part = |name: &str, shape: &[usize]| {
            shapes.push((
                format!("encoder.block.{layer}.layer.{name}.weight"),
                shape.to_vec(),
            ));
        };
        for name in ["q", "k", "v", "o"] {
            part(&format!("0.SelfAttention.{name}"), &[8, 8]);
        }
        if layer == 0 {
            part("0.SelfAttention.relative_attention_bias", &[8, 2]);
        }
        part("0.layer_norm", &[8]);
        part("1.layer_norm", &[8]);
        part("1.DenseReluDense.wi", &[12, 8]);
        part("1.DenseReluDense.wo", &[8, 12]);
    }
    let specs: Vec<TensorSpec> = shapes
        .iter()
        .map(|(name, shape)| TensorSpec::new(name, DType::F32, shape))
        .collect();
    let file = folder.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&file, &specs, &[]).unwrap();
    let mut state = 1u64;
    for (idx, spec) in specs.iter().enumerate() {
        let scale = if spec.name.contains("final_layer_norm") {
            gain
        } else {
            1.0
        };
        let values: Vec<f32> = (0..spec.shape.iter().product())
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
            })
            .collect();
        writer.append(idx, &values).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes integer tensors of any safetensors type; values are cut to the type's width.
pub(crate) fn write_integers(path: &Path, tensors: &[(&str, &str, &[usize], &[i64])]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for &(name, dtype, shape, values) in tensors {
        let begin = data.len();
        for &value in values {
            match dtype {
                "F32" => data.extend((value as f32).to_le_bytes()),
                "I64" | "U64" => data.extend(value.to_le_bytes()),
                "I32" | "U32" => data.extend(&value.to_le_bytes()[..4]),
                "I16" | "U16" => data.extend(&value.to_le_bytes()[..2]),
                _ => data.push(value as u8),
            }
        }
        header.insert(
            name.to_owned(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] }),
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// Writes f32 tensors.
pub(crate) fn write_floats(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape, _)| TensorSpec::new(*name, DType::F32, shape))
        .collect();
    let mut writer = SafetensorsWriter::create(path, &specs, &[]).unwrap();
    for (idx, (_, _, values)) in tensors.iter().enumerate() {
        writer.append(idx, values).unwrap();
    }
    writer.finish().unwrap();
}
