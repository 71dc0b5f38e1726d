//! Rows of a table, and streams from and to the host.

use super::inputs::{noise, tensor};
use super::{List, SIZES, Subject, Worst};
use crate::Result;
use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::compute::ComputeType;
use crate::tensor::{DType, Tensor};

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>) {
    for tokens in SIZES {
        list.add(format!("{tokens} tokens"), move |subject, worst| {
            let vocab = 131;
            let values = noise(ComputeType::F32, vocab * 24, tokens);
            // The first and the last row, and some twice.
            let ids: Vec<u32> = (0..tokens)
                .map(|at| ((at * 65 + vocab - 1) % vocab) as u32)
                .collect();
            embed(subject, worst, tensor(vocab, 24, &values), &ids)
        });
    }
    for width in [24, 40, 64, 128, 512] {
        list.add(format!("{width} columns"), move |subject, worst| {
            let values = noise(ComputeType::F32, 7 * width, width);
            let table = tensor(7, width, &values);
            embed(subject, worst, table, &[6, 0, 3, 3, 5, 1, 2, 4])
        });
    }
    for dtype in [DType::BF16, DType::F16] {
        list.add(format!("a table in {dtype}"), move |subject, worst| {
            let values = noise(ComputeType::F32, 9 * 40, 3);
            let bytes: Vec<u8> = match dtype {
                DType::F16 => values
                    .iter()
                    .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                    .collect(),
                _ => values
                    .iter()
                    .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
                    .collect(),
            };
            let table = Tensor::new("w", dtype, vec![9, 40], std::sync::Arc::new(bytes), 0)?;
            embed(subject, worst, table, &[8, 0, 1, 7, 7])
        });
    }
    list.add("no tokens", |subject, worst| {
        let values = noise(ComputeType::F32, 3 * 24, 1);
        embed(subject, worst, tensor(3, 24, &values), &[])
    });
    list.add("a stream from the host and back", |subject, worst| {
        for (tokens, columns) in [(1, 1), (17, 24), (33, 130)] {
            let mut values = noise(ComputeType::F32, tokens * columns, columns);
            values[0] = 1.0e30;
            let stream = subject.backend.stream(tokens, columns, &values);
            let found = subject.backend.read_stream(&stream)?;
            worst.compare("stream", &found, &values, |_| 0.0);
        }
        Ok(())
    });
}

fn embed<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    table: Tensor,
    ids: &[u32],
) -> Result<()> {
    let exact = Reference.embed(&Reference.prepare_table(table.clone())?, ids);
    let table = subject.backend.prepare_table(table)?;
    let found = subject.backend.embed(&table, ids);
    let found = subject.backend.read_stream(&found)?;
    worst.compare("embeddings", &found, &exact.data, |_| 0.0);
    Ok(())
}
