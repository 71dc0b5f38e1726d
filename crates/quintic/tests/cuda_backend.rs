//! The CUDA backend on an emulated device, whole models: against the files that the other
//! backends are compared with, and against itself where passes are recorded.

#![allow(clippy::unwrap_used)]

#[path = "golden_files/cases.rs"]
mod golden_cases;
mod golden_files;

use std::path::Path;
use std::sync::Arc;

use golden_cases::{cases, truth};
use golden_files::{batch, goldens};
use quintic::backend::cuda::Cuda;
use quintic::backend::reference::Reference;
use quintic::backend::{Backend, DeviceOutput, Pool};
use quintic::batch::{PackedBatch, PadRows, PaddedBatch, PaddedMask};
use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile, TensorSource};
use quintic::config::T5Config;
use quintic::model::{Decoder, DecoderState, Encoder, Feed, TakeTensor};
use quintic::synthetic::{self, SyntheticWeights};
use quintic::{
    Compute, ComputeType, DType, ErrorKind, MatmulPrecision, Pass, Result, Tensor, config_of,
};
use quintic_cuda::device::Device;
use quintic_cuda_emulator::EmulatedDevice;

fn emulated() -> Arc<EmulatedDevice> {
    Arc::new(EmulatedDevice::new(2 << 30))
}

fn compute(dtype: ComputeType) -> Compute {
    Compute {
        dtype,
        ..Compute::default()
    }
}

fn cuda(device: &Arc<EmulatedDevice>, compute: &Compute) -> Cuda {
    Cuda::new(Arc::clone(device) as Arc<dyn Device>, compute).unwrap()
}

fn load(folder: &Path, device: &Arc<EmulatedDevice>, compute: &Compute) -> Encoder<Cuda> {
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    let config = config_of(&checkpoint).unwrap();
    let mut source = TensorSource::new(&checkpoint, "config.json");
    Encoder::load(cuda(device, compute), config, &mut source).unwrap()
}

fn states<B: Backend>(encoder: &Encoder<B>, batch: &PackedBatch) -> Result<Vec<f32>> {
    let encoded = encoder.encode(batch, &Pass::default())?;
    encoder.backend().read_stream(&encoded.last)
}

fn relative_rms(found: &[f32], truth: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    assert_eq!(found.len(), truth.len());
    let square = |x: f64| x * x;
    let error: f64 = found
        .iter()
        .zip(truth.clone())
        .map(|(&f, t)| square(f64::from(f) - t))
        .sum();
    (error / truth.map(square).sum::<f64>()).sqrt()
}

/// Bounds are those of the CPU backend's test, where they are derived. f16 keeps 11 bits of
/// activations too, which adds no more than its weights do.
#[test]
fn every_type_is_near_float64() {
    let computes = [
        (Compute::default(), 4e-6),
        (
            Compute {
                matmul_precision: MatmulPrecision::Medium,
                ..Compute::default()
            },
            3e-2,
        ),
        (compute(ComputeType::Bf16), 3e-2),
        (compute(ComputeType::F16), 4e-3),
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
    for (compute, bound) in &computes {
        for (model, case) in &cases {
            let encoder = load(&goldens().join(model), &emulated(), compute);
            let config = encoder.config();
            let file =
                SafetensorsFile::open(&goldens().join(model).join("cases.safetensors")).unwrap();
            let (packed, layout) = batch(&file, case)
                .pack(PadRows::Compute, config.vocab_size)
                .unwrap();
            let truth = truth(model, case);
            // The second time is recorded, the third is run from the recording.
            let times = if compute.dtype == ComputeType::Bf16 {
                3
            } else {
                1
            };
            for time in 1..=times {
                let last = states(&encoder, &packed).unwrap();
                let found = layout.unpack(&last, config.d_model);
                let error = relative_rms(&found, truth.iter().copied());
                assert!(
                    error <= *bound,
                    "{compute:?}, {model}, {case}, time {time}: {error:e}, allowed {bound:e}"
                );
            }
        }
    }
}

fn tiny() -> T5Config {
    let mut config = synthetic::config("tiny").unwrap();
    config.vocab_size = 200;
    config
}

fn synthetic_encoder<B: Backend>(backend: B, config: &T5Config) -> Encoder<B> {
    let mut weights = SyntheticWeights::new(config.clone(), DType::F32);
    Encoder::load(backend, config.clone(), &mut weights).unwrap()
}

fn rows(lengths: &[usize]) -> Vec<Vec<u32>> {
    synthetic::token_rows(lengths, 200)
}

/// Passes of many forms, over and over and in turns: what was recorded for one batch is run for
/// others of its form, and must not see anything of them.
#[test]
fn recorded_passes_equal_fresh_ones() {
    let config = tiny();
    for dtype in ComputeType::ALL {
        let device = emulated();
        let encoder = synthetic_encoder(cuda(&device, &compute(dtype)), &config);
        // Pairs of one form each, and empty rows.
        let lengths: [&[usize]; 8] = [
            &[10],
            &[16],
            &[3, 9],
            &[70, 0, 5],
            &[1, 69, 8],
            &[130],
            &[7, 0],
            &[100, 30],
        ];
        let batches: Vec<PackedBatch> = lengths
            .iter()
            .map(|lengths| PackedBatch::from_rows(&rows(lengths), 200).unwrap())
            .collect();
        let fresh: Vec<Vec<f32>> = batches
            .iter()
            .map(|batch| {
                let own = synthetic_encoder(cuda(&emulated(), &compute(dtype)), &config);
                states(&own, batch).unwrap()
            })
            .collect();
        let mut kept = Vec::new();
        for round in 0..4 {
            for (at, (batch, fresh)) in batches.iter().zip(&fresh).enumerate() {
                let encoded = encoder.encode(batch, &Pass::default()).unwrap();
                let found = encoder.backend().read_stream(&encoded.last).unwrap();
                assert_eq!(&found, fresh, "{dtype:?}, round {round}, batch {at}");
                // What is still in somebody's hands is not touched by later passes.
                kept.push((at, encoded));
            }
        }
        for (at, encoded) in &kept {
            let found = encoder.backend().read_stream(&encoded.last).unwrap();
            assert_eq!(found, fresh[*at], "{dtype:?}, batch {at}, read late");
        }
        assert!(
            device.replays() >= 2 * batches.len(),
            "{}",
            device.replays()
        );
    }
}

/// The same ids with and without a mask, padded, with gaps: forms that look alike but are not.
#[test]
fn masks_and_gaps_are_forms_of_their_own() {
    let config = tiny();
    let exact = synthetic_encoder(Reference, &config);
    for dtype in [ComputeType::F32, ComputeType::Bf16, ComputeType::F16] {
        let encoder = synthetic_encoder(cuda(&emulated(), &compute(dtype)), &config);
        let bound = match dtype {
            ComputeType::F32 => 4e-6,
            ComputeType::Bf16 => 3e-2,
            ComputeType::F16 => 4e-3,
        };
        let len = 70;
        let ids: Vec<i64> = (0..2 * len).map(|at| at as i64 * 31 % 200).collect();
        let flags =
            |keep: &dyn Fn(usize) -> bool| -> Vec<bool> { (0..2 * len).map(keep).collect() };
        let masks = [
            PaddedMask::None,
            PaddedMask::Keys(flags(&|at| at % len < 20)),
            PaddedMask::Keys(flags(&|at| at % 3 != 1)),
            PaddedMask::Keys(flags(&|at| at >= len)),
        ];
        for round in 0..3 {
            for (at, mask) in masks.iter().enumerate() {
                for pad in [PadRows::Compute, PadRows::Zero] {
                    let padded = PaddedBatch::new(ids.clone(), 2, len, mask.clone()).unwrap();
                    let (packed, _) = padded.pack(pad, 200).unwrap();
                    let expected = states(&exact, &packed).unwrap();
                    let found = states(&encoder, &packed).unwrap();
                    let error = relative_rms(&found, expected.iter().map(|&x| f64::from(x)));
                    assert!(
                        packed.n_tokens() == 0 || error <= bound,
                        "{dtype:?}, mask {at}, {pad:?}, round {round}: {error:e}"
                    );
                }
            }
        }
    }
}

/// Everything that a pass can be asked for, and pooling, against the reference.
#[test]
fn passes_with_wishes_equal_the_reference() {
    let config = tiny();
    let exact = synthetic_encoder(Reference, &config);
    let encoder = synthetic_encoder(cuda(&emulated(), &Compute::default()), &config);
    let batch = PackedBatch::from_rows(&rows(&[5, 0, 20, 1]), 200).unwrap();
    let tokens = batch.n_tokens();
    let embeddings: Vec<f32> = (0..tokens * config.d_model)
        .map(|at| (at as f32 * 0.37).sin())
        .collect();
    let gains: Vec<f32> = (0..config.num_layers * config.num_heads)
        .map(|at| 0.5 + at as f32)
        .collect();
    let pass = Pass {
        embeddings: Some(&embeddings),
        head_gains: Some(&gains),
        keep_inner: true,
        keep_attentions: true,
        ..Pass::default()
    };
    for _ in 0..2 {
        let expected = exact.encode(&batch, &pass).unwrap();
        let found = encoder.encode(&batch, &pass).unwrap();
        let near = |found: &[f32], expected: &[f32]| {
            let error = relative_rms(found, expected.iter().map(|&x| f64::from(x)));
            assert!(error <= 4e-6, "{error:e}");
        };
        near(
            &encoder.backend().read_stream(&found.last).unwrap(),
            &exact.backend().read_stream(&expected.last).unwrap(),
        );
        assert_eq!(found.inner.len(), expected.inner.len());
        for (found, expected) in found.inner.iter().zip(&expected.inner) {
            near(found, expected);
        }
        assert_eq!(found.attentions.len(), expected.attentions.len());
        for (found, expected) in found.attentions.iter().zip(&expected.attentions) {
            near(found, expected);
        }
        for pool in [Pool::Mean, Pool::First, Pool::Last] {
            let found = encoder.pool(&found, &batch, pool).unwrap();
            let expected = exact.pool(&expected, &batch, pool).unwrap();
            near(&found, &expected);
            let zeros = &found[config.d_model..2 * config.d_model];
            assert!(zeros.iter().all(|&x| x == 0.0), "an empty row");
        }
    }
}

/// Weights whose feed-forward layers leave the range of f16: gate times up by some powers of
/// two, or already the first product.
struct Loud {
    weights: SyntheticWeights,
    wi_factor: f32,
    wo_factor: f32,
}

impl TakeTensor for Loud {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.take(name, shape)?;
        let factor = match name {
            name if name.contains(".wi") => self.wi_factor,
            name if name.contains(".wo") => self.wo_factor,
            _ => return Ok(tensor),
        };
        let values: Vec<f32> = tensor.to_f32().iter().map(|x| x * factor).collect();
        Ok(Tensor::from_f32(name, shape.to_vec(), &values))
    }

    fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    fn require(&mut self, tensors: &[(String, Vec<usize>)]) -> Result<()> {
        self.weights.require(tensors)
    }
}

#[test]
fn f16_finds_scales_that_hold_what_the_model_does() {
    let config = tiny();
    for (wi_factor, wo_factor) in [(1.0, 1.0), (300.0, 1.0), (60_000.0, 1e-3)] {
        let loud = || Loud {
            weights: SyntheticWeights::new(config.clone(), DType::F32),
            wi_factor,
            wo_factor,
        };
        let exact = Encoder::load(Reference, config.clone(), &mut loud()).unwrap();
        let backend = cuda(&emulated(), &compute(ComputeType::F16));
        let encoder = Encoder::load(backend, config.clone(), &mut loud()).unwrap();
        for lengths in [&[40usize, 3][..], &[9], &[40, 3], &[40, 3], &[40, 3]] {
            let batch = PackedBatch::from_rows(&rows(lengths), 200).unwrap();
            let found = states(&encoder, &batch).unwrap();
            let expected = states(&exact, &batch).unwrap();
            let error = relative_rms(&found, expected.iter().map(|&x| f64::from(x)));
            assert!(error <= 4e-3, "{wi_factor}: {error:e}");
        }
        // A model that fits is never run again; one that does not is, but not for ever.
        let again = encoder.backend().passes_again();
        match wi_factor > 1.0 {
            true => assert!(matches!(again, Some(1..=64)), "{wi_factor}: {again:?}"),
            false => assert_eq!(again, Some(0)),
        }
    }
}

#[test]
fn what_no_scale_can_hold_is_an_error_in_f16_and_a_result_in_bf16() {
    let config = tiny();
    let batch = PackedBatch::from_rows(&rows(&[4]), 200).unwrap();
    let embeddings = vec![f32::NAN; 4 * config.d_model];
    let pass = Pass {
        embeddings: Some(&embeddings),
        ..Pass::default()
    };
    let encoder = synthetic_encoder(cuda(&emulated(), &compute(ComputeType::F16)), &config);
    let error = encoder.encode(&batch, &pass).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.hint_text(), Some("compute in bf16 or f32"));
    // And it is as useful as before.
    assert!(
        states(&encoder, &batch)
            .unwrap()
            .iter()
            .all(|x| x.is_finite())
    );
    let encoder = synthetic_encoder(cuda(&emulated(), &compute(ComputeType::Bf16)), &config);
    let encoded = encoder.encode(&batch, &pass).unwrap();
    let found = encoder.backend().read_stream(&encoded.last).unwrap();
    assert!(found.iter().all(|x| x.is_nan()));
}

#[test]
fn threads_share_an_encoder() {
    let config = tiny();
    let encoder = synthetic_encoder(cuda(&emulated(), &compute(ComputeType::Bf16)), &config);
    let batches: Vec<PackedBatch> = [&[5usize][..], &[40], &[12, 3], &[33]]
        .into_iter()
        .map(|lengths| PackedBatch::from_rows(&rows(lengths), 200).unwrap())
        .collect();
    let expected: Vec<Vec<f32>> = batches
        .iter()
        .map(|batch| states(&encoder, batch).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (encoder, batches, expected) = (&encoder, &batches, &expected);
            scope.spawn(move || {
                for turn in 0..6 {
                    let at = (thread + turn) % batches.len();
                    assert_eq!(states(encoder, &batches[at]).unwrap(), expected[at]);
                }
            });
        }
    });
}

#[test]
fn memory_that_gives_out_is_an_error_and_comes_back() {
    let config = tiny();
    // Room for the weights and some tokens.
    let device = Arc::new(EmulatedDevice::new(6 << 20));
    let encoder = synthetic_encoder(cuda(&device, &Compute::default()), &config);
    let batch = |n: usize| PackedBatch::from_rows(&rows(&[n]), 200).unwrap();
    let small = states(&encoder, &batch(20)).unwrap();
    for _ in 0..2 {
        let error = states(&encoder, &batch(3000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(
            error.message().contains("the device has no room"),
            "{error}"
        );
        assert_eq!(states(&encoder, &batch(20)).unwrap(), small);
    }
    drop(encoder);
    assert_eq!(device.allocated_bytes(), 0, "everything is given back");
}

#[test]
fn weights_that_f16_cannot_hold_are_refused_by_name() {
    let config = tiny();
    let mut loud = Loud {
        weights: SyntheticWeights::new(config.clone(), DType::F32),
        wi_factor: 1e7,
        wo_factor: 1.0,
    };
    let backend = cuda(&emulated(), &compute(ComputeType::F16));
    let error = Encoder::load(backend, config, &mut loud).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.place().unwrap().contains("wi_0.weight"), "{error}");
    assert!(error.message().contains("which f16 cannot hold"), "{error}");
}

/// A padded result in somebody else's memory of the device, in every type.
#[test]
fn results_go_to_memory_of_the_caller() {
    let config = tiny();
    let device = emulated();
    let encoder = synthetic_encoder(cuda(&device, &Compute::default()), &config);
    let ids: Vec<i64> = (0..2 * 9).map(|at| at as i64 * 31 % 200).collect();
    let keys = (0..2 * 9).map(|at| at % 9 < 4).collect();
    let padded = PaddedBatch::new(ids, 2, 9, PaddedMask::Keys(keys)).unwrap();
    let (packed, layout) = padded.pack(PadRows::Zero, 200).unwrap();
    let rows: Vec<Option<u32>> = layout.tokens().map(|t| t.map(|t| t as u32)).collect();
    assert_eq!(rows.iter().filter(|row| row.is_none()).count(), 2 * 5);
    let expected = layout.unpack(&states(&encoder, &packed).unwrap(), config.d_model);
    for dtype in ComputeType::ALL {
        let width = if dtype == ComputeType::F32 { 4 } else { 2 };
        let n_bytes = rows.len() * config.d_model * width;
        let address = device.allocate(n_bytes).unwrap();
        let out = DeviceOutput {
            address: address.0,
            dtype,
            rows: &rows,
            queue: 0,
        };
        let encoded = encoder.encode(&packed, &Pass::default()).unwrap();
        let mut bytes = vec![0u8; n_bytes];
        // SAFETY: as many bytes were allocated as are written and read.
        unsafe {
            encoder.backend().write_stream(&encoded.last, &out).unwrap();
            device.download(address, &mut bytes).unwrap();
            device.release(address, n_bytes);
        }
        let found: Vec<f32> = match dtype {
            ComputeType::F32 => bytes
                .chunks(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            ComputeType::Bf16 => bytes
                .chunks(2)
                .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
            ComputeType::F16 => bytes
                .chunks(2)
                .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
        };
        let rounded: Vec<f32> = expected
            .iter()
            .map(|&x| match dtype {
                ComputeType::F32 => x,
                ComputeType::Bf16 => half::bf16::from_f32(x).to_f32(),
                ComputeType::F16 => half::f16::from_f32(x).to_f32(),
            })
            .collect();
        assert_eq!(found, rounded, "{dtype:?}");
    }
    // What is in host memory is nowhere else.
    let out = DeviceOutput {
        address: 0,
        dtype: ComputeType::F32,
        rows: &[],
        queue: 0,
    };
    let exact = synthetic_encoder(Reference, &config);
    let encoded = exact.encode(&packed, &Pass::default()).unwrap();
    // SAFETY: refused.
    let error = unsafe { exact.backend().write_stream(&encoded.last, &out) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Hidden states of a decoder whose rows are fed in pieces, copied, dropped and joined by others.
fn decoded<B: Backend>(backend: B, config: &T5Config) -> Vec<f32> {
    let mut weights = SyntheticWeights::new(config.clone(), DType::F32);
    let encoder = Encoder::load(backend, config.clone(), &mut weights).unwrap();
    let backend = encoder.backend();
    let decoder = Decoder::load(backend, config, &mut weights).unwrap();
    // The decoder's embedding is the encoder's; here it is prepared once more.
    let shape = [config.vocab_size, config.d_model];
    let table = weights.take("shared.weight", &shape).unwrap();
    let table = backend.prepare_table(table).unwrap();
    let mut state = decoder.state(backend);
    let mut out = Vec::new();
    let admit = |state: &mut DecoderState<B>, lengths: &[usize]| {
        let batch = PackedBatch::from_rows(&rows(lengths), config.vocab_size).unwrap();
        let hidden = encoder.encode(&batch, &Pass::default()).unwrap().last;
        decoder.admit(backend, state, &hidden, batch.row_starts());
    };
    let mut feed = |state: &mut DecoderState<B>, ids: &[u32], row_starts: &[usize]| {
        let feed = Feed {
            ids,
            row_starts,
            interrupted: None,
        };
        let last = decoder
            .forward(backend, &table, state, &feed, |_| Ok(()))
            .unwrap();
        out.extend(backend.read_stream(&last).unwrap());
        let logits = backend
            .read_logits(&decoder.logits(backend, &last))
            .unwrap();
        let top = decoder.top(backend, &last, 1).unwrap();
        for (scores, top) in logits.chunks_exact(config.vocab_size).zip(top) {
            assert!(
                scores
                    .iter()
                    .all(|score| *score <= scores[top[0].id as usize])
            );
        }
    };
    admit(&mut state, &[5, 33]);
    feed(&mut state, &[0, 7, 9, 0], &[0, 3, 4]);
    feed(&mut state, &[11, 12], &[0, 1, 2]);
    decoder.select(backend, &mut state, &[1, 0, 1]);
    feed(&mut state, &[3, 4, 5, 6], &[0, 1, 2, 4]);
    admit(&mut state, &[1]);
    feed(&mut state, &[8, 9, 10, 0], &[0, 1, 2, 3, 4]);
    decoder.select(backend, &mut state, &[3, 2]);
    feed(&mut state, &[21, 22], &[0, 1, 2]);
    out
}

/// In f32 to its error, in bf16 to that of its activations over two layers: the bounds of
/// [`every_type_is_near_float64`].
#[test]
fn decoders_go_on_as_in_the_reference() {
    let config = tiny();
    let expected = decoded(Reference, &config);
    for (compute, bound) in [
        (Compute::default(), 4e-6),
        (compute(ComputeType::Bf16), 3e-2),
    ] {
        let found = decoded(cuda(&emulated(), &compute), &config);
        assert_eq!(found.len(), expected.len());
        let error = relative_rms(&found, expected.iter().map(|&x| f64::from(x)));
        assert!(error <= bound, "{compute:?}: {error:e}");
    }
}
