//! Safetensors with 8-bit floats, as ComfyUI has them: plain, with older and with newer scales.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::{Folder, Stored, safetensors};
use quintic::batch::PackedBatch;
use quintic::checkpoint::{Checkpoint, OpenOptions};
use quintic::{
    BackendKind, ComputeChoice, ComputeType, ErrorKind, LoadOptions, Result, TextEncoder,
};

const D_MODEL: usize = 24;
const INNER: usize = 16;
const D_FF: usize = 40;
const VOCAB: usize = 30;

/// Names and shapes of a gated encoder of one layer.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let block = |name: &str| format!("encoder.block.0.layer.{name}");
    vec![
        ("shared".into(), vec![VOCAB, D_MODEL]),
        (block("0.SelfAttention.q"), vec![INNER, D_MODEL]),
        (block("0.SelfAttention.k"), vec![INNER, D_MODEL]),
        (block("0.SelfAttention.v"), vec![INNER, D_MODEL]),
        (block("0.SelfAttention.o"), vec![D_MODEL, INNER]),
        (block("0.SelfAttention.relative_attention_bias"), vec![8, 2]),
        (block("0.layer_norm"), vec![D_MODEL]),
        (block("1.DenseReluDense.wi_0"), vec![D_FF, D_MODEL]),
        (block("1.DenseReluDense.wi_1"), vec![D_FF, D_MODEL]),
        (block("1.DenseReluDense.wo"), vec![D_MODEL, D_FF]),
        (block("1.layer_norm"), vec![D_MODEL]),
        ("encoder.final_layer_norm".into(), vec![D_MODEL]),
    ]
}

/// The value of a byte by its definition, independent of the code under test.
fn value(dtype: &str, byte: u8) -> f32 {
    if dtype == "F8_E5M2" {
        return half::f16::from_bits(u16::from(byte) << 8).to_f32();
    }
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-9),
        15 if byte & 7 == 7 => f32::NAN,
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if byte < 0x80 { magnitude } else { -magnitude }
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> Stored {
    Stored {
        name: name.to_owned(),
        dtype: "F32",
        shape: shape.to_vec(),
        bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn bytes(name: &str, text: &str) -> Stored {
    Stored {
        name: name.to_owned(),
        dtype: "U8",
        shape: vec![text.len()],
        bytes: text.as_bytes().to_vec(),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Plain,
    Older,
    Newer,
    Header,
}

/// The model in fp8 and in f32. Scales are those of the style; embedding, bias and norms have
/// none.
fn models(style: Style, dtype: &'static str, prefix: &str) -> (Vec<Stored>, Vec<Stored>) {
    let (mut small, mut wide) = (Vec::new(), Vec::new());
    let mut state = 0x1234_5678u32;
    for (idx, (name, shape)) in shapes().into_iter().enumerate() {
        let n: usize = shape.iter().product();
        let is_product = shape.len() == 2 && idx > 0 && !name.contains("bias");
        let scale = match is_product && style != Style::Plain {
            true => 0.3 + idx as f32 / 16.0,
            false => 1.0,
        };
        let stored: Vec<u8> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Magnitudes below 1.
                let byte = (state >> 24) as u8;
                let least = if dtype == "F8_E5M2" { 0x3c } else { 0x38 };
                byte & 0x80 | (byte % least)
            })
            .collect();
        let values: Vec<f32> = stored.iter().map(|&b| value(dtype, b) * scale).collect();
        let full = format!("{prefix}{name}");
        wide.push(floats(&format!("{name}.weight"), &shape, &values));
        small.push(Stored {
            name: format!("{full}.weight"),
            dtype,
            shape,
            bytes: stored,
        });
        if !is_product {
            continue;
        }
        let format = if dtype == "F8_E5M2" {
            "float8_e5m2"
        } else {
            "float8_e4m3fn"
        };
        match style {
            Style::Plain => {}
            Style::Older => {
                small.push(floats(&format!("{full}.scale_weight"), &[], &[scale]));
                small.push(floats(&format!("{full}.scale_input"), &[1], &[2.0]));
            }
            Style::Newer => {
                small.push(floats(&format!("{full}.weight_scale"), &[1], &[scale]));
                small.push(floats(&format!("{full}.input_scale"), &[], &[2.0]));
                let json =
                    format!(r#"{{"format": "{format}", "full_precision_matrix_mult": true}}"#);
                small.push(bytes(&format!("{full}.comfy_quant"), &json));
            }
            Style::Header => {
                small.push(floats(&format!("{full}.weight_scale"), &[], &[scale]));
            }
        }
    }
    if style == Style::Older {
        small.push(Stored {
            name: format!("{prefix}scaled_fp8"),
            dtype,
            shape: vec![2],
            bytes: vec![0, 0],
        });
    }
    (small, wide)
}

fn states(path: &std::path::Path, options: &LoadOptions) -> Result<Vec<u32>> {
    let encoder = TextEncoder::load(path.to_str().unwrap(), options)?;
    assert_eq!(encoder.surplus_tensors().count(), 0);
    let batch = PackedBatch::from_rows(&[vec![3, 7, 29, 1], vec![2, 1]], VOCAB).unwrap();
    let states = encoder.hidden_states(&batch, false)?.last;
    assert!(states.iter().all(|x| x.is_finite()));
    assert!(states.iter().any(|&x| x != 0.0));
    Ok(states.iter().map(|x| x.to_bits()).collect())
}

fn options() -> Vec<LoadOptions> {
    let bf16 = ComputeChoice {
        dtype: Some(ComputeType::Bf16),
        ..ComputeChoice::default()
    };
    let of = |backend, compute| LoadOptions {
        backend,
        compute,
        ..LoadOptions::default()
    };
    vec![
        of(BackendKind::Reference, ComputeChoice::default()),
        of(BackendKind::Cpu, ComputeChoice::default()),
        of(BackendKind::Cpu, bf16),
    ]
}

#[test]
fn weights_are_their_bytes_times_their_scale() {
    for dtype in ["F8_E4M3", "F8_E5M2"] {
        for (style, prefix) in [
            (Style::Plain, ""),
            (Style::Plain, "text_encoders.t5xxl.transformer."),
            (Style::Older, ""),
            (Style::Older, "text_encoders.t5xxl.transformer."),
            (Style::Newer, ""),
            (Style::Header, "text_encoders.t5xxl.transformer."),
        ] {
            let (small, wide) = models(style, dtype, prefix);
            let layers = format!(
                r#"{{"format_version": "1.0", "layers": {{"{prefix}encoder.block.0.layer.0.SelfAttention.q":
                {{"format": "{}"}}, "other.model": {{"format": "nvfp4"}}}}}}"#,
                if dtype == "F8_E5M2" {
                    "float8_e5m2"
                } else {
                    "float8_e4m3fn"
                }
            );
            let metadata: &[(&str, &str)] = match style {
                Style::Header => &[("_quantization_metadata", &layers)],
                _ => &[],
            };
            let folder = Folder::new()
                .with("small.safetensors", safetensors(&small, metadata))
                .with("wide.safetensors", safetensors(&wide, &[]));
            for options in options() {
                let of = |name: &str| states(&folder.path().join(name), &options).unwrap();
                assert!(
                    of("small.safetensors") == of("wide.safetensors"),
                    "{dtype} {prefix} {options:?}"
                );
            }
            let checkpoint = folder.open_file("small.safetensors").unwrap();
            let n_scales = if style == Style::Plain { 0 } else { 7 };
            assert_eq!(checkpoint.n_scales(), n_scales);
            assert_eq!(checkpoint.names().len(), shapes().len());
            assert_eq!(checkpoint.warnings().unwrap(), [] as [String; 0]);
        }
    }
}

const Q: &str = "encoder.block.0.layer.0.SelfAttention.q";

fn with(tensors: &mut [Stored], name: &str, change: impl FnOnce(&mut Stored)) {
    change(
        tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap(),
    );
}

#[test]
fn nan_is_zero_in_an_embedding_and_an_error_elsewhere() {
    let (mut small, mut wide) = models(Style::Plain, "F8_E4M3", "");
    with(&mut small, "shared.weight", |table| {
        table.bytes[3 * D_MODEL + 1] = 0xff
    });
    with(&mut wide, "shared.weight", |table| {
        let at = 4 * (3 * D_MODEL + 1);
        table.bytes[at..at + 4].fill(0);
    });
    let folder = Folder::new()
        .with("small.safetensors", safetensors(&small, &[]))
        .with("wide.safetensors", safetensors(&wide, &[]));
    for options in options() {
        let of = |name: &str| states(&folder.path().join(name), &options).unwrap();
        assert_eq!(of("small.safetensors"), of("wide.safetensors"));
    }
    let warnings = folder
        .open_file("small.safetensors")
        .unwrap()
        .warnings()
        .unwrap();
    assert_eq!(
        warnings,
        ["`shared.weight` has 1 values that are NaN or infinite; NaN is read as 0"]
    );
    for name in [
        format!("{Q}.weight"),
        "encoder.final_layer_norm.weight".to_owned(),
    ] {
        let (mut small, _) = models(Style::Plain, "F8_E4M3", "");
        with(&mut small, &name, |weight| weight.bytes[5] = 0x7f);
        let folder = Folder::new().with("small.safetensors", safetensors(&small, &[]));
        for options in options() {
            let error = states(&folder.path().join("small.safetensors"), &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
            let text = error.to_string();
            assert!(text.contains(&name) && text.contains("1 of "), "{text}");
        }
    }
}

#[test]
fn other_formats_and_contradictions_are_refused_by_name() {
    use ErrorKind::{Checkpoint as Damaged, Unsupported};
    let newer = || models(Style::Newer, "F8_E4M3", "").0;
    let replaced = |suffix: &str, tensor: Stored| {
        let mut tensors = newer();
        with(&mut tensors, &format!("{Q}{suffix}"), |found| {
            *found = tensor
        });
        tensors
    };
    let format = |text: &str| replaced(".comfy_quant", bytes(&format!("{Q}.comfy_quant"), text));
    let scale_name = format!("{Q}.weight_scale");
    let added = |tensor: Stored| {
        let mut tensors = newer();
        tensors.push(tensor);
        tensors
    };
    let wide_weight = {
        let mut tensors = newer();
        let shape = [INNER, D_MODEL];
        with(&mut tensors, &format!("{Q}.weight"), |found| {
            *found = floats(&format!("{Q}.weight"), &shape, &[0.5; INNER * D_MODEL]);
        });
        tensors.retain(|tensor| tensor.name != format!("{Q}.comfy_quant"));
        tensors
    };
    for (tensors, kind, part) in [
        (format(r#"{"format": "nvfp4"}"#), Unsupported, "`nvfp4`"),
        (
            format(r#"{"format": "int8_tensorwise"}"#),
            Unsupported,
            "`int8_tensorwise`",
        ),
        (
            format(r#"{"format": "float8_e5m2"}"#),
            Damaged,
            "is of type F8_E4M3",
        ),
        (format("{"), Damaged, "not what was expected"),
        (
            replaced(".weight_scale", floats(&scale_name, &[2], &[1.0, 2.0])),
            Unsupported,
            "expected one scale",
        ),
        (
            replaced(".weight_scale", floats(&scale_name, &[], &[f32::INFINITY])),
            Damaged,
            "expected one finite number",
        ),
        (
            added(floats(&format!("{Q}.scale_weight"), &[], &[1.0])),
            Damaged,
            "second scale",
        ),
        (
            added(floats(&format!("{Q}.weight_scale_2"), &[], &[1.0])),
            Unsupported,
            "nvfp4",
        ),
        (wide_weight, Unsupported, "of type F32"),
    ] {
        let folder = Folder::new().with("x.safetensors", safetensors(&tensors, &[]));
        let error = folder.open_file("x.safetensors").unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(part) && text.contains(Q), "{text}");
        assert!(text.contains("x.safetensors"), "{text}");
    }
    let header = format!(r#"{{"layers": {{"{Q}": {{"format": "mxfp8"}}}}}}"#);
    let metadata = [("_quantization_metadata", header.as_str())];
    let folder = Folder::new().with("x.safetensors", safetensors(&newer(), &metadata));
    let text = folder.open_file("x.safetensors").unwrap_err().to_string();
    assert!(
        text.contains("`mxfp8`") && text.contains("_quantization_metadata"),
        "{text}"
    );
}

#[test]
fn packing_refuses_what_it_would_make_larger() {
    let (small, _) = models(Style::Older, "F8_E4M3", "");
    let folder = Folder::new().with("x.safetensors", safetensors(&small, &[]));
    let checkpoint =
        Checkpoint::open(folder.path().join("x.safetensors"), &OpenOptions::default()).unwrap();
    let cpu = quintic::backend::cpu::Cpu::new(&quintic::Compute::default()).unwrap();
    let error = quintic::packed::write(
        &checkpoint,
        &cpu,
        &folder.path().join("out"),
        &mut |_, _| {},
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("F8_E4M3"), "{error}");
}
