//! Weights in integers: which products get them, and that a model with them is the reference's
//! over the numbers that they stand for.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::batch::PackedBatch;
use crate::checkpoint::{Checkpoint, OpenOptions, TensorSource};
use crate::keep::{Keep, Stack};
use crate::model::TakeTensor;
use crate::weight_type::ProductKind;
use crate::{BackendKind, ErrorKind, TextEncoder};

fn compute(weights: WeightType, keep: &[ProductKind]) -> Compute {
    Compute {
        weights,
        keep: Keep::of(keep),
        ..Compute::default()
    }
}

/// A product of this kind.
fn of(kind: ProductKind) -> Site {
    Site {
        stack: Stack::Encoder,
        layer: 0,
        kind,
    }
}

fn weight(rows: usize, columns: usize) -> Weights {
    let values: Vec<f32> = (0..rows * columns).map(|at| at as f32 - 7.0).collect();
    Weights::Stacked(vec![Tensor::from_f32("w", vec![rows, columns], &values)])
}

#[test]
fn what_is_kept_is_not_in_integers() {
    let storages = [
        (WeightType::AsStored, Storage::F32),
        (WeightType::Int8, Storage::Int8),
        (WeightType::Int4, Storage::Int4),
        (WeightType::W8A8, Storage::Int8Dynamic),
    ];
    for (weights, storage) in storages {
        for kept in ProductKind::ALL {
            let cpu = Cpu::with_isa(Isa::Portable, &compute(weights, &[kept])).unwrap();
            for kind in ProductKind::ALL {
                let expected = match (weights, kind) {
                    _ if kind == kept => Storage::F32,
                    (WeightType::W8A8, ProductKind::Wo | ProductKind::Head) => Storage::Int8Wide,
                    _ => storage,
                };
                let shape = cpu.packed_shape(Some(of(kind)), &weight(3, 5), false);
                assert_eq!(shape.storage, expected, "{weights:?} {kind:?}");
                let matrix = cpu.prepare_product(of(kind), weight(3, 5), None).unwrap();
                assert_eq!(matrix.shape(), shape);
            }
            // Of a matrix that is no product of a model's nothing was said.
            let matrix = cpu.prepare_matrix(weight(3, 5), None).unwrap();
            assert_eq!(matrix.shape().storage, Storage::F32);
        }
    }
}

/// Where a half type was asked for and the CPU has dot products of bytes.
#[test]
fn weights_in_integers_meet_sixteen_bits() {
    let narrow = [Storage::Int8, Storage::Int4];
    let wide = [Storage::Int8Wide, Storage::Int4Wide];
    for isa in Isa::available() {
        let has_bytes = match isa {
            Isa::Portable | Isa::Avx2 => false,
            #[cfg(target_arch = "x86_64")]
            _ => is_x86_feature_detected!("avx512vnni") || isa == Isa::Amx,
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        for (dtype, matmul_precision, is_half) in [
            (ComputeType::F32, MatmulPrecision::Highest, false),
            (ComputeType::F32, MatmulPrecision::High, false),
            (ComputeType::F32, MatmulPrecision::Medium, true),
            (ComputeType::Bf16, MatmulPrecision::Highest, true),
            (ComputeType::F16, MatmulPrecision::Highest, true),
        ] {
            let expected = if is_half && has_bytes { wide } else { narrow };
            for (weights, expected) in [WeightType::Int8, WeightType::Int4].iter().zip(expected) {
                let compute = Compute {
                    dtype,
                    matmul_precision,
                    ..compute(*weights, &[])
                };
                let cpu = Cpu::with_isa(isa, &compute).unwrap();
                let matrix = cpu.prepare_product(of(ProductKind::Wi), weight(3, 5), None);
                let found = matrix.unwrap().shape().storage;
                assert_eq!(found, expected, "{isa} {dtype:?} {matmul_precision:?}");
                // It is stored as on every other machine.
                let stored = cpu.packed_shape(Some(of(ProductKind::Wi)), &weight(3, 5), false);
                assert!(narrow.contains(&stored.storage));
                // More terms than sums of integers can be trusted with.
                let deep = weight(1, kernels::MAX_INT_DEPTH + 1);
                let matrix = cpu.prepare_product(of(ProductKind::Wi), deep, None);
                assert!(narrow.contains(&matrix.unwrap().shape().storage));
            }
        }
    }
}

#[test]
fn sums_that_could_overflow_are_refused() {
    let cpu = Cpu::with_isa(Isa::Portable, &compute(WeightType::W8A8, &[])).unwrap();
    let most = kernels::MAX_INT_DEPTH;
    assert!(
        cpu.prepare_product(of(ProductKind::O), weight(1, most), None)
            .is_ok()
    );
    let error = cpu
        .prepare_product(of(ProductKind::O), weight(1, most + 1), None)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("131072 terms"), "{error}");
}

#[test]
fn other_backends_refuse_integers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens/umt5");
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    let compute = compute(WeightType::Int8, &[]);
    let error = TextEncoder::from_checkpoint(&checkpoint, BackendKind::Reference, &compute)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("`weights`"), "{error}");
}

/// A model whose products' weights are replaced by what 8-bit integers make of them.
struct Rounded<'a> {
    source: TensorSource<'a>,
    names: BTreeMap<String, ()>,
}

impl TakeTensor for Rounded<'_> {
    fn contains(&self, name: &str) -> bool {
        TakeTensor::contains(&self.source, name)
    }

    fn require(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        TakeTensor::require(&mut self.source, wanted)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = TakeTensor::take(&mut self.source, name, shape)?;
        let is_product = name.contains("SelfAttention.") && !name.contains("_bias.")
            || name.contains("DenseReluDense.wi");
        if !is_product {
            return Ok(tensor);
        }
        self.names.insert(name.to_owned(), ());
        let mut values = tensor.to_f32();
        for row in values.chunks_mut(shape[1]) {
            let largest = row.iter().fold(0.0f32, |most, &value| {
                if value.abs() > most.abs() {
                    value
                } else {
                    most
                }
            });
            // Of these shares of the step with which the largest is -128, the one with the least squared error of codes times
            // the factor that fits them best.
            let mut best = (f64::INFINITY, Vec::new());
            for percent in 80..=100 {
                let step = -largest / 128.0 * (percent as f32 / 100.0);
                let codes = row.iter().map(|value| (value / step).round_ties_even());
                let codes: Vec<f64> = codes
                    .map(|code| f64::from(code.clamp(-128.0, 127.0)))
                    .collect();
                let pairs = || row.iter().map(|&value| f64::from(value)).zip(&codes);
                let factor = pairs().map(|(value, code)| value * code).sum::<f64>()
                    / codes.iter().map(|code| code * code).sum::<f64>();
                let error: f64 = pairs()
                    .map(|(value, code)| (value - factor * code).powi(2))
                    .sum();
                if error < best.0 {
                    best = (
                        error,
                        codes.iter().map(|code| (factor * code) as f32).collect(),
                    );
                }
            }
            row.copy_from_slice(&best.1);
        }
        Ok(Tensor::from_f32(name, shape.to_vec(), &values))
    }
}

/// 8 bits over the whole encoder but `wo`, against the reference over the rounded weights, and
/// with bytes flowing in no further from that than their rounding allows.
#[test]
fn a_model_in_integers_is_the_reference_over_what_they_stand_for() {
    for name in ["t5-v1_1", "umt5"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../testdata/goldens")
            .join(name);
        let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
        let rows = [vec![3, 1, 4, 1, 5, 9, 2, 6], vec![5], vec![35; 40]];
        let config = crate::config_of(&checkpoint).unwrap();
        let batch = PackedBatch::from_rows(&rows, config.vocab_size).unwrap();
        let mut rounded = Rounded {
            source: TensorSource::new(&checkpoint, "config.json"),
            names: BTreeMap::new(),
        };
        let reference = BackendKind::Reference;
        let encoder =
            TextEncoder::from_source(config.clone(), &mut rounded, reference, &Compute::default())
                .unwrap();
        let gated = usize::from(config.feed_forward.gated);
        assert_eq!(rounded.names.len(), config.num_layers * (5 + gated));
        let expected = encoder.hidden_states(&batch, false).unwrap().last;
        let size = expected
            .iter()
            .map(|x| f64::from(x * x))
            .sum::<f64>()
            .sqrt();
        let distance = |dtype, weights| {
            let compute = Compute {
                dtype,
                ..compute(weights, &[ProductKind::Wo])
            };
            let encoder =
                TextEncoder::from_checkpoint(&checkpoint, BackendKind::Cpu, &compute).unwrap();
            let found = encoder.hidden_states(&batch, false).unwrap().last;
            let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
            found.iter().zip(&expected).map(square).sum::<f64>().sqrt() / size
        };
        // Some thousand roundings of f32, as between backends.
        let int8 = distance(ComputeType::F32, WeightType::Int8);
        assert!(int8 <= 1e-5, "{name}: {int8}");
        // The same with a step of the largest / 32,639, a 257th of what stands below, where the CPU has dot
        // products of bytes. `wo` is in f16 here, with a rounding of up to 2^-11 a weight, a third of
        // that at random, in two or three layers.
        let wide = distance(ComputeType::F16, WeightType::Int8);
        assert!((1e-6..1e-3).contains(&wide), "{name}: {wide}");
        // Rounding to a step of the largest / 127 errs by step / sqrt(12): with a largest value of
        // 3 to 5 times the root mean square by 0.7 % to 1.1 % a product, of which a layer here has
        // three and the model two or three layers.
        let bytes = distance(ComputeType::F32, WeightType::W8A8);
        assert!((1e-4..0.05).contains(&bytes), "{name}: {bytes}");
    }
}
