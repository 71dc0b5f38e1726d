//! `quintic compare`.

use quintic::checkpoint::SafetensorsFile;
use quintic::{Error, Result, Tensor};
use serde_json::{Value, json};

use crate::args::CompareArgs;
use crate::show::thousands;
use crate::sink::print;

/// The quantiles of the absolute difference that are shown.
const QUANTILES: [f64; 7] = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999];

/// How far two tensors are apart.
struct Difference {
    name: String,
    n_elements: usize,
    max: f64,
    quantiles: [f64; 7],
    /// Root mean square of the difference over that of the first tensor.
    relative_rms: f64,
}

/// Shows the differences; a failure's exit code if one is above `--max`.
pub(crate) fn run(args: &CompareArgs) -> Result<u8> {
    let (a, b) = (
        SafetensorsFile::open(&args.a)?,
        SafetensorsFile::open(&args.b)?,
    );
    let differences = names(&a, &b, args.tensor.as_deref())?
        .into_iter()
        .map(|name| compare(&a.take(&name)?, &b.take(&name)?))
        .collect::<Result<Vec<_>>>()?;
    if args.json {
        print(&as_json(&differences))?;
    } else {
        for difference in &differences {
            show(difference)?;
        }
    }
    let Some(limit) = args.max else {
        return Ok(0);
    };
    // NaN is above every limit.
    let above: Vec<&Difference> = differences
        .iter()
        .filter(|d| d.max > limit || d.max.is_nan())
        .collect();
    for difference in &above {
        eprintln!(
            "tensor `{}`: {:.3e} is above {limit:e}",
            difference.name, difference.max
        );
    }
    Ok(u8::from(!above.is_empty()))
}

/// Tensors in both files. One that is in a single file is an error, unless one was named.
fn names(a: &SafetensorsFile, b: &SafetensorsFile, only: Option<&str>) -> Result<Vec<String>> {
    if let Some(name) = only {
        return Ok(vec![name.to_owned()]);
    }
    for (here, there) in [(a, b), (b, a)] {
        if let Some(entry) = here
            .entries()
            .iter()
            .find(|e| there.entry(e.name()).is_none())
        {
            return Err(Error::input(format!(
                "tensor `{}` is missing, but {} has it",
                entry.name(),
                here.path().display()
            ))
            .at(there.path().display())
            .hint("compare one tensor with `--tensor`"));
        }
    }
    let names: Vec<String> = a.entries().iter().map(|e| e.name().to_owned()).collect();
    if names.is_empty() {
        return Err(Error::input("there are no tensors").at(a.path().display()));
    }
    Ok(names)
}

fn compare(a: &Tensor, b: &Tensor) -> Result<Difference> {
    if a.shape() != b.shape() {
        return Err(
            Error::input(format!("shapes {:?} and {:?} differ", a.shape(), b.shape()))
                .at(format!("tensor `{}`", a.name())),
        );
    }
    let (a_values, b_values) = (values(a)?, values(b)?);
    let mut absolute: Vec<f64> = a_values
        .iter()
        .zip(&b_values)
        // Equal infinities do not differ; NaN differs from everything.
        .map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() })
        .collect();
    let rms = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let (error, size) = (rms(&absolute), rms(&a_values));
    // NaN sorts last, so it shows in the maximum.
    absolute.sort_by(f64::total_cmp);
    let at = |q: f64| match absolute.len() {
        0 => 0.0,
        n => absolute[((n as f64 * q).ceil() as usize).clamp(1, n) - 1],
    };
    Ok(Difference {
        name: a.name().to_owned(),
        n_elements: absolute.len(),
        max: at(1.0),
        quantiles: QUANTILES.map(at),
        relative_rms: if error == 0.0 { 0.0 } else { error / size },
    })
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    if tensor.dtype().is_float() {
        return Ok(tensor.to_f32().into_iter().map(f64::from).collect());
    }
    Ok(crate::batches::integers(tensor)?
        .into_iter()
        .map(|value| value as f64)
        .collect())
}

fn show(difference: &Difference) -> Result<()> {
    print(&format_args!(
        "{} ({} elements)\n  max {:.3e}   relative rms {:.3e}",
        difference.name,
        thousands(difference.n_elements as u128),
        difference.max,
        difference.relative_rms
    ))?;
    let columns: Vec<String> = QUANTILES
        .iter()
        .zip(difference.quantiles)
        .map(|(q, value)| format!("{q}: {value:.3e}"))
        .collect();
    print(&format_args!("  quantiles  {}", columns.join("   ")))
}

fn as_json(differences: &[Difference]) -> Value {
    differences
        .iter()
        .map(|d| {
            let quantiles: serde_json::Map<String, Value> = QUANTILES
                .iter()
                .zip(d.quantiles)
                .map(|(q, v)| (q.to_string(), json!(v)))
                .collect();
            let body = json!({
                "elements": d.n_elements, "max": d.max, "relative_rms": d.relative_rms,
                "quantiles": quantiles,
            });
            (d.name.clone(), body)
        })
        .collect::<serde_json::Map<String, Value>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_f32("x", vec![values.len()], values)
    }

    #[test]
    fn differences_by_hand() {
        let a: Vec<f32> = vec![1.0; 100];
        let mut b = a.clone();
        b[7] = 3.0;
        b[8] = 1.5;
        let difference = compare(&tensor(&a), &tensor(&b)).unwrap();
        assert_eq!(difference.max, 2.0);
        assert_eq!(difference.quantiles, [0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 2.0]);
        assert!((difference.relative_rms - (4.25f64 / 100.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn nan_is_never_equal_and_equal_infinities_are() {
        let nan = compare(&tensor(&[f32::NAN, 1.0]), &tensor(&[f32::NAN, 1.0])).unwrap();
        assert!(nan.max.is_nan());
        let inf = f32::INFINITY;
        assert_eq!(compare(&tensor(&[inf]), &tensor(&[inf])).unwrap().max, 0.0);
        assert!(compare(&tensor(&[1.0]), &tensor(&[1.0, 2.0])).is_err());
    }
}
