//! What others have measured against the states that `--save-states` wrote.

use std::path::Path;

use quintic::verify::{QUANTILES, Reference};
use quintic::{Error, Result};
use serde_json::Value;

use super::line::{Line, Worst};

/// Largest relative difference between two sums over the same states in another order: far
/// above what f64 rounds off, far below what another model or text would make.
const SAME: f64 = 1e-9;

/// A file of results, as `tools/verify_transformers.py` writes it.
pub(super) struct Others {
    place: String,
    body: Value,
    pub(super) lines: Vec<Line>,
}

impl Others {
    /// # Errors
    ///
    /// If the file cannot be read or lacks what a line of the table needs.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read the results", e))?;
        Self::parse(&bytes, path.display().to_string())
    }

    fn parse(bytes: &[u8], place: String) -> Result<Self> {
        let body: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::input(format!("not valid JSON: {e}")).at(&place))?;
        let lines = body["results"]
            .as_array()
            .ok_or_else(|| Error::input("there is no list `results`").at(&place))?
            .iter()
            .enumerate()
            .map(|(idx, result)| {
                line(result).map_err(|e| e.at(format!("`results[{idx}]`")).at(&place))
            })
            .collect::<Result<_>>()?;
        Ok(Others { place, body, lines })
    }

    /// Refuses results that were measured against other states.
    pub(super) fn check(&self, reference: &Reference) -> Result<()> {
        let expected = [
            ("rows", reference.rows().len() as f64),
            ("tokens", reference.n_tokens() as f64),
            ("d_model", reference.d_model() as f64),
            ("reference_rms", reference.rms()),
        ];
        for (name, expected) in expected {
            let found = self.body[name].as_f64();
            if found.is_none_or(|found| (found - expected).abs() > SAME * expected.abs()) {
                return Err(Error::input(format!(
                    "`{name}` is {}, expected {expected}: the results are not against these states",
                    self.body[name]
                ))
                .at(&self.place)
                .hint("write the states with `--save-states` by the same model and texts"));
            }
        }
        Ok(())
    }
}

fn line(result: &Value) -> Result<Line> {
    let number = |value: &Value, name: &str| match value {
        // JSON has no NaN.
        Value::Null => Ok(f64::NAN),
        value => value
            .as_f64()
            .ok_or_else(|| Error::input(format!("`{name}` is {value}, expected a number"))),
    };
    let field = |value: &Value, name: &str| match value.get(name) {
        Some(value) => number(value, name),
        None => Err(Error::input(format!("there is no `{name}`"))),
    };
    let name = result["name"]
        .as_str()
        .ok_or_else(|| Error::input("there is no text `name`"))?;
    let mut values = [0.0; QUANTILES.len() + 1];
    for (value, q) in values.iter_mut().zip(QUANTILES) {
        *value = field(&result["quantiles"], &q.to_string()).map_err(|e| e.at("`quantiles`"))?;
    }
    values[QUANTILES.len()] = field(result, "max")?;
    let cosine = &result["cosine"];
    let place = |name: &str| {
        let whole = cosine[name].as_u64().and_then(|n| usize::try_from(n).ok());
        whole.ok_or_else(|| Error::input(format!("there is no whole number `cosine.{name}`")))
    };
    Ok(Line {
        name: name.to_owned(),
        backend: None,
        isa: None,
        values,
        relative_rms: field(result, "relative_rms")?,
        mean_cosine: field(cosine, "mean").map_err(|e| e.at("`cosine`"))?,
        worst: Some(Worst {
            cosine: field(cosine, "least").map_err(|e| e.at("`cosine`"))?,
            row: place("row")?,
            position: place("position")?,
            id: place("id")?,
            text: None,
        }),
        logits: None,
        passes_again: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"rows": 1, "tokens": 2, "d_model": 3, "reference_rms": 1.5,
        "results": [{"name": "x", "quantiles": {"0.5": 1, "0.9": 2, "0.99": 3, "0.999": 4,
        "0.9999": null}, "max": 6.5, "relative_rms": 0.1,
        "cosine": {"mean": 0.9, "least": 0.8, "row": 0, "position": 1, "id": 7}}]}"#;

    #[test]
    fn a_line_is_read() {
        let others = Others::parse(GOOD.as_bytes(), "f".to_owned()).unwrap();
        let [line] = &others.lines[..] else { panic!() };
        assert_eq!(
            (line.name.as_str(), line.values[5], line.values[0]),
            ("x", 6.5, 1.0)
        );
        assert!(line.values[4].is_nan());
        assert_eq!(line.worst.as_ref().unwrap().position, 1);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (from, to, message) in [
            (
                "\"max\": 6.5",
                "\"maximum\": 6.5",
                "f: `results[0]`: there is no `max`",
            ),
            (
                "\"0.99\"",
                "\"0.98\"",
                "f: `results[0]`: `quantiles`: there is no `0.99`",
            ),
            (
                "\"least\": 0.8",
                "\"least\": \"a\"",
                "`cosine`: `least` is \"a\", expected a number",
            ),
            (
                "\"id\": 7",
                "\"id\": -7",
                "there is no whole number `cosine.id`",
            ),
            ("\"name\"", "\"label\"", "there is no text `name`"),
            ("\"results\"", "\"result\"", "f: there is no list `results`"),
            ("{\"rows\"", "[\"rows\"", "f: not valid JSON"),
        ] {
            let bad = GOOD.replacen(from, to, 1);
            let error = Others::parse(bad.as_bytes(), "f".to_owned()).err().unwrap();
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
