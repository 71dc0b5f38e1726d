//! The CPU backend on every instruction set of this machine, and on emulated tiles where only
//! those are missing, against the same files as the reference backend.

#![allow(clippy::unwrap_used)]

#[path = "golden_files/cases.rs"]
mod golden_cases;
mod golden_files;

use std::path::Path;

use golden_cases::{cases, truth};
use golden_files::{batch, goldens};
use quintic::backend::Backend;
use quintic::backend::cpu::Cpu;
use quintic::batch::{PackedBatch, PadRows, PaddedBatch, PaddedMask};
use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile, TensorSource};
use quintic::config::T5Config;
use quintic::model::Encoder;
use quintic::{Compute, ComputeType, MatmulPrecision, Pass, config_of};
use quintic_kernels::Isa;

/// Every instruction set that can run here, tiles emulated if need be.
fn isas() -> Vec<Isa> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        quintic_tiles::install();
        // SAFETY: the emulator answers for tile instructions in the whole process.
        unsafe { quintic_kernels::testing::assume_tiles() };
    }
    Isa::available()
}

fn load(folder: &Path, isa: Isa, compute: &Compute) -> (Encoder<Cpu>, T5Config) {
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    let config = config_of(&checkpoint).unwrap();
    let mut source = TensorSource::new(&checkpoint, "config.json");
    let cpu = Cpu::with_isa(isa, compute).unwrap();
    (
        Encoder::load(cpu, config.clone(), &mut source).unwrap(),
        config,
    )
}

fn relative_rms(found: &[f32], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let square = |x: f64| x * x;
    let error: f64 = found
        .iter()
        .zip(truth)
        .map(|(&f, &t)| square(f64::from(f) - t))
        .sum();
    (error / truth.iter().map(|&t| square(t)).sum::<f64>()).sqrt()
}

/// The last hidden state of a case, padding computed.
fn run_case(encoder: &Encoder<Cpu>, config: &T5Config, model: &str, case: &str) -> Vec<f32> {
    let file = SafetensorsFile::open(&goldens().join(model).join("cases.safetensors")).unwrap();
    let padded = batch(&file, case);
    let (packed, layout) = padded.pack(PadRows::Compute, config.vocab_size).unwrap();
    let last = encoder
        .backend()
        .read_stream(&encoder.encode(&packed, &Pass::default()).unwrap().last)
        .unwrap();
    layout.unpack(&last, config.d_model)
}

fn last_state(encoder: &Encoder<Cpu>, config: &T5Config, ids: &[u32]) -> Vec<f32> {
    let batch = PackedBatch::from_rows(&[ids], config.vocab_size).unwrap();
    encoder
        .backend()
        .read_stream(&encoder.encode(&batch, &Pass::default()).unwrap().last)
        .unwrap()
}

/// Bounds are of the relative root mean square. f32: these models have at most 3 layers and
/// about 15 roundings of 2^-24 on a path through one, amplified by norms after outliers;
/// transformers in float32 reaches 4e-6 on them. Two bf16 parts keep 16 bits: 2^-17 in place
/// of 2^-24, so 128 times as much, but 5e-5 is what is promised. bf16 keeps 8 bits, f16 11 of
/// the weights.
#[test]
fn every_instruction_set_and_type_is_near_float64() {
    let f32_as = |matmul_precision| Compute {
        matmul_precision,
        ..Compute::default()
    };
    let dtype = |dtype| Compute {
        dtype,
        ..Compute::default()
    };
    let computes = [
        (Compute::default(), 4e-6),
        (f32_as(MatmulPrecision::High), 5e-5),
        (f32_as(MatmulPrecision::Medium), 3e-2),
        (dtype(ComputeType::Bf16), 3e-2),
        (dtype(ComputeType::F16), 4e-3),
        (
            Compute {
                fold_norm_gains: true,
                ..Compute::default()
            },
            4e-6,
        ),
    ];
    let cases = cases();
    assert!(cases.len() >= 21, "{}", cases.len());
    for isa in isas() {
        for (compute, bound) in &computes {
            for (model, case) in &cases {
                let (encoder, config) = load(&goldens().join(model), isa, compute);
                let found = run_case(&encoder, &config, model, case);
                let error = relative_rms(&found, &truth(model, case));
                assert!(
                    error <= *bound,
                    "{isa}, {compute:?}, {model}, {case}: {error:e}, allowed {bound:e}"
                );
            }
        }
    }
}

/// Bits of a row: alone, among others, and on another number of threads.
#[test]
fn a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads() {
    let rows: Vec<Vec<u32>> = [1usize, 2, 16, 17, 0, 40, 33]
        .into_iter()
        .map(|n| (0..n).map(|i| ((i * 31 + n * 7) % 64) as u32).collect())
        .collect();
    for isa in isas() {
        for dtype in ComputeType::ALL {
            for model in ["t5-v1_1", "umt5"] {
                let compute = |threads: usize| Compute {
                    dtype,
                    threads: threads.try_into().ok(),
                    ..Compute::default()
                };
                let (encoder, config) = load(&goldens().join(model), isa, &compute(1));
                let (threaded, _) = load(&goldens().join(model), isa, &compute(3));
                let batch = PackedBatch::from_rows(&rows, config.vocab_size).unwrap();
                let all = |encoder: &Encoder<Cpu>| {
                    encoder
                        .backend()
                        .read_stream(&encoder.encode(&batch, &Pass::default()).unwrap().last)
                        .unwrap()
                };
                let together = all(&encoder);
                assert_eq!(all(&threaded), together, "{isa} {dtype:?} {model}: threads");
                for (row, bounds) in rows.iter().zip(batch.row_starts().windows(2)) {
                    let found = last_state(&encoder, &config, row);
                    let expected =
                        &together[bounds[0] * config.d_model..bounds[1] * config.d_model];
                    assert_eq!(found, expected, "{isa} {dtype:?} {model}");
                }
            }
        }
    }
}

/// Padding computed once for all of its kind: the bits of whole rows.
#[test]
fn shared_padding_has_the_bits_of_whole_rows() {
    let len = 230;
    let real = [100..110, 0..1, 229..230, 120..121, 3..200, 0..0];
    let mut keys = Vec::new();
    for real in &real {
        keys.extend((0..len).map(|column| real.contains(&column)));
    }
    let ids = (0..real.len() * len)
        .map(|slot| {
            if keys[slot] {
                (slot * 31 % 64) as i64
            } else {
                0
            }
        })
        .collect();
    let padded = PaddedBatch::new(ids, real.len(), len, PaddedMask::Keys(keys)).unwrap();
    for isa in isas() {
        for dtype in ComputeType::ALL {
            for model in ["t5-v1_1", "umt5"] {
                let compute = Compute {
                    dtype,
                    ..Compute::default()
                };
                let (encoder, config) = load(&goldens().join(model), isa, &compute);
                let [whole, shared] = [None, Some(config.bias_reach())].map(|reach| {
                    let vocab_size = config.vocab_size;
                    let (packed, layout) = padded
                        .pack_sharing(PadRows::Compute, vocab_size, reach)
                        .unwrap();
                    let encoded = encoder.encode(&packed, &Pass::default()).unwrap();
                    let states = encoder.backend().read_stream(&encoded.last).unwrap();
                    (packed.n_tokens(), layout.unpack(&states, config.d_model))
                });
                assert!(shared.0 < whole.0);
                assert!(shared.1 == whole.1, "{isa} {dtype:?} {model}");
            }
        }
    }
}
