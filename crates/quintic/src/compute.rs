//! How products are computed: element type, precision, threads.

use std::num::NonZeroUsize;

use crate::checkpoint::Packed;
use crate::keep::Keep;
use crate::weight_type::WeightType;
use crate::{Error, Result};

/// The type that weights are kept in and products are computed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ComputeType {
    /// 32-bit floats: activations are never rounded below f32. Weights that are stored in bf16
    /// or f16 stay so in memory, which loses nothing.
    #[default]
    F32,
    /// bfloat16: weights and what flows into a product are rounded to bf16; sums and the
    /// residual stream are f32. A machine without bf16 products computes with bf16 weights in
    /// f32, which is no slower there and closer to float32.
    Bf16,
    /// 16-bit floats: weights are rounded to f16, everything else is f32. No CPU that this
    /// engine has kernels for multiplies f16 faster than f32 without accumulating in f16,
    /// which T5 overflows; so f16 halves the memory and costs no precision beyond its weights.
    F16,
}

/// Precision of f32 products, in the words of `torch.set_float32_matmul_precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MatmulPrecision {
    /// f32 products and sums. On machines with AMX an encoder's factors are split into three bf16 parts each, which are
    /// all of f32, and multiplied part by part, but for what one rounding to f32 may take: as close to exact
    /// sums, with other bits.
    #[default]
    Highest,
    /// On machines with AMX, f32 factors are split into two bf16 parts each and multiplied
    /// part by part: relative error about 1e-5, in half to two thirds of the products that `Highest` takes. Elsewhere as
    /// `Highest`, which is as fast there.
    High,
    /// bf16 products, f32 sums.
    Medium,
}

/// How a backend computes. The reference backend takes none of it but the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Compute {
    /// Type of weights and products.
    pub dtype: ComputeType,
    /// Precision of f32 products; has a meaning for [`ComputeType::F32`] alone.
    pub matmul_precision: MatmulPrecision,
    /// Threads; by default as many as this process has cores.
    pub threads: Option<NonZeroUsize>,
    /// Multiplies the gain of each RMSNorm into the product that follows it, once, at load.
    /// Changes rounding.
    pub fold_norm_gains: bool,
    /// What is made of the weights of products.
    pub weights: WeightType,
    /// Products that `weights` leaves out; has no meaning for [`WeightType::AsStored`].
    pub keep: Keep,
}

/// What is chosen of a [`Compute`]. What is left open is as the model was packed, if it was, and
/// the default otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ComputeChoice {
    /// Type of weights and products.
    pub dtype: Option<ComputeType>,
    /// Precision of f32 products.
    pub matmul_precision: Option<MatmulPrecision>,
    /// Threads.
    pub threads: Option<NonZeroUsize>,
    /// Whether the norms' gains are multiplied into the products behind them.
    pub fold_norm_gains: Option<bool>,
    /// What is made of the weights of products.
    pub weights: Option<WeightType>,
    /// Products that `weights` leaves out; none by default.
    pub keep: Option<Keep>,
}

impl From<Compute> for ComputeChoice {
    fn from(compute: Compute) -> Self {
        ComputeChoice {
            dtype: Some(compute.dtype),
            matmul_precision: Some(compute.matmul_precision),
            threads: compute.threads,
            fold_norm_gains: Some(compute.fold_norm_gains),
            weights: Some(compute.weights),
            keep: Some(compute.keep),
        }
    }
}

impl ComputeChoice {
    /// The choice, completed by what a packed model is packed for or by the defaults.
    ///
    /// # Errors
    ///
    /// As [`Packed::check`].
    pub fn resolve(&self, packed: Option<&Packed>) -> Result<Compute> {
        let open = packed.map_or_else(Compute::default, Packed::compute);
        let weights = self.weights.unwrap_or(open.weights);
        let compute = Compute {
            dtype: self.dtype.unwrap_or(open.dtype),
            matmul_precision: self.matmul_precision.unwrap_or(open.matmul_precision),
            threads: self.threads,
            fold_norm_gains: self.fold_norm_gains.unwrap_or(open.fold_norm_gains),
            weights,
            keep: self.keep.unwrap_or(match weights == open.weights {
                true => open.keep,
                false => Keep::default(),
            }),
        };
        packed.map_or(Ok(()), |packed| packed.check(&compute))?;
        Ok(compute)
    }
}

impl ComputeType {
    /// Every type.
    pub const ALL: [ComputeType; 3] = [ComputeType::F32, ComputeType::Bf16, ComputeType::F16];

    /// `f32`, `bf16` or `f16`.
    pub fn name(self) -> &'static str {
        match self {
            ComputeType::F32 => "f32",
            ComputeType::Bf16 => "bf16",
            ComputeType::F16 => "f16",
        }
    }

    /// The type of a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| {
                Error::unsupported(format!(
                    "products cannot be computed in `{name}`, expected `f32`, `bf16` or `f16`"
                ))
            })
    }
}

impl MatmulPrecision {
    /// Every precision.
    pub const ALL: [MatmulPrecision; 3] = [
        MatmulPrecision::Highest,
        MatmulPrecision::High,
        MatmulPrecision::Medium,
    ];

    /// `highest`, `high` or `medium`.
    pub fn name(self) -> &'static str {
        match self {
            MatmulPrecision::Highest => "highest",
            MatmulPrecision::High => "high",
            MatmulPrecision::Medium => "medium",
        }
    }

    /// The precision of a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.name() == name)
            .ok_or_else(|| {
                Error::unsupported(format!(
                    "there is no matmul precision `{name}`, expected `highest`, `high` or `medium`"
                ))
            })
    }
}
