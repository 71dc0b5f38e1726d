//! Real PyTorch files: containers, nesting, element types, strides, shared storages.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod checkpoint_support;

use checkpoint_support::pytorch_file;
use quintic::checkpoint::PytorchFile;
use quintic::{DType, ErrorKind};

#[test]
fn pytorch_zip_and_legacy_files_hold_the_same() {
    let zip = PytorchFile::open(&pytorch_file("plain.bin")).unwrap();
    for other in ["legacy.bin", "nested_state_dict.bin", "nested_model.pt"] {
        let other = PytorchFile::open(&pytorch_file(other)).unwrap();
        assert_eq!(other.entries(), zip.entries());
        for entry in zip.entries() {
            let name = entry.name();
            assert_eq!(
                other.take(name).unwrap().bytes(),
                zip.take(name).unwrap().bytes(),
                "{name}"
            );
        }
    }
}

#[test]
fn pytorch_types_are_kept() {
    let file = PytorchFile::open(&pytorch_file("dtypes.bin")).unwrap();
    let ramp = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5];
    for (name, dtype) in [
        ("f32", DType::F32),
        ("f16", DType::F16),
        ("bf16", DType::BF16),
    ] {
        let tensor = file.take(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[2, 3][..]));
        assert_eq!(tensor.to_f32(), ramp, "{name}");
    }
    let bytes = |name: &str| file.take(name).unwrap().bytes().to_vec();
    assert_eq!(bytes("i64")[..8], (-1i64).to_le_bytes());
    assert_eq!(bytes("i32")[4..8], 2i32.to_le_bytes());
    assert_eq!(bytes("u8"), [1, 2, 255]);
    assert_eq!(bytes("bool"), [1, 0, 1]);
    assert_eq!(file.take("scalar").unwrap().to_f32(), [1.5]);
    assert_eq!(file.take("empty").unwrap().shape(), [0, 4]);
    for (name, dtype) in [("f64", "F64"), ("i8", "I8")] {
        assert_eq!(file.entry(name).unwrap().dtype_name(), dtype);
        assert_eq!(file.take(name).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn pytorch_views_come_out_in_row_major_order() {
    let file = PytorchFile::open(&pytorch_file("views.bin")).unwrap();
    let base: Vec<f32> = (0..24).map(|idx| idx as f32 * 0.5).collect();
    let at = |row: usize, column: usize| base[row * 6 + column];
    let values = |name: &str| file.take(name).unwrap().to_f32();
    let grid = |rows: &[usize], columns: &[usize]| -> Vec<f32> {
        rows.iter()
            .flat_map(|&row| columns.iter().map(move |&column| at(row, column)))
            .collect()
    };
    assert_eq!(values("base"), base);
    let transposed: Vec<f32> = (0..6).flat_map(|c| (0..4).map(move |r| at(r, c))).collect();
    assert_eq!(values("transposed"), transposed);
    assert_eq!(values("columns"), grid(&[0, 1, 2, 3], &[1, 2]));
    assert_eq!(
        values("every_other_row"),
        grid(&[0, 2], &[0, 1, 2, 3, 4, 5])
    );
    assert_eq!(values("row"), grid(&[2], &[0, 1, 2, 3, 4, 5]));
    assert_eq!(values("expanded"), grid(&[0, 0, 0, 0], &[0, 1, 2]));
    // [2, 3, 4] permuted to [4, 2, 3]: element [k, i, j] is i * 12 + j * 4 + k.
    let permuted: Vec<f32> = (0..4)
        .flat_map(|k| {
            (0..2).flat_map(move |i| (0..3).map(move |j| (i * 12 + j * 4 + k) as f32 * 0.5))
        })
        .collect();
    assert_eq!(values("permuted"), permuted);
}

#[test]
fn pytorch_storages_may_be_shared() {
    let file = PytorchFile::open(&pytorch_file("shared.bin")).unwrap();
    let a = file.take("shared.weight").unwrap();
    let b = file.take("encoder.embed_tokens.weight").unwrap();
    assert_eq!((a.bytes(), a.shape()), (b.bytes(), &[3, 2][..]));
    let file = PytorchFile::open(&pytorch_file("parameter.bin")).unwrap();
    assert_eq!(file.take("w").unwrap().to_f32(), [0.0, 0.5, 1.0, 1.5]);
}

#[test]
fn a_module_saved_whole_is_its_state_dict() {
    let file = PytorchFile::open(&pytorch_file("module.pt")).unwrap();
    let names: Vec<_> = file.entries().iter().map(|entry| entry.name()).collect();
    assert_eq!(names, ["bias", "weight"]);
    assert_eq!(
        file.take("weight").unwrap().to_f32(),
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    );
}
