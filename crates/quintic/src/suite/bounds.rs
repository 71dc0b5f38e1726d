//! The numbers that bounds are made of; the [module](super) derives the bounds.

use crate::compute::ComputeType;
use crate::config::Activation;

/// The relative error of a rounding to f32, `e`.
pub(super) const SINGLE: f64 = 1.0 / (1u64 << 24) as f64;

/// What may be flushed to zero.
pub(super) const FLUSHED: f64 = 7.6e-37;

/// The relative error of a rounding to a type, `u`.
pub(super) fn unit(dtype: ComputeType) -> f64 {
    match dtype {
        ComputeType::F32 => SINGLE,
        ComputeType::Bf16 => 1.0 / 256.0,
        ComputeType::F16 => 1.0 / 2048.0,
    }
}

/// The absolute error of a rounding to a type where numbers are small, `t`.
pub(super) fn tiny(dtype: ComputeType) -> f64 {
    match dtype {
        ComputeType::F32 | ComputeType::Bf16 => 0.0,
        ComputeType::F16 => 1.0 / (1u64 << 25) as f64,
    }
}

/// Of a rounding of `value` to an operand.
pub(super) fn stored(dtype: ComputeType, value: f32) -> f64 {
    unit(dtype) * f64::from(value.abs()) + tiny(dtype) + FLUSHED
}

/// Of a norm of `k` values before it is stored.
pub(super) fn norm(k: usize, value: f32) -> f64 {
    (k as f64 / 2.0 + 10.0) * SINGLE * f64::from(value.abs()) + FLUSHED
}

/// Of a sum of `k` products whose magnitudes add up to `size`.
pub(super) fn sum(k: usize, size: f32) -> f64 {
    (k + 4) as f64 * SINGLE * f64::from(size) + FLUSHED
}

/// Of an activation whose argument `z` comes from a sum with this error.
pub(super) fn activated(dtype: ComputeType, activation: Activation, z: f32, sum: f64) -> f64 {
    let z = f64::from(z.abs());
    let argument = sum + unit(dtype) * z + tiny(dtype);
    match activation {
        Activation::Linear | Activation::Relu => argument,
        _ => 1.13 * argument + 16.0 * SINGLE * z.max(1.0),
    }
}

/// Of the root mean square of a pass, as a share of the result's.
pub(super) fn pass(dtype: ComputeType) -> f64 {
    match dtype {
        ComputeType::F32 => 64.0 * SINGLE,
        ComputeType::Bf16 | ComputeType::F16 => 8.0 * unit(dtype),
    }
}
