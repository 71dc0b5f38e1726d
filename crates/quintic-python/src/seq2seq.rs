//! An encoder-decoder model as Python holds it.

use std::ops::ControlFlow;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use quintic::batch::PackedBatch;
use quintic::config::Family;
use quintic::generate::{
    Event, Finish, GenerateOptions, GenerationConfig, Listener, Request, Stop, generate,
};
use quintic::{BackendKind, Decode, Error, Result, Seq2Seq, Sources};
use serde_json::Value;

use crate::encoder::{Computing, Files, config_dict, kept, stored_type};
use crate::guard;

/// A loaded model. Immutable; any number of threads may call it.
#[pyclass(frozen, name = "Seq2Seq", module = "quintic._quintic")]
pub(crate) struct Model(Seq2Seq);

/// Sources as Python hands them over: token ids, or hidden states with where rows begin.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Given<'py> {
    ids: Option<Vec<Vec<u32>>>,
    states: Option<PyReadonlyArray1<'py, f32>>,
    row_starts: Option<Vec<usize>>,
}

impl Given<'_> {
    fn sources(&self) -> PyResult<Sources<'_>> {
        Ok(match (&self.ids, &self.states, &self.row_starts) {
            (Some(ids), _, _) => Sources::Ids(ids),
            (None, Some(states), Some(row_starts)) => Sources::States {
                values: states.as_slice()?,
                row_starts,
            },
            _ => Sources::Ids(&[]),
        })
    }
}

/// Tokens with the prefix, score, log-probabilities of new tokens, and why it ended.
type Generated = (Vec<u32>, f32, Vec<f32>, &'static str);

/// Logits `[tokens, vocab]`, hidden states `[tokens, d_model]`, inner ones, log-probabilities; flat.
type Decoded<'py> = (
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray1<f32>>,
    Vec<Bound<'py, PyArray1<f32>>>,
    Bound<'py, PyArray1<f32>>,
);

#[pymethods]
impl Model {
    /// Loads the model of a path or repository id.
    #[staticmethod]
    fn load(py: Python<'_>, model: String, files: Files, computing: Computing) -> PyResult<Model> {
        guard::run(py, || {
            let checkpoint = files.load_options().open(&model)?;
            let backend = computing.backend()?;
            let config = quintic::config_of(&checkpoint)?;
            let auto = || match backend {
                // It has one way of computing, whatever the files are in.
                BackendKind::Reference => None,
                BackendKind::Cpu | BackendKind::Cuda(_) => stored_type(&config, &checkpoint),
            };
            let plan = computing.plan(&checkpoint)?;
            let compute = computing.choice_by(plan.as_ref(), auto)?.resolve(None)?;
            let model = Seq2Seq::from_checkpoint(&checkpoint, backend, &compute)?;
            if let Some(plan) = plan {
                model.encoder().start_scales(&plan.scales());
            }
            Ok(Model(model))
        })
    }

    /// A pass over whole decoder inputs.
    #[pyo3(signature = (*, given, rows, targets, logits, hidden_states))]
    fn decode<'py>(
        &self,
        py: Python<'py>,
        given: Given<'py>,
        rows: Vec<Vec<u32>>,
        targets: Option<Vec<Vec<Option<u32>>>>,
        logits: bool,
        hidden_states: bool,
    ) -> PyResult<Decoded<'py>> {
        let sources = given.sources()?;
        let decoded = guard::run_interruptible(py, |signals| {
            self.0.decode(&Decode {
                sources,
                rows: &rows,
                targets: targets.as_deref(),
                keep_logits: logits,
                keep_inner: hidden_states,
                interrupted: Some(&|| signals.pending()),
            })
        })?;
        Ok((
            decoded.logits.into_pyarray(py),
            decoded.last.into_pyarray(py),
            decoded
                .inner
                .into_iter()
                .map(|inner| inner.into_pyarray(py))
                .collect(),
            decoded.log_probs.into_pyarray(py),
        ))
    }

    /// Generates from every source; `options` is a JSON object of transformers' names, put over
    /// the model's own. `listener(token)` hears of the tokens of a single greedy or drawn row;
    /// `stop(new_tokens)` is asked after each token of each sequence whether it ends.
    #[pyo3(signature = (*, given, prefixes, options, max_rows, listener, stop))]
    #[allow(clippy::too_many_arguments, reason = "named arguments of Python")]
    fn generate(
        &self,
        py: Python<'_>,
        given: Given<'_>,
        prefixes: Option<Vec<Vec<u32>>>,
        options: String,
        max_rows: usize,
        listener: Option<Py<PyAny>>,
        stop: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Vec<Generated>>> {
        let sources = given.sources()?;
        let results = guard::run_interruptible(py, |signals| {
            let config = self.generation(&options)?;
            let start: Vec<u32> = config.decoder_start_token_id.into_iter().collect();
            let prefix_of = |source: usize| match &prefixes {
                Some(prefixes) => &prefixes[source],
                None => &start,
            };
            // What Python raises ends everything, at the next step.
            let asked = |new: &[u32]| match &stop {
                Some(stop) => Python::attach(|py| {
                    let answer = stop.call1(py, (new,)).and_then(|found| found.is_truthy(py));
                    match answer {
                        Ok(answer) => answer,
                        Err(error) => {
                            signals.note(Err(error));
                            true
                        }
                    }
                }),
                None => false,
            };
            let stops: Vec<_> = (0..sources.len())
                .map(|source| {
                    let n = prefix_of(source).len();
                    move |tokens: &[u32]| asked(&tokens[n..])
                })
                .collect();
            let requests: Vec<Request<'_>> = (0..sources.len())
                .map(|source| Request {
                    source,
                    prefix: prefix_of(source),
                    config: &config,
                    stop: (stop.is_some()).then_some(&stops[source] as Stop<'_>),
                })
                .collect();
            let interrupted = || signals.pending();
            let mut rows = self.0.rows(sources, Some(&interrupted))?;
            let mut tell = |event: Event| match &listener {
                Some(listener) => {
                    let told = Python::attach(|py| listener.call1(py, (event.token,)).map(drop));
                    match signals.note(told) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                }
                None => ControlFlow::Continue(()),
            };
            let tell: Option<Listener<'_>> = Some(&mut tell);
            let options = GenerateOptions {
                max_rows,
                interrupted: Some(&interrupted),
            };
            generate(rows.as_mut(), &requests, &options, tell)
        })?;
        Ok(results
            .into_iter()
            .map(|sequences| {
                sequences
                    .into_iter()
                    .map(|s| {
                        let finish = match s.finish {
                            Finish::Eos(_) => "eos",
                            Finish::Stop => "stop",
                            Finish::Length => "length",
                            Finish::Cancelled => "cancelled",
                        };
                        (s.tokens, s.score, s.log_probs, finish)
                    })
                    .collect()
            })
            .collect())
    }

    /// The encoder's hidden states of every source, `[tokens, d_model]`, sources end to end.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        rows: Vec<Vec<u32>>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let states = guard::run(py, || {
            let batch = PackedBatch::from_rows(&rows, self.0.config().vocab_size)?;
            self.0.encoder().hidden_states(&batch, false)
        })?;
        Ok(states.last.into_pyarray(py))
    }

    /// The shape of the model under Hugging Face's names.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.0.config();
        let dict = config_dict(py, config)?;
        dict.set_item("num_decoder_layers", config.num_decoder_layers)?;
        Ok(dict)
    }

    /// Folder of config.json, if there is one.
    #[getter]
    fn folder(&self) -> Option<String> {
        self.0.folder().map(|folder| folder.display().to_string())
    }

    /// What these options, over the model's own, come to: start token, what fills up behind an
    /// end, whether tokens are drawn, and sequences and beams of a row.
    fn generation_facts(
        &self,
        py: Python<'_>,
        options: String,
    ) -> PyResult<(Option<u32>, u32, bool, usize, usize)> {
        guard::run(py, || {
            let config = self.generation(&options)?;
            // As transformers: an end token where there is no pad token.
            let fill = config.pad_token_id.or(config.eos_token_id.first().copied());
            Ok((
                config.decoder_start_token_id,
                fill.unwrap_or(0),
                config.do_sample,
                config.num_return_sequences,
                config.num_beams,
            ))
        })
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.config().vocab_size
    }

    #[getter]
    fn d_model(&self) -> usize {
        self.0.config().d_model
    }

    #[getter]
    fn family(&self) -> Option<&'static str> {
        self.0.config().family.map(Family::model_type)
    }

    #[getter]
    fn path(&self) -> String {
        self.0.encoder().path().display().to_string()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.encoder().compute().dtype.name()
    }

    /// `as-stored`, `int8`, `int4` or `w8a8`.
    #[getter]
    fn weights(&self) -> &'static str {
        self.0.encoder().compute().weights.name()
    }

    /// Products that `weights` leaves out.
    #[getter]
    fn keep(&self) -> Vec<String> {
        kept(self.0.encoder().compute())
    }
}

impl Model {
    fn generation(&self, options: &str) -> Result<GenerationConfig> {
        let mut config = self.0.generation_config()?;
        match serde_json::from_str(options) {
            Ok(Value::Object(fields)) => config.choose(&fields)?,
            _ => return Err(Error::input("generation options are no JSON object")),
        }
        Ok(config)
    }
}
