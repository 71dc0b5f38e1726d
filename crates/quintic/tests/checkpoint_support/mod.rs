//! Small weight files for the tests of checkpoints.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::path::{Path, PathBuf};

use quintic::Result;
use quintic::checkpoint::{Checkpoint, OpenOptions};

/// A tensor to write: name, element type, shape, bytes.
pub struct Stored {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// An f32 tensor whose values count up from `start`.
pub fn ramp(name: impl Into<String>, shape: &[usize], start: f32) -> Stored {
    let n: usize = shape.iter().product();
    let bytes = (0..n)
        .flat_map(|idx| (start + idx as f32).to_le_bytes())
        .collect();
    Stored {
        name: name.into(),
        dtype: "F32",
        shape: shape.to_vec(),
        bytes,
    }
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Stored], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let metadata: serde_json::Map<_, _> = metadata
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.into()))
            .collect();
        header.insert("__metadata__".into(), metadata.into());
    }
    let mut data = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        header.insert(
            tensor.name.clone(),
            serde_json::json!({
                "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()],
            }),
        );
    }
    with_header(&serde_json::Value::from(header).to_string(), &data)
}

/// A safetensors file of any header and data.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// What the tensors of a tiny encoder look like.
#[derive(Clone)]
pub struct Shape {
    pub prefix: &'static str,
    pub n_layers: usize,
    pub n_decoder_layers: usize,
    pub gated: bool,
    pub bias_per_layer: bool,
    pub embedding: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            prefix: "",
            n_layers: 2,
            n_decoder_layers: 0,
            gated: true,
            bias_per_layer: false,
            embedding: "shared.weight",
        }
    }
}

pub const D_MODEL: usize = 8;
pub const D_KV: usize = 3;
pub const HEADS: usize = 2;
pub const D_FF: usize = 5;
pub const VOCAB: usize = 11;
pub const BUCKETS: usize = 4;

/// The tensors of an encoder, and the names that count a decoder's layers.
pub fn encoder(shape: &Shape) -> Vec<Stored> {
    let inner = D_KV * HEADS;
    let mut shapes = vec![(shape.embedding.to_owned(), vec![VOCAB, D_MODEL])];
    for layer in 0..shape.n_layers {
        let block = format!("encoder.block.{layer}.layer");
        let mut add = |name: &str, shape: [usize; 2]| {
            shapes.push((format!("{block}.{name}.weight"), shape.to_vec()));
        };
        add("0.SelfAttention.q", [inner, D_MODEL]);
        add("0.SelfAttention.k", [inner, D_MODEL]);
        add("0.SelfAttention.v", [inner, D_MODEL]);
        add("0.SelfAttention.o", [D_MODEL, inner]);
        if layer == 0 || shape.bias_per_layer {
            add("0.SelfAttention.relative_attention_bias", [BUCKETS, HEADS]);
        }
        if shape.gated {
            add("1.DenseReluDense.wi_0", [D_FF, D_MODEL]);
            add("1.DenseReluDense.wi_1", [D_FF, D_MODEL]);
        } else {
            add("1.DenseReluDense.wi", [D_FF, D_MODEL]);
        }
        add("1.DenseReluDense.wo", [D_MODEL, D_FF]);
    }
    for layer in 0..shape.n_decoder_layers {
        let name = format!("decoder.block.{layer}.layer.0.SelfAttention.q.weight");
        shapes.push((name, vec![inner, D_MODEL]));
    }
    shapes
        .into_iter()
        .enumerate()
        .map(|(idx, (name, extents))| {
            ramp(
                format!("{}{name}", shape.prefix),
                &extents,
                idx as f32 * 100.0,
            )
        })
        .collect()
}

/// A temporary folder with files in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, making the folders on the way to it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Some file systems flush a file that is rewritten in place, which takes long.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn with(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.write(name, bytes);
        self
    }

    pub fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(self.path(), &OpenOptions::default())
    }

    pub fn open_variant(&self, variant: &str) -> Result<Checkpoint> {
        let variant = Some(variant.to_owned());
        Checkpoint::open(
            self.path(),
            &OpenOptions {
                variant,
                ..OpenOptions::default()
            },
        )
    }

    pub fn open_file(&self, name: &str) -> Result<Checkpoint> {
        Checkpoint::open(self.path().join(name), &OpenOptions::default())
    }
}

/// A file of the repository's `testdata/pytorch`.
pub fn pytorch_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/pytorch")
        .join(name)
}
