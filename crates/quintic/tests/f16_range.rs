//! A checkpoint whose feed-forward layers leave the range of f16, as those of large T5 do: within
//! the suite's bounds on the CPU and on an emulated GPU, which runs passes again until a calibration
//! says what it needs.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use quintic::backend::cuda::Cuda;
use quintic::backend::reference::Reference;
use quintic::backend::{Backend, Scale};
use quintic::batch::PackedBatch;
use quintic::calibrate::{Options, Plan, calibrate};
use quintic::checkpoint::{Checkpoint, OpenOptions, TensorSource};
use quintic::config::T5Config;
use quintic::model::{Encoder, TakeTensor};
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::synthetic::{self, SyntheticWeights};
use quintic::{BackendKind, Compute, ComputeType, DType, Pass, TextEncoder, WeightType, config_of};
use quintic_cuda::device::Device;
use quintic_cuda_emulator::EmulatedDevice;

/// The largest number of f16.
const LARGEST: f32 = 65_504.0;
/// The suite's bound of a pass in f16: 8 roundings, as its module derives it.
const BOUND: f64 = 8.0 / 2048.0;
/// One of so many hidden units of a layer is an outlier.
const EVERY: usize = 37;

const CONFIG: &str = r#"{"model_type": "t5", "feed_forward_proj": "gated-gelu", "vocab_size": 200,
    "d_model": 128, "d_kv": 64, "d_ff": 256, "num_layers": 2, "num_heads": 2}"#;

fn options<'a>() -> Options<'a> {
    Options {
        dtype: ComputeType::F16,
        weights: WeightType::AsStored,
        at_most: None,
        batch_tokens: 4096,
        new_tokens: 0,
        threads: None,
        progress: None,
    }
}

/// Writes a model in f16 whose outliers' gate times up is some 400,000 and more; the second product
/// takes as much back, so that the stream is led by them without being nothing else.
fn write(folder: &Path) -> Checkpoint {
    let config = T5Config::from_json(CONFIG.as_bytes()).unwrap();
    let mut weights = SyntheticWeights::new(config.clone(), DType::F32);
    let (d, ff) = (config.d_model, config.d_ff);
    let mut tensors = vec![
        ("shared.weight".to_owned(), vec![config.vocab_size, d]),
        ("encoder.final_layer_norm.weight".to_owned(), vec![d]),
    ];
    for layer in 0..config.num_layers {
        let block = format!("encoder.block.{layer}.layer");
        let mut add = |part: &str, shape: &[usize]| {
            tensors.push((format!("{block}.{part}.weight"), shape.to_vec()));
        };
        add("0.layer_norm", &[d]);
        add("1.layer_norm", &[d]);
        for part in ["q", "k", "v", "o"] {
            add(&format!("0.SelfAttention.{part}"), &[d, d]);
        }
        if layer == 0 {
            add("0.SelfAttention.relative_attention_bias", &[32, 2]);
        }
        add("1.DenseReluDense.wi_0", &[ff, d]);
        add("1.DenseReluDense.wi_1", &[ff, d]);
        add("1.DenseReluDense.wo", &[d, ff]);
    }
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape)| TensorSpec::new(name, DType::F16, shape))
        .collect();
    let path = folder.join("model.safetensors");
    let mut file = SafetensorsWriter::create(&path, &specs, &[]).unwrap();
    for (at, (name, shape)) in tensors.iter().enumerate() {
        let mut values = weights.take(name, shape).unwrap().to_f32();
        let columns = shape[shape.len() - 1];
        for (idx, value) in values.iter_mut().enumerate() {
            let (row, column) = (idx / columns, idx % columns);
            if name.contains(".wi_") && row % EVERY == 0 {
                *value *= 400.0;
            } else if name.contains(".wo.") && column % EVERY == 0 {
                *value /= 20_000.0;
            }
        }
        file.append(at, &values).unwrap();
    }
    file.finish().unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    Checkpoint::open(folder, &OpenOptions::default()).unwrap()
}

fn rows() -> Vec<Vec<u32>> {
    synthetic::token_rows(&[40, 3, 17, 64], 200)
}

fn load<B: Backend>(checkpoint: &Checkpoint, backend: B) -> Encoder<B> {
    let mut source = TensorSource::new(checkpoint, "config.json");
    Encoder::load(backend, config_of(checkpoint).unwrap(), &mut source).unwrap()
}

fn states<B: Backend>(encoder: &Encoder<B>, batch: &PackedBatch) -> Vec<f32> {
    let encoded = encoder.encode(batch, &Pass::default()).unwrap();
    encoder.backend().read_stream(&encoded.last).unwrap()
}

fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(expected);
    let error: f64 = pairs
        .map(|(&f, &e)| square(f64::from(f) - f64::from(e)))
        .sum();
    (error / expected.iter().map(|&e| square(f64::from(e))).sum::<f64>()).sqrt()
}

fn f16() -> Compute {
    Compute {
        dtype: ComputeType::F16,
        ..Compute::default()
    }
}

fn cuda() -> Cuda {
    let device: Arc<dyn Device> = Arc::new(EmulatedDevice::new(1 << 30));
    Cuda::new(device, &f16()).unwrap()
}

fn plan(checkpoint: &Checkpoint) -> Plan {
    calibrate(checkpoint, "loud", rows(), &options()).unwrap()
}

#[test]
fn what_f16_does_not_hold_is_held_with_powers_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(folder.path());
    let batch = PackedBatch::from_rows(&rows(), 200).unwrap();
    let expected = states(&load(&checkpoint, Reference), &batch);

    let plan = plan(&checkpoint);
    assert_eq!(plan.feed_forward.len(), 2);
    for layer in &plan.feed_forward {
        // Without scales the gate's result is infinite in f16, in every layer.
        assert!(layer.peaks.gated > LARGEST, "{layer:?}");
        assert!(layer.scale.outer > 0, "{layer:?}");
        let scaled = layer.peaks.gated * (-layer.scale.outer as f32).exp2();
        assert!(scaled * 8.0 <= LARGEST, "{layer:?}");
        assert!(layer.peaks.product < LARGEST / 2.0 && layer.scale.inner == 0);
    }

    // On the CPU what flows is f32.
    let cpu = TextEncoder::from_checkpoint(&checkpoint, BackendKind::Cpu, &f16()).unwrap();
    let found = cpu.hidden_states(&batch, false).unwrap().last;
    let cpu_error = error(&found, &expected);
    assert!(cpu_error <= BOUND, "{cpu_error:e}");
    assert_eq!(cpu.passes_again(), None);

    // On a GPU passes are run again until the exponents are found: both layers' at once or one
    // after the other.
    let fresh = load(&checkpoint, cuda());
    let found = states(&fresh, &batch);
    assert!(
        error(&found, &expected) <= BOUND,
        "{:e}",
        error(&found, &expected)
    );
    let again = fresh.backend().passes_again();
    assert!(matches!(again, Some(1..=4)), "{again:?}");
    // They stay found.
    states(&fresh, &batch);
    assert_eq!(fresh.backend().passes_again(), again);

    // With the plan's none is, and the exponents being those that were found, bits are the same.
    let planned = load(&checkpoint, cuda());
    planned.backend().start_scales(&plan.scales());
    assert_eq!(states(&planned, &batch), found);
    assert_eq!(planned.backend().passes_again(), Some(0));
}

#[test]
fn exponents_that_are_known_never_fall() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(folder.path());
    let batch = PackedBatch::from_rows(&rows(), 200).unwrap();
    let plan = plan(&checkpoint);
    let encoder = load(&checkpoint, cuda());
    encoder.backend().start_scales(&plan.scales());
    let first = states(&encoder, &batch);
    // Others that would not hold the values, and some of a layer that is not there.
    let mut less: Vec<_> = plan.scales();
    for (_, scale) in &mut less {
        *scale = Scale::default();
    }
    less.push((
        quintic::Site::parse("encoder.9.wi").unwrap(),
        Scale { inner: 5, outer: 5 },
    ));
    encoder.backend().start_scales(&less);
    assert_eq!(states(&encoder, &batch), first);
    assert_eq!(encoder.backend().passes_again(), Some(0));
}
