//! What tells one checkpoint from another without reading all of it.

use crate::checkpoint::Checkpoint;
use crate::{ErrorKind, Result};

/// Pieces of a large tensor that are read, spread evenly from its first byte to its last.
const PIECES: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 256;

/// A text that two checkpoints share if they hold the same tensors.
///
/// Hashed are, tensor by tensor in the order of their names (without a prefix): name, type, shape,
/// the scale of an 8-bit float type, and of the values 16 pieces of 256 bytes from the first to the
/// last, or all if there are no more. So it does not depend on file names, shards or metadata, and
/// of a file that is mapped it reads some 16 pages a tensor, whatever its size. (Of a PyTorch file
/// each tensor is read.) Other models, fine-tunes and other types differ in it; a checkpoint
/// that was changed in a few values alone, between the pieces, does not.
///
/// The hash is FNV-1a of 128 bits: it is there to notice mistakes, and stands against nobody who
/// wants to deceive.
///
/// # Errors
///
/// As [`Checkpoint::take`]; of a tensor whose type cannot be taken, name, type and shape count.
pub fn fingerprint(checkpoint: &Checkpoint) -> Result<String> {
    let mut hash = Fnv::default();
    for (name, entry) in checkpoint.entries() {
        hash.text(name);
        hash.text(entry.dtype_name());
        hash.number(entry.shape().len() as u64);
        for &extent in entry.shape() {
            hash.number(extent as u64);
        }
        let tensor = match checkpoint.take(name) {
            Ok(tensor) => tensor,
            Err(error) if error.kind() == ErrorKind::Unsupported => continue,
            Err(error) => return Err(error),
        };
        hash.number(u64::from(tensor.scale().to_bits()));
        let bytes = tensor.bytes();
        hash.number(bytes.len() as u64);
        if bytes.len() <= PIECES * PIECE {
            hash.bytes(bytes);
            continue;
        }
        for piece in 0..PIECES {
            let last = (bytes.len() - PIECE) as u128;
            // Below `bytes.len()`.
            let first = (last * piece as u128 / (PIECES - 1) as u128) as usize;
            hash.bytes(&bytes[first..first + PIECE]);
        }
        tensor.release();
    }
    Ok(format!("fnv1a-128:{:032x}", hash.0))
}

/// FNV-1a (Fowler, Noll, Vo) in its form of 128 bits.
struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(Self::PRIME);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// With its length, so that it ends where it ends.
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::OpenOptions;
    use crate::output::safetensors::{SafetensorsWriter, TensorSpec};
    use crate::tensor::DType;

    /// Values that the hash's authors give.
    #[test]
    fn the_hash_is_the_published_one() {
        let of = |text: &str| {
            let mut hash = Fnv::default();
            hash.bytes(text.as_bytes());
            hash.0
        };
        assert_eq!(of(""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(of("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(of("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    /// A file with one tensor of an encoder, so that its prefix is found.
    fn of(folder: &Path, name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> String {
        let path = folder.join("x.safetensors");
        let specs = [TensorSpec::new(name, dtype, shape)];
        let mut file = SafetensorsWriter::create(&path, &specs, &[]).unwrap();
        file.append(0, values).unwrap();
        file.finish().unwrap();
        let options = OpenOptions {
            prefix: Some(String::new()),
            ..OpenOptions::default()
        };
        fingerprint(&Checkpoint::open(&path, &options).unwrap()).unwrap()
    }

    #[test]
    fn it_tells_names_types_shapes_and_values() {
        let folder = tempfile::tempdir().unwrap();
        let name = "encoder.block.0.layer.0.SelfAttention.q.weight";
        let values: Vec<f32> = (0..8192).map(|at| at as f32).collect();
        let of = |name, dtype, shape: &[usize], values: &[f32]| {
            of(folder.path(), name, dtype, shape, values)
        };
        let plain = of(name, DType::F32, &[64, 128], &values);
        assert_eq!(plain, of(name, DType::F32, &[64, 128], &values));
        let (mut first, mut last) = (values.clone(), values.clone());
        first[0] = 0.5;
        last[8191] = 0.5;
        let other = "encoder.block.0.layer.0.SelfAttention.k.weight";
        let others = [
            of(other, DType::F32, &[64, 128], &values),
            of(name, DType::BF16, &[64, 128], &values),
            of(name, DType::F32, &[128, 64], &values),
            of(name, DType::F32, &[64, 128], &first),
            of(name, DType::F32, &[64, 128], &last),
        ];
        for (at, one) in others.iter().enumerate() {
            assert_ne!(*one, plain);
            assert!(!others[..at].contains(one));
        }
        // What it cannot tell, and says so: a value between the pieces.
        let mut between = values.clone();
        between[1000] = 0.5;
        assert_eq!(of(name, DType::F32, &[64, 128], &between), plain);
        // Of a small tensor every value counts.
        let small: Vec<f32> = (0..16).map(|at| at as f32).collect();
        let plain = of(name, DType::F32, &[4, 4], &small);
        for at in 0..16 {
            let mut changed = small.clone();
            changed[at] += 0.25;
            assert_ne!(of(name, DType::F32, &[4, 4], &changed), plain, "{at}");
        }
    }
}
