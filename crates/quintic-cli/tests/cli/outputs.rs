//! What `quintic encode` writes: formats, types, and files that are there already.

use quintic::DType;
use quintic::batch::PackedBatch;
use serde_json::Value;

use super::support::{Model, run, write_integers};

fn values(model: &Model, text: &str) -> Vec<f32> {
    let batch = PackedBatch::from_rows(&model.ids(&[text]), 384).unwrap();
    model.encoder().hidden_states(&batch, false).unwrap().last
}

fn vectors(value: &Value) -> Vec<f32> {
    let flat = value
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|item| match item {
            Value::Array(_) => vectors(item),
            // A shortest f32 read as f64 rounds to the same f32.
            number => vec![number.as_f64().unwrap() as f32],
        });
    flat.collect()
}

#[test]
fn numpy_arrays() {
    let model = Model::bytes();
    let expected = values(&model, "hello");
    model.encode("out.npy", &["hello"]).good();
    let bytes = std::fs::read(model.file("out.npy")).unwrap();
    let (header, data) = bytes.split_at(128);
    let header = std::str::from_utf8(&header[10..]).unwrap().trim_end();
    assert_eq!(
        header,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8), }"
    );
    let read: Vec<f32> = data
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(read, expected);

    model
        .encode("out.npy", &["--output-dtype", "f16", "hello"])
        .good();
    let bytes = std::fs::read(model.file("out.npy")).unwrap();
    assert!(bytes[..128].windows(3).any(|text| text == b"<f2"));
    let expected: Vec<u8> = expected
        .iter()
        .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
        .collect();
    assert_eq!(bytes[128..], expected);
}

#[test]
fn json_lines_in_files_and_on_standard_output() {
    let model = Model::bytes();
    model.encode("out.jsonl", &["hello", "you"]).good();
    let file = std::fs::read_to_string(model.file("out.jsonl")).unwrap();
    let ran = run(&[
        "encode",
        "--model",
        &model.path("model"),
        "-o",
        "-",
        "hello",
        "you",
    ])
    .good();
    // The progress bar and the closing line are on standard error.
    assert_eq!(ran.out, file);
    assert!(ran.err.contains("2 rows, 10 tokens"), "{}", ran.err);
    for (row, (line, text)) in ran.json_lines().iter().zip(["hello", "you"]).enumerate() {
        assert_eq!(line["row"], row);
        assert_eq!(line["text"], text);
        assert_eq!(line["input_ids"].as_array().unwrap().len(), text.len() + 1);
        assert_eq!(line["last_hidden_state"][0].as_array().unwrap().len(), 8);
        assert_eq!(vectors(&line["last_hidden_state"]), values(&model, text));
    }
    let args = [
        "encode",
        "--model",
        &model.path("model"),
        "-o",
        "-",
        "--pool",
        "last",
        "hello",
    ];
    let ran = run(&args).good();
    assert_eq!(
        vectors(&ran.json()["embedding"]),
        values(&model, "hello")[40..]
    );
}

#[test]
fn narrow_types_are_rounded_to_nearest() {
    let model = Model::bytes();
    let expected = values(&model, "hello");
    let bytes = |name: &str| {
        model
            .encode("out.safetensors", &["--output-dtype", name, "hello"])
            .good();
        let tensor = model
            .tensors("out.safetensors")
            .take("last_hidden_state")
            .unwrap();
        (tensor.dtype(), tensor.bytes().to_vec())
    };
    let bf16: Vec<u8> = expected
        .iter()
        .flat_map(|value| {
            let bits = value.to_bits();
            ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).to_le_bytes()[..2].to_vec()
        })
        .collect();
    assert_eq!(bytes("bf16"), (DType::BF16, bf16));
    let f16 = expected
        .iter()
        .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
        .collect();
    assert_eq!(bytes("f16"), (DType::F16, f16));
    let f32 = expected.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(bytes("f32"), (DType::F32, f32));
}

#[test]
fn a_run_that_fails_keeps_the_old_output() {
    let model = Model::bytes();
    let ids = model.file("ids.safetensors");
    write_integers(
        &ids,
        &[("input_ids", "I64", &[3, 2], &[5, 6, 7, 8, 9, 384])],
    );
    let ids = ids.to_str().unwrap();
    for out in ["out.safetensors", "out.npy", "out.jsonl"] {
        model.write(out, "old");
        model
            .encode(out, &["--input-ids", ids, "--batch-tokens", "2"])
            .fails(
                8,
                &["row 2, token 1: token id 384 is outside the vocabulary, expected 0 to 383"],
            );
        assert_eq!(std::fs::read(model.file(out)).unwrap(), b"old");
        std::fs::remove_file(model.file(out)).unwrap();
        assert_eq!(model.listing(), ["ids.safetensors", "model"]);
    }
    model.write("out.npy", "old");
    model.encode("out.npy", &["new"]).good();
    assert!(
        std::fs::read(model.file("out.npy"))
            .unwrap()
            .starts_with(b"\x93NUMPY")
    );
    assert_eq!(model.listing(), ["ids.safetensors", "model", "out.npy"]);
}

#[test]
fn values_beyond_f16_are_refused() {
    let model = Model::bytes_with_gain(1e6);
    for out in ["out.safetensors", "out.npy"] {
        model.encode(out, &["--output-dtype", "f16", "hi"]).fails(
            8,
            &[
                out,
                " is beyond the range of f16 (65504)",
                "hint: write f32 or bf16 instead",
            ],
        );
    }
    assert_eq!(model.listing(), ["model"]);
    model
        .encode("out.safetensors", &["--output-dtype", "bf16", "hi"])
        .good();
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error() {
    let model = Model::bytes();
    model.write("out.safetensors", "old");
    let texts = model.write("in.txt", "a line of text\n".repeat(400));
    // The file size limit stands in for a full disk.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"])
        .args([
            env!("CARGO_BIN_EXE_quintic"),
            "encode",
            "--model",
            &model.path("model"),
        ])
        .args([
            "--input",
            &texts,
            "-o",
            &model.path("out.safetensors"),
            "-q",
        ])
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(
        err.contains("out.safetensors: cannot write: File too large"),
        "{err}"
    );
    assert_eq!(
        std::fs::read(model.file("out.safetensors")).unwrap(),
        b"old"
    );
    assert_eq!(model.listing(), ["in.txt", "model", "out.safetensors"]);
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_that_takes_nothing() {
    let model = Model::bytes();
    let run = |out: std::process::Stdio| {
        let mut command = super::support::quintic();
        command.args([
            "encode",
            "--model",
            &model.path("model"),
            "-q",
            "-o",
            "-",
            "hi",
            "you",
        ]);
        let output = command.stdout(out).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let message = "error: standard output: cannot write: No space left on device (os error 28)\n";
    assert_eq!(run(full.into()), (Some(3), message.to_owned()));
    // A reader that has gone away wants no message.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), (Some(3), String::new()));
}
