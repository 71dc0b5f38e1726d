//! `quintic check`.

use quintic::suite::{self, Group, Options, Outcome, Ran, Verdict};
use quintic::{BackendKind, ComputeType, Error, Result};
use serde_json::{Value, json};

use crate::args::CheckArgs;
use crate::show::columns;
use crate::sink::print;

/// Exit code if a case failed.
const FAILED: u8 = 1;

/// Cases of one backend in one type.
struct Checked {
    ran: Ran,
    dtype: ComputeType,
    outcomes: Vec<Outcome>,
}

impl Checked {
    fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| !outcome.passed())
    }

    /// Outcomes group by group; groups without a case are left out.
    fn groups(&self) -> impl Iterator<Item = (Group, Vec<&Outcome>)> {
        Group::ALL.into_iter().filter_map(|group| {
            let own = self.outcomes.iter().filter(|own| own.group == group);
            let own: Vec<&Outcome> = own.collect();
            (!own.is_empty()).then_some((group, own))
        })
    }
}

pub(crate) fn run(args: &CheckArgs) -> Result<u8> {
    let kinds = match args.backend.as_str() {
        "all" => BackendKind::ALL.to_vec(),
        name => {
            let kind = BackendKind::parse(name)?;
            // Asked for by name, a backend that is not here is an error.
            kind.available()?;
            vec![kind]
        }
    };
    let dtype = match args.dtype.as_str() {
        "all" => None,
        name => Some(ComputeType::parse(name)?),
    };
    let (mut checked, mut absent) = (Vec::new(), Vec::new());
    for &kind in &kinds {
        if let Err(error) = kind.available() {
            absent.push((kind.name(), error));
            continue;
        }
        let dtypes = match dtype {
            // One backend that does not compute in this type is an error, too.
            Some(dtype) if kinds.len() == 1 => vec![dtype],
            _ => suite::dtypes(kind).to_vec(),
        };
        for own in dtypes {
            if dtype.is_none_or(|dtype| dtype == own) {
                checked.push(check(kind, own, args)?);
            }
        }
    }
    let n_cases: usize = checked.iter().map(|own| own.outcomes.len()).sum();
    let n_failed: usize = checked.iter().map(|own| own.failures().count()).sum();
    if args.json {
        let body = json!({
            "checked": checked.iter().map(as_json).collect::<Vec<_>>(),
            "not_available": absent
                .iter()
                .map(|(name, error)| json!({ "backend": name, "reason": reason(error) }))
                .collect::<Vec<_>>(),
            "cases": n_cases,
            "failed": n_failed,
        });
        print(&body)?;
    } else {
        show(&checked, &absent, n_cases, n_failed)?;
    }
    match (n_cases, &args.filter) {
        (0, Some(filter)) if !checked.is_empty() => Err(Error::input(format!(
            "no case has `{filter}` in its `group/name`"
        ))),
        (0, _) => Err(Error::unsupported(
            "nothing was checked: no backend that was asked for is available here",
        )),
        (_, _) if n_failed > 0 => Ok(FAILED),
        (_, _) => Ok(0),
    }
}

fn check(kind: BackendKind, dtype: ComputeType, args: &CheckArgs) -> Result<Checked> {
    let mut options = Options::of(kind, dtype);
    options.filter.clone_from(&args.filter);
    let mut outcomes = Vec::new();
    let ran = suite::run_on(kind, &options, &mut |outcome| {
        outcomes.push(outcome.clone());
    })?;
    Ok(Checked {
        ran,
        dtype,
        outcomes,
    })
}

/// An error in a line.
fn reason(error: &Error) -> String {
    match error.place() {
        Some(place) => format!("{place}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// What a verdict is called, and what it says.
fn verdict(verdict: &Verdict) -> (&'static str, &str) {
    match verdict {
        Verdict::Passed => ("passed", ""),
        Verdict::Failed(what) => ("failed", what),
        Verdict::Refused(what) => ("refused", what),
        Verdict::Panicked(what) => ("panicked", what),
    }
}

/// The largest share of a bound that an error takes. Infinity if a case has no error to measure.
fn largest_share(outcomes: &[&Outcome]) -> f64 {
    let shares = outcomes.iter().map(|outcome| outcome.share());
    shares.fold(0.0, f64::max)
}

fn show(
    checked: &[Checked],
    absent: &[(&'static str, Error)],
    n_cases: usize,
    n_failed: usize,
) -> Result<()> {
    let titles = [
        "backend",
        "isa",
        "dtype",
        "group",
        "cases",
        "passed",
        "failed",
        "worst error/bound",
    ];
    let mut table = vec![titles.map(str::to_owned)];
    for own in checked {
        for (group, outcomes) in own.groups() {
            let failed = outcomes.iter().filter(|outcome| !outcome.passed()).count();
            table.push([
                own.ran.backend.to_owned(),
                own.ran.isa.unwrap_or("-").to_owned(),
                own.dtype.name().to_owned(),
                group.name().to_owned(),
                outcomes.len().to_string(),
                (outcomes.len() - failed).to_string(),
                failed.to_string(),
                format!("{:.3}", largest_share(&outcomes)),
            ]);
        }
    }
    print(&columns(&table, 4))?;
    for (name, error) in absent {
        print(&format_args!(
            "{name}: not available here: {}",
            reason(error)
        ))?;
    }
    for own in checked {
        for outcome in own.failures() {
            let (called, what) = verdict(&outcome.verdict);
            print(&format_args!(
                "\n{called}: {}, {}: {}/{}\n  error {:.3e}, bound {:.3e}\n  {what}",
                own.ran.backend,
                own.dtype.name(),
                outcome.group,
                outcome.name,
                outcome.error,
                outcome.bound
            ))?;
        }
    }
    print(&format_args!("\n{n_cases} cases, {n_failed} failed"))
}

fn as_json(own: &Checked) -> Value {
    let groups = own.groups().map(|(group, outcomes)| {
        let failed = outcomes.iter().filter(|outcome| !outcome.passed()).count();
        json!({
            "group": group.name(),
            "cases": outcomes.len(),
            "passed": outcomes.len() - failed,
            "failed": failed,
            "worst_error_over_bound": largest_share(&outcomes),
        })
    });
    let failures = own.failures().map(|outcome| {
        let (called, what) = verdict(&outcome.verdict);
        json!({
            "case": format!("{}/{}", outcome.group, outcome.name),
            "verdict": called,
            "what": what,
            "error": outcome.error,
            "bound": outcome.bound,
        })
    });
    json!({
        "backend": own.ran.backend,
        "isa": own.ran.isa,
        "dtype": own.dtype.name(),
        "groups": groups.collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_without_an_error_to_measure_is_the_worst() {
        let outcome = |error, bound, verdict| Outcome {
            group: Group::Norm,
            name: "x".to_owned(),
            error,
            bound,
            verdict,
        };
        let near = outcome(0.5, 1.0, Verdict::Passed);
        let beyond = outcome(3.0, 1.0, Verdict::Failed("far".to_owned()));
        let lost = outcome(f64::INFINITY, 0.0, Verdict::Panicked("no".to_owned()));
        let exact = outcome(0.0, 0.0, Verdict::Passed);
        assert_eq!(largest_share(&[&exact]), 0.0);
        assert_eq!(largest_share(&[&near, &exact]), 0.5);
        assert_eq!(largest_share(&[&near, &beyond]), 3.0);
        assert_eq!(largest_share(&[&lost, &beyond]), f64::INFINITY);

        let own = Checked {
            ran: Ran {
                backend: "cpu",
                isa: None,
            },
            dtype: ComputeType::F32,
            outcomes: vec![near, beyond, lost],
        };
        let body = as_json(&own);
        assert_eq!(body["groups"][0]["failed"], 2);
        assert_eq!(body["failures"][0]["case"], "norm/x");
        assert_eq!(body["failures"][0]["what"], "far");
        assert_eq!(body["failures"][1]["verdict"], "panicked");
        // JSON has no infinity.
        assert_eq!(body["failures"][1]["error"], Value::Null);
    }
}
