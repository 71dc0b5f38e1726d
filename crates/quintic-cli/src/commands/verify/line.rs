//! One way to compute, as a line of the table, an object of JSON, a curve.

use quintic::tokenizer::Tokenizer;
use quintic::verify::{LogitsReport, QUANTILES, Report};
use serde_json::{Map, Value, json};

/// A line of the table.
pub(super) struct Line {
    pub(super) name: String,
    /// Of our own runs.
    pub(super) backend: Option<&'static str>,
    pub(super) isa: Option<&'static str>,
    /// Of |difference|: the quantiles, then the maximum.
    pub(super) values: [f64; QUANTILES.len() + 1],
    pub(super) relative_rms: f64,
    pub(super) mean_cosine: f64,
    pub(super) worst: Option<Worst>,
    pub(super) logits: Option<LogitsReport>,
    /// Passes that f16 had not held at first.
    pub(super) passes_again: Option<u64>,
}

/// The token whose vector points most elsewhere.
pub(super) struct Worst {
    pub(super) cosine: f64,
    pub(super) row: usize,
    pub(super) position: usize,
    pub(super) id: usize,
    /// Its piece.
    pub(super) text: Option<String>,
}

impl Line {
    pub(super) fn of(name: &str, report: Report) -> Self {
        Line {
            name: name.to_owned(),
            backend: Some(report.backend),
            isa: report.isa,
            values: quantiles_and_max(&report.states.quantiles, report.states.max),
            relative_rms: report.states.relative_rms,
            mean_cosine: report.tokens.mean,
            worst: report.tokens.worst.map(|worst| Worst {
                cosine: worst.cosine,
                row: worst.row,
                position: worst.position,
                id: worst.id as usize,
                text: None,
            }),
            logits: report.logits,
            passes_again: report.passes_again,
        }
    }

    /// Finds the piece of the worst token.
    pub(super) fn name_worst(&mut self, tokenizer: &Tokenizer) {
        if let Some(worst) = &mut self.worst {
            let id = u32::try_from(worst.id).ok();
            worst.text = id.and_then(|id| tokenizer.token(id));
        }
    }

    pub(super) fn as_json(&self) -> Value {
        let worst = self.worst.as_ref();
        let mut cosine = Map::new();
        cosine.insert("mean".to_owned(), json!(self.mean_cosine));
        if let Some(worst) = worst {
            cosine.insert("least".to_owned(), json!(worst.cosine));
            cosine.insert("row".to_owned(), json!(worst.row));
            cosine.insert("position".to_owned(), json!(worst.position));
            cosine.insert("id".to_owned(), json!(worst.id));
            cosine.insert("token".to_owned(), json!(worst.text));
        }
        let mut body = json!({
            "name": self.name,
            "backend": self.backend,
            "isa": self.isa,
            "quantiles": quantiles_json(&self.values),
            "max": self.values[QUANTILES.len()],
            "relative_rms": self.relative_rms,
            "cosine": cosine,
        });
        if let Some(n) = self.passes_again {
            body["passes_run_again"] = json!(n);
        }
        if let Some(logits) = &self.logits {
            let distance = &logits.distance;
            body["logits"] = json!({
                "tokens": logits.n_tokens,
                "other_top_token": logits.n_other_top,
                "quantiles": quantiles_json(&distance.quantiles),
                "max": distance.max,
                "relative_rms": distance.relative_rms,
            });
        }
        body
    }
}

/// The numbers of a curve.
pub(super) fn quantiles_and_max(quantiles: &[f64], max: f64) -> [f64; QUANTILES.len() + 1] {
    let mut values = [max; QUANTILES.len() + 1];
    for (value, quantile) in values.iter_mut().zip(quantiles) {
        *value = *quantile;
    }
    values
}

/// Values by quantile.
pub(super) fn quantiles_json(values: &[f64]) -> Value {
    let pairs = QUANTILES.iter().zip(values);
    let pairs = pairs.map(|(q, value)| (q.to_string(), json!(value)));
    Value::Object(pairs.collect())
}
