//! Safetensors files, indexes of shards, and GGUF files.

use std::collections::BTreeMap;

use quintic::Result;
use quintic::checkpoint::{Checkpoint, OpenOptions, TensorSource, infer_shape};
use quintic::config::T5Config;
use quintic::fuzzing::{open_gguf, open_safetensors, open_sharded};
use quintic::model::EncoderWeights;

/// Bytes in front of the JSON: one that chooses, a length.
pub const PREFIX: usize = 3;

/// The first byte chooses, the next two are a length `n`:
///
/// - a multiple of three: the rest is a whole file;
/// - one more: the rest is a header, `n` bytes of data follow it;
/// - two more: the rest is an index of `n` bytes, then two shards of equal size, `a` and `b`.
pub fn safetensors(input: &[u8]) {
    let Some((&[kind, low, high], rest)) = input.split_first_chunk::<PREFIX>() else {
        return;
    };
    let n = usize::from(u16::from_le_bytes([low, high]));
    match kind % 3 {
        0 => whole_file(rest.to_vec()),
        1 => {
            let mut file = (rest.len() as u64).to_le_bytes().to_vec();
            file.extend(rest);
            file.extend((0..n).map(|idx| idx as u8));
            whole_file(file);
        }
        _ => {
            let (index, shards) = rest.split_at(n.min(rest.len()));
            let (a, b) = shards.split_at(shards.len() / 2);
            let Ok(index) = std::str::from_utf8(index) else {
                return;
            };
            for shards in [&[("a", a), ("b", b)][..], &[("a", shards)][..]] {
                if let Ok(checkpoint) = open_sharded(index, shards, &OpenOptions::default()) {
                    everything(&checkpoint);
                }
            }
        }
    }
}

/// Both readers accept the file or both refuse it, and agree on what is in it.
fn whole_file(file: Vec<u8>) {
    let theirs = safetensors::SafeTensors::deserialize(&file).map(|tensors| {
        tensors
            .iter()
            .map(|(name, view)| {
                (
                    name.to_owned(),
                    (view.shape().to_vec(), view.data().to_vec()),
                )
            })
            .collect::<BTreeMap<_, _>>()
    });
    let options = OpenOptions {
        prefix: Some(String::new()),
        ..OpenOptions::default()
    };
    let no_tensors = theirs.as_ref().is_ok_and(BTreeMap::is_empty);
    // Scales of weights are checked and are not listed among the tensors.
    let has = |part: &str| {
        file.windows(part.len())
            .any(|bytes| bytes == part.as_bytes())
    };
    if has("scale") || has("comfy_quant") || has("_quantization_metadata") || has("\\u") {
        if let Ok(checkpoint) = open_safetensors(file, &OpenOptions::default()) {
            everything(&checkpoint);
        }
        return;
    }
    match (open_safetensors(file.clone(), &options), theirs) {
        (Ok(checkpoint), Ok(theirs)) => {
            assert!(checkpoint.names().eq(theirs.keys().map(String::as_str)));
            for (name, (shape, bytes)) in &theirs {
                assert_eq!(checkpoint.entry(name).unwrap().shape(), shape);
                if let Ok(tensor) = checkpoint.take(name) {
                    assert_eq!(tensor.bytes(), bytes);
                }
            }
        }
        (Err(_), Err(_)) => {}
        // A file without tensors is well formed, but nothing can be opened in it.
        (Err(_), Ok(_)) if no_tensors => {}
        // Of two tensors of one name the reference reader takes the last.
        (Err(error), Ok(_)) if error.message().contains("appears twice") => {}
        // The format wants `{` first; the reference reader lets white space precede it.
        (Err(_), Ok(_)) if file.get(8) != Some(&b'{') => {}
        (ours, theirs) => panic!("ours: {ours:?}, the reference: {:?}", theirs.err()),
    }
    if let Ok(checkpoint) = open_safetensors(file, &OpenOptions::default()) {
        everything(&checkpoint);
    }
}

/// A whole file: under the names that it has, and as a model with a config and a tokenizer.
pub fn gguf(input: &[u8]) {
    let own_names = OpenOptions {
        prefix: Some(String::new()),
        ..OpenOptions::default()
    };
    for options in [own_names, OpenOptions::default()] {
        let Ok(checkpoint) = open_gguf(input.to_vec(), &options) else {
            continue;
        };
        everything(&checkpoint);
        let _ = checkpoint.warnings();
        let _ = checkpoint.tokenizer();
        let _ = quintic::config_of(&checkpoint);
    }
}

/// Takes every tensor, and reads the shape and the weights of the encoder that may be there.
fn everything(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let entry = checkpoint.entry(name).unwrap();
        if let Ok(tensor) = checkpoint.take(name) {
            assert_eq!(tensor.shape(), entry.shape());
            assert_eq!(tensor.bytes().len() as u64, entry.n_bytes());
            if tensor.dtype().is_float() && tensor.n_elements() > 0 {
                let mut last = [0.0];
                tensor.read_f32(tensor.n_elements() - 1, &mut last);
            }
        }
    }
    let _ = checkpoint.embedded_tokenizer();
    let _ = checkpoint.metadata().count();
    let Ok(shape) = infer_shape(checkpoint) else {
        return;
    };
    if let Ok(config) = T5Config::from_inferred(&shape) {
        let mut source = TensorSource::new(checkpoint, "the tensors");
        if take_all(&mut source, &config).is_ok() {
            let _ = source.finish(EncoderWeights::belongs_to_the_rest);
        }
    }
}

fn take_all(source: &mut TensorSource<'_>, config: &T5Config) -> Result<()> {
    let weights = EncoderWeights::check(source, config)?;
    weights.take_embedding(source)?;
    for layer in 0..config.num_layers {
        weights.take_layer(source, layer)?;
    }
    weights.take_final_norm(source).map(|_| ())
}
