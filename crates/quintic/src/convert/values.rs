//! A tensor's values on their way into another type.

use half::{bf16, f16};
use quintic_kernels::Pool;

use super::blocks::Encoder;
use crate::output::gguf::GgmlType;
use crate::{Error, Result, Tensor};

/// Values converted at a time: a multiple of every block.
const PIECE: usize = 1 << 20;

/// Blocks for which a thread is worth starting: a tenth of a millisecond and more.
const MIN_SHARE: usize = 1024;

/// What becomes of finite values that the type cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Overflow {
    /// An error that names the value.
    #[default]
    Refuse,
    /// The largest that there is, with their sign.
    Saturate,
}

/// Converts `tensor` to `to` and hands the bytes on piece by piece. Returns how many values were
/// saturated.
///
/// # Errors
///
/// [`ErrorKind::Input`](crate::ErrorKind::Input) for a finite value that 16 bits cannot hold, and for
/// any value that is not finite in blocks, whose scale would spoil its neighbours; what `write`
/// reports.
///
/// # Panics
///
/// If the tensor is not of a float type, or has no whole number of blocks.
pub(super) fn convert(
    tensor: &Tensor,
    to: GgmlType,
    overflow: Overflow,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let n_values = tensor.n_elements();
    let mut values = vec![0.0; n_values.min(PIECE)];
    let mut bytes = Vec::new();
    let mut n_saturated = 0;
    for from in (0..n_values).step_by(PIECE) {
        let values = &mut values[..PIECE.min(n_values - from)];
        tensor.read_f32(from, values);
        bytes.clear();
        match to {
            GgmlType::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            GgmlType::BF16 => n_saturated += narrow::<bf16>(values, from, overflow, &mut bytes)?,
            GgmlType::F16 => n_saturated += narrow::<f16>(values, from, overflow, &mut bytes)?,
            blocks => quantise(values, from, blocks, &mut bytes)?,
        }
        write(&bytes)?;
        tensor.release();
    }
    Ok(n_saturated)
}

/// A float of 16 bits.
trait Narrow: Copy {
    const NAME: &'static str;
    /// The largest one.
    const MAX: f32;

    /// The nearest one, to even in the middle, and whether a finite value became infinite.
    fn of(value: f32) -> (Self, bool);
    fn bytes(self) -> [u8; 2];
}

impl Narrow for f16 {
    const NAME: &'static str = "f16";
    const MAX: f32 = 65504.0;

    fn of(value: f32) -> (Self, bool) {
        let narrow = f16::from_f32(value);
        (narrow, narrow.is_infinite() && value.is_finite())
    }

    fn bytes(self) -> [u8; 2] {
        self.to_le_bytes()
    }
}

impl Narrow for bf16 {
    const NAME: &'static str = "bf16";
    const MAX: f32 = bf16::MAX.to_f32_const();

    fn of(value: f32) -> (Self, bool) {
        let narrow = bf16::from_f32(value);
        (narrow, narrow.is_infinite() && value.is_finite())
    }

    fn bytes(self) -> [u8; 2] {
        self.to_le_bytes()
    }
}

fn narrow<N: Narrow>(
    values: &[f32],
    from: usize,
    overflow: Overflow,
    bytes: &mut Vec<u8>,
) -> Result<u64> {
    let mut n_saturated = 0;
    for (at, &value) in values.iter().enumerate() {
        let (mut narrow, is_beyond) = N::of(value);
        if is_beyond {
            if overflow == Overflow::Refuse {
                return Err(Error::input(format!(
                    "value {value} at element {} is beyond the range of {} ({})",
                    from + at,
                    N::NAME,
                    N::MAX
                ))
                .hint(
                    "take a type of larger range, or saturate: such values become the largest \
                     that there is",
                ));
            }
            n_saturated += 1;
            narrow = N::of(N::MAX.copysign(value)).0;
        }
        bytes.extend(narrow.bytes());
    }
    Ok(n_saturated)
}

/// Blocks, made by as many threads as the machine has. A block depends on its values alone.
fn quantise(values: &[f32], from: usize, to: GgmlType, bytes: &mut Vec<u8>) -> Result<()> {
    let Some(encoder) = Encoder::of(to) else {
        unreachable!("{to:?} has no blocks");
    };
    let largest = encoder.largest;
    let beyond = |value: &f32| value.is_nan() || value.abs() > largest;
    if let Some(at) = values.iter().position(beyond) {
        return Err(Error::input(format!(
            "value {} at element {} cannot be quantised, expected at most {largest}",
            values[at],
            from + at
        )));
    }
    let n_blocks = values.len() / encoder.values;
    bytes.resize(n_blocks * encoder.bytes, 0);
    let share = n_blocks.div_ceil(Pool::default_threads()).max(MIN_SHARE);
    if share >= n_blocks {
        encoder.encode(values, bytes);
        return Ok(());
    }
    let shares = values
        .chunks(share * encoder.values)
        .zip(bytes.chunks_mut(share * encoder.bytes));
    std::thread::scope(|scope| {
        for (values, bytes) in shares {
            scope.spawn(move || encoder.encode(values, bytes));
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(values: &[f32], to: GgmlType, overflow: Overflow) -> Result<(Vec<u8>, u64)> {
        let tensor = Tensor::from_f32("x", vec![values.len()], values);
        let mut bytes = Vec::new();
        let n = convert(&tensor, to, overflow, |piece| {
            bytes.extend(piece);
            Ok(())
        })?;
        Ok((bytes, n))
    }

    #[test]
    fn halves_are_rounded_once_to_even() {
        // In the middle between 1 and its neighbours in bf16, and just above.
        let (low, high): (f32, f32) = (1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0);
        let values = [
            low,
            high,
            f32::from_bits(low.to_bits() + 1),
            f32::NEG_INFINITY,
        ];
        let (bytes, n) = converted(&values, GgmlType::BF16, Overflow::Refuse).unwrap();
        assert_eq!(bytes, [0x80, 0x3f, 0x82, 0x3f, 0x81, 0x3f, 0x80, 0xff]);
        assert_eq!(n, 0);
    }

    #[test]
    fn what_does_not_fit_is_named_or_saturates() {
        // 65519 is still nearer to 65504 than to the next power.
        let values = [1.0, 65519.0, -65520.0, f32::INFINITY];
        let error = converted(&values, GgmlType::F16, Overflow::Refuse).unwrap_err();
        let expected = "value -65520 at element 2 is beyond the range of f16 (65504)";
        assert!(error.to_string().starts_with(expected), "{error}");
        let (bytes, n) = converted(&values, GgmlType::F16, Overflow::Saturate).unwrap();
        assert_eq!(bytes, [0x00, 0x3c, 0xff, 0x7b, 0xff, 0xfb, 0x00, 0x7c]);
        assert_eq!(n, 1);
        // bf16 has nearly the range of f32.
        let values = [f32::MAX, -3.3895e38];
        let error = converted(&values, GgmlType::BF16, Overflow::Refuse).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("at element 0 is beyond the range of bf16")
        );
        let (bytes, n) = converted(&values, GgmlType::BF16, Overflow::Saturate).unwrap();
        assert_eq!(bytes, [0x7f, 0x7f, 0x7f, 0xff]);
        assert_eq!(n, 1);
    }

    #[test]
    fn pieces_are_joined() {
        let values: Vec<f32> = (0..PIECE + 64).map(|i| (i % 255) as f32 - 127.0).collect();
        let (bytes, _) = converted(&values, GgmlType::F32, Overflow::Refuse).unwrap();
        let expected: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(bytes == expected);
        // However many threads there are, blocks are those that each has by itself.
        for (to, n) in [
            (GgmlType::Q8_0, PIECE + 64),
            (GgmlType::Q4_K, PIECE),
            (GgmlType::Q6_K, 2048 * 256),
            (GgmlType::Q5_0, 32),
        ] {
            let values = &values[..n];
            let (bytes, _) = converted(values, to, Overflow::Refuse).unwrap();
            let encoder = Encoder::of(to).unwrap();
            let mut expected = vec![0; n / encoder.values * encoder.bytes];
            for (values, out) in values
                .chunks_exact(encoder.values)
                .zip(expected.chunks_exact_mut(encoder.bytes))
            {
                encoder.encode(values, out);
            }
            assert!(bytes == expected, "{to:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_not_quantised() {
        for bad in [f32::NAN, f32::INFINITY, 1e7] {
            let mut values = [1.0; 256];
            values[40] = bad;
            for to in [
                GgmlType::Q8_0,
                GgmlType::Q4_0,
                GgmlType::Q4_1,
                GgmlType::Q4_K,
            ] {
                let error = converted(&values, to, Overflow::Saturate).unwrap_err();
                assert!(
                    error.to_string().contains("at element 40 cannot be"),
                    "{error}"
                );
            }
        }
        let (bytes, n) = converted(&[], GgmlType::Q8_0, Overflow::Refuse).unwrap();
        assert!(bytes.is_empty() && n == 0);
    }
}
