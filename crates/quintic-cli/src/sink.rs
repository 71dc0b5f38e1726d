//! Where results go, and in which layout.

use std::path::Path;

use quintic::output::jsonl::{self, JsonlWriter};
use quintic::output::npy::NpyWriter;
use quintic::output::safetensors::{SafetensorsWriter, TensorSpec};
use quintic::{DType, Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// What one run writes: tensors whose first extent runs over rows or over tokens.
pub(crate) struct Plan {
    /// Float tensors that are appended to batch by batch; the first is the main one.
    pub(crate) floats: Vec<(String, Vec<usize>)>,
    /// Integer tensors that are known beforehand.
    pub(crate) integers: Vec<(&'static str, Vec<usize>, Vec<i64>)>,
    /// Type of the floats in the file.
    pub(crate) dtype: DType,
    /// Text metadata.
    pub(crate) metadata: Vec<(&'static str, String)>,
}

/// One row for a format that writes row by row.
pub(crate) struct RowInfo<'a> {
    pub(crate) text: Option<&'a str>,
    /// As many as there are vectors, padding included, unless the row is pooled.
    pub(crate) ids: Vec<i64>,
}

pub(crate) enum Sink {
    Safetensors(SafetensorsWriter),
    Npy(NpyWriter),
    Jsonl {
        writer: Option<JsonlWriter>,
        pooled: bool,
        row: usize,
    },
}

impl Sink {
    /// Opens `path` by its ending.
    ///
    /// # Errors
    ///
    /// For an unknown ending, a plan that the format cannot hold, and failures to write.
    pub(crate) fn create(path: &Path, plan: &Plan, pooled: bool) -> Result<Self> {
        let ending = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let one_tensor = |format: &str| {
            if plan.floats.len() == 1 {
                return Ok(());
            }
            Err(
                Error::unsupported(format!("{format} holds one array, not every layer's"))
                    .at(path.display())
                    .hint("write a .safetensors file"),
            )
        };
        let json_numbers = || match plan.dtype {
            DType::F32 => Ok(()),
            other => Err(
                Error::unsupported(format!("JSON lines hold f32 values, not {other}"))
                    .at(path.display())
                    .hint("drop `--output-dtype`, or write a .safetensors file"),
            ),
        };
        if path == Path::new("-") {
            one_tensor("a JSON line")?;
            json_numbers()?;
            return Ok(Sink::Jsonl {
                writer: None,
                pooled,
                row: 0,
            });
        }
        match ending {
            "safetensors" => {
                let mut specs: Vec<TensorSpec> = plan
                    .floats
                    .iter()
                    .map(|(name, shape)| TensorSpec::new(name, plan.dtype, shape))
                    .collect();
                specs.extend(
                    plan.integers
                        .iter()
                        .map(|(name, shape, _)| TensorSpec::new(*name, DType::I64, shape)),
                );
                let mut writer = SafetensorsWriter::create(path, &specs, &plan.metadata)?;
                for (idx, (_, _, values)) in plan.integers.iter().enumerate() {
                    writer.append_i64(plan.floats.len() + idx, values)?;
                }
                Ok(Sink::Safetensors(writer))
            }
            "npy" => {
                one_tensor(".npy")?;
                Ok(Sink::Npy(NpyWriter::create(
                    path,
                    plan.dtype,
                    &plan.floats[0].1,
                )?))
            }
            "jsonl" | "ndjson" => {
                one_tensor("a JSON line")?;
                json_numbers()?;
                Ok(Sink::Jsonl {
                    writer: Some(JsonlWriter::create(path)?),
                    pooled,
                    row: 0,
                })
            }
            other => Err(unknown_ending(other, ".safetensors, .npy or .jsonl").at(path.display())),
        }
    }

    /// Appends the values of a batch of rows: `floats[i]` belongs to the plan's float `i`, each
    /// with `values_a_row[r]` values for row `r`.
    pub(crate) fn append(
        &mut self,
        floats: &[&[f32]],
        width: usize,
        values_a_row: &[usize],
        rows: &[RowInfo<'_>],
    ) -> Result<()> {
        match self {
            Sink::Safetensors(writer) => {
                for (idx, values) in floats.iter().enumerate() {
                    writer.append(idx, values)?;
                }
                Ok(())
            }
            Sink::Npy(writer) => writer.append(floats[0]),
            Sink::Jsonl {
                writer,
                pooled,
                row,
            } => {
                let mut rest = floats[0];
                for (info, &n_values) in rows.iter().zip(values_a_row) {
                    let (values, next) = rest.split_at(n_values);
                    rest = next;
                    let line = line(*row, info, values, width, *pooled);
                    match writer {
                        Some(writer) => writer.append(&line)?,
                        None => print(&line)?,
                    }
                    *row += 1;
                }
                Ok(())
            }
        }
    }

    /// Makes the output appear under its name.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Sink::Safetensors(writer) => writer.finish(),
            Sink::Npy(writer) => writer.finish(),
            Sink::Jsonl { writer, .. } => writer.map_or(Ok(()), JsonlWriter::finish),
        }
    }
}

fn line(row: usize, info: &RowInfo<'_>, values: &[f32], width: usize, pooled: bool) -> Value {
    let mut line = Map::new();
    line.insert("row".to_owned(), json!(row));
    if let Some(text) = info.text {
        line.insert("text".to_owned(), json!(text));
    }
    line.insert("input_ids".to_owned(), json!(info.ids));
    let (name, value) = match pooled {
        true => ("embedding", jsonl::vector(values)),
        false => ("last_hidden_state", jsonl::rows(values, width)),
    };
    line.insert(name.to_owned(), value);
    Value::Object(line)
}

/// A line on standard output; a closed pipe is an error, not a panic.
pub(crate) fn print(line: &impl std::fmt::Display) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}").map_err(|e| {
        Error::new(ErrorKind::Io, format!("cannot write: {e}"))
            .at("standard output")
            .source_error(e)
    })
}

/// An ending that is not among the `expected` ones.
pub(crate) fn unknown_ending(ending: &str, expected: &str) -> Error {
    Error::unsupported(match ending {
        "" => format!("the name has no ending, expected {expected}"),
        ending => format!("found the ending `.{ending}`, expected {expected}"),
    })
}
