//! `quintic encode --input-ids`: every shape and type of ids and masks.

use quintic::batch::{PadRows, PaddedBatch, PaddedMask};

use super::support::{Model, golden, run, write_integers};

const IDS: [i64; 8] = [9, 8, 7, 1, 5, 1, 0, 0];
const MASK: [i64; 8] = [1, 1, 1, 1, 1, 1, 0, 0];

fn flags(mask: &[i64]) -> Vec<bool> {
    mask.iter().map(|&flag| flag == 1).collect()
}

/// The library's result in the padded shape.
fn expected(model: &Model, ids: &[i64], len: usize, mask: PaddedMask, pad: PadRows) -> Vec<f32> {
    let batch = PaddedBatch::new(ids.to_vec(), ids.len() / len, len, mask).unwrap();
    let (packed, layout) = batch.pack(pad, 384).unwrap();
    layout.unpack(
        &model.encoder().hidden_states(&packed, false).unwrap().last,
        8,
    )
}

fn encode(
    model: &Model,
    tensors: &[(&str, &str, &[usize], &[i64])],
    args: &[&str],
) -> (Vec<usize>, Vec<f32>) {
    let ids = model.file("ids.safetensors");
    write_integers(&ids, tensors);
    let args = [&["--input-ids", ids.to_str().unwrap()], args].concat();
    model.encode("out.safetensors", &args).good();
    model.floats("out.safetensors", "last_hidden_state")
}

#[test]
fn no_mask_means_every_token() {
    let model = Model::bytes();
    let (shape, values) = encode(&model, &[("input_ids", "I64", &[2, 4], &IDS)], &[]);
    assert_eq!(shape, [2, 4, 8]);
    assert_eq!(
        values,
        expected(&model, &IDS, 4, PaddedMask::None, PadRows::Zero)
    );
    // Whoever brought ids has them: they are not written again.
    assert_eq!(model.tensors("out.safetensors").entries().len(), 1);
}

#[test]
fn key_masks_with_both_kinds_of_padding() {
    let model = Model::bytes();
    let tensors: [(&str, &str, &[usize], &[i64]); 2] = [
        ("input_ids", "I64", &[2, 4], &IDS),
        ("attention_mask", "I64", &[2, 4], &MASK),
    ];
    let mask = || PaddedMask::Keys(flags(&MASK));
    let zero = expected(&model, &IDS, 4, mask(), PadRows::Zero);
    assert_eq!(encode(&model, &tensors, &[]).1, zero);
    assert_eq!(encode(&model, &tensors, &["--pad-rows", "zero"]).1, zero);
    assert_eq!(zero[48..], [0.0; 16]);
    let computed = expected(&model, &IDS, 4, mask(), PadRows::Compute);
    assert_eq!(
        encode(&model, &tensors, &["--pad-rows", "compute"]).1,
        computed
    );
    assert_eq!(computed[..48], zero[..48]);
    assert!(computed[48..].iter().all(|&value| value != 0.0));
}

/// Padding farther from the text than the position bias reaches is computed once a side.
#[test]
fn long_padding_is_computed_once_and_keeps_every_bit() {
    let model = Model::bytes();
    let (len, reach) = (300, model.encoder().config().bias_reach());
    let mask: Vec<i64> = (0..len)
        .map(|at| i64::from((140..150).contains(&at)))
        .collect();
    let ids: Vec<i64> = mask.iter().map(|flag| flag * 9).collect();
    let tensors: [(&str, &str, &[usize], &[i64]); 2] = [
        ("input_ids", "I64", &[1, len], &ids),
        ("attention_mask", "I64", &[1, len], &mask),
    ];
    let whole = PaddedMask::Keys(flags(&mask));
    let whole = expected(&model, &ids, len, whole, PadRows::Compute);
    assert_eq!(
        encode(&model, &tensors, &["--pad-rows", "compute"]).1,
        whole
    );
    let file = model.file("ids.safetensors");
    let args = [
        "--input-ids",
        file.to_str().unwrap(),
        "--pad-rows",
        "compute",
        "--json",
    ];
    let ran = model.encode("out.safetensors", &args).good();
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["tokens"], 10 + 2 * reach);
}

#[test]
fn left_padding() {
    let model = Model::bytes();
    let (ids, mask) = ([0, 0, 9, 8, 7, 1], [0, 0, 1, 1, 1, 1]);
    let tensors: [(&str, &str, &[usize], &[i64]); 2] = [
        ("input_ids", "I32", &[1, 6], &ids),
        ("attention_mask", "I32", &[1, 6], &mask),
    ];
    let left = encode(&model, &tensors, &[]).1;
    // Only distances between positions count, so the row is what it is without padding.
    let alone = encode(&model, &[("input_ids", "I32", &[1, 4], &ids[2..])], &[]).1;
    assert_eq!(left[16..], alone);
    assert_eq!(left[..16], [0.0; 16]);
}

#[test]
fn square_masks_and_document_ids() {
    let model = Model::bytes();
    let documents = [0, 0, 1, 1, 3, 3, -1, -1];
    let pairs: Vec<i64> = documents
        .chunks(4)
        .flat_map(|row| {
            row.iter().flat_map(move |&query| {
                row.iter()
                    .map(move |&key| i64::from(key >= 0 && key == query))
            })
        })
        .collect();
    let ids: (&str, &str, &[usize], &[i64]) = ("input_ids", "I64", &[2, 4], &IDS);
    for (name, pad) in [("zero", PadRows::Zero), ("compute", PadRows::Compute)] {
        let square = encode(
            &model,
            &[ids, ("attention_mask", "I64", &[2, 4, 4], &pairs)],
            &["--pad-rows", name],
        );
        let mask = PaddedMask::Pairs(flags(&pairs));
        assert_eq!(square.1, expected(&model, &IDS, 4, mask, pad), "{name}");
        let by_document = encode(
            &model,
            &[ids, ("document_ids", "I64", &[2, 4], &documents)],
            &["--pad-rows", name],
        );
        let mask = PaddedMask::Documents(documents.to_vec());
        assert_eq!(
            by_document.1,
            expected(&model, &IDS, 4, mask, pad),
            "{name}"
        );
    }
}

#[test]
fn every_type_of_ids_and_masks() {
    let model = Model::bytes();
    let mask = PaddedMask::Keys(flags(&MASK));
    let expected = expected(&model, &IDS, 4, mask, PadRows::Zero);
    for ids_type in ["I64", "I32", "U8"] {
        for mask_type in ["I64", "I32", "U8", "BOOL", "F32"] {
            let tensors: [(&str, &str, &[usize], &[i64]); 2] = [
                ("input_ids", ids_type, &[2, 4], &IDS),
                ("attention_mask", mask_type, &[2, 4], &MASK),
            ];
            assert_eq!(
                encode(&model, &tensors, &[]).1,
                expected,
                "{ids_type} {mask_type}"
            );
        }
    }
    for other in ["I16", "U16", "U32", "U64", "I8"] {
        let ids = model.file("ids.safetensors");
        write_integers(&ids, &[("input_ids", other, &[2, 4], &IDS)]);
        let args = ["--input-ids", ids.to_str().unwrap()];
        model
            .encode("out.safetensors", &args)
            .fails(9, &["ids.safetensors: tensor `input_ids`", other]);
    }
    write_integers(
        &model.file("ids.safetensors"),
        &[("input_ids", "F32", &[1, 1], &[1])],
    );
    model
        .encode(
            "out.safetensors",
            &["--input-ids", &model.path("ids.safetensors")],
        )
        .fails(
            8,
            &["ids.safetensors: `input_ids` is of type f32, expected i64 or i32"],
        );
}

#[test]
fn batches_of_any_size_give_the_same_bits() {
    let model = Model::bytes();
    let tensors: [(&str, &str, &[usize], &[i64]); 2] = [
        ("input_ids", "I64", &[4, 2], &IDS),
        ("attention_mask", "U8", &[4, 2], &[1, 0, 0, 0, 1, 1, 0, 1]),
    ];
    for args in [&["--pad-rows", "compute"][..], &[]] {
        let of = |n| encode(&model, &tensors, &[args, &["--batch-tokens", n]].concat()).1;
        let whole = of("1000");
        assert_eq!(of("1"), whole);
        assert_eq!(of("5"), whole);
    }
}

#[test]
fn pooled_rows_leave_padding_out() {
    let model = Model::bytes();
    let ids = model.file("ids.safetensors");
    let mask = [1, 1, 1, 1, 0, 0, 0, 0];
    write_integers(
        &ids,
        &[
            ("input_ids", "I64", &[2, 4], &IDS),
            ("attention_mask", "BOOL", &[2, 4], &mask),
        ],
    );
    let args = [
        "--input-ids",
        ids.to_str().unwrap(),
        "--pool",
        "mean",
        "--normalize",
    ];
    model.encode("out.safetensors", &args).good();
    let (shape, values) = model.floats("out.safetensors", "embeddings");
    assert_eq!(shape, [2, 8]);
    let length: f32 = values[..8].iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-6);
    assert_eq!(
        values[8..],
        [0.0; 8],
        "a row without tokens has the zero vector"
    );
}

#[test]
fn json_lines_have_an_id_for_every_vector() {
    let model = Model::bytes();
    let ids = model.file("ids.safetensors");
    write_integers(
        &ids,
        &[
            ("input_ids", "I64", &[2, 4], &IDS),
            ("attention_mask", "I64", &[2, 4], &MASK),
        ],
    );
    let ids = ids.to_str().unwrap();
    let path = model.path("model");
    let lines = run(&["encode", "--model", &path, "-o", "-", "--input-ids", ids])
        .good()
        .json_lines();
    assert_eq!(lines[1]["input_ids"], serde_json::json!([5, 1, 0, 0]));
    assert_eq!(lines[1]["last_hidden_state"].as_array().unwrap().len(), 4);
    assert!(lines[1].get("text").is_none());
    let args = [
        "encode",
        "--model",
        &path,
        "-o",
        "-",
        "--input-ids",
        ids,
        "--pool",
        "mean",
    ];
    assert_eq!(
        run(&args).good().json_lines()[1]["input_ids"],
        serde_json::json!([5, 1])
    );
}

#[test]
fn a_golden_through_the_command() {
    let model = Model::bytes();
    let folder = golden("t5-v1_1");
    let cases = quintic::checkpoint::SafetensorsFile::open(
        &std::path::Path::new(&folder).join("cases.safetensors"),
    )
    .unwrap();
    let integers = |name: &str| -> (Vec<usize>, Vec<i64>) {
        let tensor = cases.take(name).unwrap();
        let values = tensor
            .bytes()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        (tensor.shape().to_vec(), values.collect())
    };
    let (ids_shape, ids) = integers("ragged.input_ids");
    let (mask_shape, mask) = integers("ragged.attention_mask");
    let file = model.file("ids.safetensors");
    write_integers(
        &file,
        &[
            ("input_ids", "I64", &ids_shape, &ids),
            ("attention_mask", "I64", &mask_shape, &mask),
        ],
    );
    let (file, out) = (file.to_str().unwrap(), model.path("out.safetensors"));
    let args = [
        "encode",
        "--model",
        &folder,
        "-o",
        &out,
        "--input-ids",
        file,
        "--hidden-states",
    ];
    run(&[&args[..], &["--pad-rows", "compute"]].concat()).good();
    let errors = cases.take("ragged.f32_error.compute").unwrap().to_f32();
    for (state, &error) in errors.iter().enumerate() {
        let part = |part| {
            cases
                .take(&format!("ragged.hidden_states.{state}.{part}"))
                .unwrap()
                .to_f32()
        };
        let (high, low) = (part("hi"), part("lo"));
        let ours = model
            .floats("out.safetensors", &format!("hidden_states.{state}"))
            .1;
        let worst = ours
            .iter()
            .zip(high.iter().zip(&low))
            .map(|(&ours, (&high, &low))| {
                (f64::from(ours) - f64::from(high) - f64::from(low)).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst <= 2.0 * f64::from(error), "state {state}: {worst:e}");
    }
}
