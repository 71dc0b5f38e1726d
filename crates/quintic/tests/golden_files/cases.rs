//! The cases of the golden models, for tests that compare last states alone.

#![allow(clippy::unwrap_used)]

use quintic::checkpoint::SafetensorsFile;

use super::golden_files::goldens;

/// Names of the golden models and of their cases.
pub(crate) fn cases() -> Vec<(String, String)> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(goldens()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let file = SafetensorsFile::open(&folder.join("cases.safetensors")).unwrap();
        for entry in file.entries() {
            if let Some(case) = entry.name().strip_suffix(".input_ids") {
                let name = folder.file_name().unwrap().to_string_lossy().into_owned();
                cases.push((name, case.to_owned()));
            }
        }
    }
    cases
}

/// The last hidden state in f64.
pub(crate) fn truth(model: &str, case: &str) -> Vec<f64> {
    let file = SafetensorsFile::open(&goldens().join(model).join("cases.safetensors")).unwrap();
    let n = file
        .take(&format!("{case}.f32_error.compute"))
        .unwrap()
        .n_elements()
        - 1;
    let part = |end: &str| {
        file.take(&format!("{case}.hidden_states.{n}.{end}"))
            .unwrap()
            .to_f32()
    };
    part("hi")
        .into_iter()
        .zip(part("lo"))
        .map(|(high, low)| f64::from(high) + f64::from(low))
        .collect()
}
