//! `x W^T` with f64 sums, over weights in their own type.

use super::{Reference, Rows};
use crate::backend::{Epilogue, Weights};
use crate::config::Activation;
use crate::tensor::Tensor;

/// Output columns widened at a time: a block of weights of this many rows is widened to f64
/// once and multiplied with all tokens while it is warm in cache.
const BLOCK_COLUMNS: usize = 64;

pub(super) fn linear(x: &Rows, w: &Weights, epilogue: Epilogue<'_, Reference>) {
    match (w, epilogue) {
        (Weights::Stacked(parts), Epilogue::Store(out)) => {
            stacked(x, parts, |token, column, value| {
                out.row_mut(token)[column] = value as f32;
            });
        }
        (Weights::Stacked(parts), Epilogue::Add(out)) => {
            // The sum is rounded once, so the residual loses less than a rounded product
            // added to it would.
            stacked(x, parts, |token, column, value| {
                let sum = &mut out.row_mut(token)[column];
                *sum = (f64::from(*sum) + value) as f32;
            });
        }
        (Weights::Stacked(parts), Epilogue::Activate(activation, out)) => {
            stacked(x, parts, |token, column, value| {
                out.row_mut(token)[column] = activate(activation, value) as f32;
            });
        }
        (Weights::Gated { gate, up }, Epilogue::Gate(activation, out)) => {
            // `up` first: `gate`, still in f64, then meets it in `out`'s place.
            let mut ups = vec![0.0f64; x.rows * up.shape()[0]];
            let width = up.shape()[0];
            product(x, up, |token, column, value| {
                ups[token * width + column] = value
            });
            product(x, gate, |token, column, value| {
                let up = ups[token * width + column];
                out.row_mut(token)[column] = (activate(activation, value) * up) as f32;
            });
        }
        (Weights::Gated { .. }, _) | (Weights::Stacked(_), Epilogue::Gate(..)) => {
            panic!("gated weights go with a gating epilogue, and only they")
        }
        (Weights::Packed(_), _) => unreachable!("refused by `prepare_matrix`"),
    }
}

pub(super) fn logits(x: &Rows, head: &Weights, scale: f32) -> Rows {
    let Weights::Stacked(parts) = head else {
        panic!("an output head is neither gated nor packed")
    };
    let vocab = parts.iter().map(|part| part.shape()[0]).sum();
    let mut out = Rows::zeros(x.rows, vocab);
    stacked(x, parts, |row, id, value| {
        out.row_mut(row)[id] = (value * f64::from(scale)) as f32;
    });
    out
}

/// The parts' products side by side.
fn stacked(x: &Rows, parts: &[Tensor], mut write: impl FnMut(usize, usize, f64)) {
    let mut first_column = 0;
    for part in parts {
        product(x, part, |token, column, value| {
            write(token, first_column + column, value)
        });
        first_column += part.shape()[0];
    }
}

/// Calls `write(token, column, sum over k of x[token, k] * w[column, k])` for every element.
///
/// # Numerics
///
/// Products of two f32 are exact in f64. The sum over `k` runs in an order that depends on
/// the instruction set but not on the other tokens, so a row's result does not depend on
/// what it is batched with. The relative error of a sum is at most `d_in * 2^-53` of
/// `sum |x| |w|`, which vanishes in the rounding to f32 that follows.
fn product(x: &Rows, w: &Tensor, mut write: impl FnMut(usize, usize, f64)) {
    let [d_out, d_in] = *w.shape() else {
        panic!("{w:?} is not a matrix")
    };
    assert_eq!(
        x.columns, d_in,
        "product of [{}, {}] with {w:?}",
        x.rows, x.columns
    );
    if x.rows == 0 {
        return;
    }
    let wide: Vec<f64> = x.data.iter().map(|&value| f64::from(value)).collect();
    let mut narrow = vec![0.0f32; BLOCK_COLUMNS * d_in];
    let mut block = vec![0.0f64; BLOCK_COLUMNS * d_in];
    let mut sums = vec![0.0f64; x.rows * BLOCK_COLUMNS];
    for first in (0..d_out).step_by(BLOCK_COLUMNS) {
        let n_columns = BLOCK_COLUMNS.min(d_out - first);
        let narrow = &mut narrow[..n_columns * d_in];
        w.read_f32(first * d_in, narrow);
        for (wide, &narrow) in block.iter_mut().zip(narrow.iter()) {
            *wide = f64::from(narrow);
        }
        // SAFETY: `wide` holds rows * d_in values with row stride d_in; `block` holds at
        // least d_in * n_columns values, read as its transpose with strides (1, d_in);
        // `sums` holds at least rows * n_columns values with row stride n_columns.
        unsafe {
            matrixmultiply::dgemm(
                x.rows,
                d_in,
                n_columns,
                1.0,
                wide.as_ptr(),
                d_in as isize,
                1,
                block.as_ptr(),
                1,
                d_in as isize,
                0.0,
                sums.as_mut_ptr(),
                n_columns as isize,
                1,
            );
        }
        for (token, sums) in sums.chunks_exact(n_columns).take(x.rows).enumerate() {
            for (column, &sum) in sums.iter().enumerate() {
                write(token, first + column, sum);
            }
        }
    }
}

/// The activation in f64. Formulas as in `activations.py` of transformers.
fn activate(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        // Not `max`, which would turn a NaN into 0.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Linear => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from the closed forms, computed to 20 digits with an arbitrary-precision tool.
    #[test]
    fn activations_at_known_points() {
        let close = |found: f64, expected: f64| (found - expected).abs() < 1e-14;
        assert_eq!(activate(Activation::Relu, -1.5), 0.0);
        assert_eq!(activate(Activation::Relu, 1.5), 1.5);
        assert!(close(
            activate(Activation::GeluErf, 1.0),
            0.841_344_746_068_542_9
        ));
        assert!(close(
            activate(Activation::GeluTanh, 1.0),
            0.841_191_990_608_276_1
        ));
        assert!(close(
            activate(Activation::Silu, 1.0),
            0.731_058_578_630_004_9
        ));
        assert!(close(
            activate(Activation::QuickGelu, 1.0),
            0.845_795_765_932_821_3
        ));
        assert!(close(activate(Activation::Sigmoid, 0.0), 0.5));
        for activation in Activation::ALL {
            for x in [f64::MIN_POSITIVE, 1e30, -1e30, 0.0] {
                assert!(!activate(activation, x).is_nan(), "{activation:?}({x})");
            }
        }
    }
}
