//! Texts to ids, and many texts to vectors or states.

use std::path::Path;

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;
use quintic::backend::Pool;
use quintic::preset::{Preset, TokenizerClass};
use quintic::sentence::normalize;
use quintic::tokenizer::TokenizerChoice;
use quintic::{Error, Result, RowsOptions};

use crate::encoder::Encoder;
use crate::guard;

/// The tokenizer of a model.
#[pyclass(frozen, module = "quintic._quintic")]
pub(crate) struct Tokenizer(quintic::Tokenizer);

#[pymethods]
impl Tokenizer {
    /// Reads the tokenizer of a folder or file; `kind` is `auto`, `fast` or `slow`.
    #[staticmethod]
    fn open(py: Python<'_>, path: String, kind: &str) -> PyResult<Self> {
        let choice = choice(kind);
        guard::run(py, || open(&path, choice)).map(Tokenizer)
    }

    /// Reads the tokenizer inside the weight file of a model, if there is one: that of a GGUF file,
    /// or a tensor `spiece_model` of a safetensors file.
    #[staticmethod]
    fn inside(py: Python<'_>, encoder: &Bound<'_, Encoder>) -> PyResult<Option<Self>> {
        let encoder = encoder.get();
        guard::run(py, || encoder.tokenizer_inside()).map(|found| found.map(Tokenizer))
    }

    /// Ids of each text, `</s>` included, cut to `max_length` ids if given.
    fn encode(
        &self,
        py: Python<'_>,
        texts: Vec<String>,
        max_length: Option<usize>,
    ) -> PyResult<Vec<Vec<u32>>> {
        guard::run(py, || ids_of(&self.0, &texts, max_length))
    }

    /// The text of ids.
    fn decode(&self, py: Python<'_>, ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        guard::run(py, || self.0.decode(&ids, skip_special_tokens))
    }

    /// Tokens that the tokenizer's files say a text may have; many of them say 10^30.
    #[getter]
    fn model_max_length(&self) -> Option<u64> {
        self.0.model_max_length()
    }

    #[getter]
    fn pad_id(&self) -> Option<u32> {
        self.0.pad_id()
    }

    #[getter]
    fn description(&self) -> String {
        self.0.describe()
    }
}

fn choice(kind: &str) -> TokenizerChoice {
    match kind {
        "fast" => TokenizerChoice::Fast,
        "slow" => TokenizerChoice::Slow,
        _ => TokenizerChoice::Auto,
    }
}

fn open(path: &str, choice: TokenizerChoice) -> Result<quintic::Tokenizer> {
    let path = Path::new(path);
    match path.is_dir() {
        true => quintic::Tokenizer::from_dir(path, choice),
        false => quintic::Tokenizer::from_file(path),
    }
}

fn ids_of(
    tokenizer: &quintic::Tokenizer,
    texts: &[String],
    max_length: Option<usize>,
) -> Result<Vec<Vec<u32>>> {
    let one = |text: &String| match max_length {
        Some(max_length) => tokenizer.encode_truncated(text, max_length),
        None => tokenizer.encode(text, true),
    };
    texts
        .iter()
        .enumerate()
        .map(|(row, text)| one(text).map_err(|e| e.at(format!("text {row}"))))
        .collect()
}

/// How rows become one vector each.
enum Pooling {
    Plain(Pool),
    /// The modules of the model's own sentence-transformers folder.
    Sentence,
    None,
}

impl Pooling {
    fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "mean" => Pooling::Plain(Pool::Mean),
            "first" | "cls" => Pooling::Plain(Pool::First),
            "last" => Pooling::Plain(Pool::Last),
            "sentence" => Pooling::Sentence,
            "none" => Pooling::None,
            other => {
                return Err(Error::input(format!(
                    "`pool` is `{other}`, expected `mean`, `first`, `last`, `sentence` or `none`"
                )));
            }
        })
    }
}

/// Conditioning of a preset: `(states, tokens, mask)`.
type Prepared<'py> = (
    Bound<'py, PyArray1<i64>>,
    [usize; 2],
    Option<Bound<'py, PyArray1<bool>>>,
    &'static str,
    Vec<usize>,
    usize,
    Option<Bound<'py, PyArray1<bool>>>,
);

/// Encodes rows of ids in batches of at most `batch_tokens` tokens. Gives a flat array and
/// its width for each: all vectors `[rows, width]` in one, or with pool `none` one array
/// `[len, d_model]` a row. `progress` is called with rows done.
#[pyfunction]
#[pyo3(signature = (encoder, rows, *, batch_tokens, pool, normalize, progress))]
pub(crate) fn encode_rows<'py>(
    py: Python<'py>,
    encoder: &Bound<'py, Encoder>,
    rows: Vec<Vec<u32>>,
    batch_tokens: usize,
    pool: &str,
    normalize: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Bound<'py, PyList>, usize)> {
    let encoder = encoder.get();
    let (vectors, width) = guard::run_interruptible(py, |signals| {
        let report = |done: usize, _all: usize| {
            if let Some(progress) = &progress {
                let told = Python::attach(|py| progress.call1(py, (done,)).map(drop));
                signals.note(told);
            }
        };
        let options = RowsOptions {
            interrupted: Some(&|| signals.pending()),
            progress: Some(&report),
        };
        encoder.vectors(&rows, batch_tokens, pool, normalize, &options)
    })?;
    let arrays = vectors.into_iter().map(|values| values.into_pyarray(py));
    Ok((PyList::new(py, arrays)?, width))
}

/// Width of an embedding.
#[pyfunction]
pub(crate) fn embedding_width(
    py: Python<'_>,
    encoder: &Bound<'_, Encoder>,
    pool: &str,
) -> PyResult<usize> {
    let encoder = encoder.get();
    guard::run(py, || encoder.width(&Pooling::parse(pool)?))
}

/// Longest text in tokens that the model's own sentence-transformers modules name.
#[pyfunction]
pub(crate) fn sentence_max_length(
    py: Python<'_>,
    encoder: &Bound<'_, Encoder>,
) -> PyResult<Option<usize>> {
    let encoder = encoder.get();
    guard::run(py, || {
        let head = encoder.encoder.sentence_head()?;
        Ok(head.and_then(|head| head.max_length()))
    })
}

/// Lays prompts out as a preset's pipeline does: ids `[rows, len]` flat, their shape, the
/// key mask, what is computed at padding, tokens of each row, positions of the result, and
/// the mask for the image model.
#[pyfunction]
pub(crate) fn prepare<'py>(
    py: Python<'py>,
    encoder: &Bound<'py, Encoder>,
    preset: &str,
    prompts: Vec<String>,
    max_length: Option<usize>,
    tokenizer: Option<String>,
) -> PyResult<Prepared<'py>> {
    let encoder = encoder.get();
    let (conditioning, keys) = guard::run(py, || {
        let preset = Preset::by_name(preset)?;
        let config = encoder.encoder.config();
        if let Some(family) = config.family {
            preset.check_family(family)?;
        }
        let preset = match max_length {
            Some(max_length) => preset.with_max_length(max_length)?,
            None => preset.clone(),
        };
        let tokenizer = encoder.tokenizer_for(tokenizer, preset.tokenizer)?;
        let pad_id = config.pad_token_id.unwrap_or(0);
        let conditioning = preset.prepare(&prompts, &tokenizer, pad_id)?;
        let keys = match conditioning.batch.mask() {
            quintic::batch::PaddedMask::Keys(keys) => Some(keys.clone()),
            _ => None,
        };
        Ok((conditioning, keys))
    })?;
    let batch = &conditioning.batch;
    let pad_rows = match conditioning.pad_rows {
        quintic::batch::PadRows::Zero => "zero",
        quintic::batch::PadRows::Compute => "compute",
    };
    Ok((
        batch.ids().to_vec().into_pyarray(py),
        [batch.rows(), batch.len()],
        keys.map(|keys| keys.into_pyarray(py)),
        pad_rows,
        conditioning.tokens,
        conditioning.length,
        conditioning.image_mask.map(|mask| mask.into_pyarray(py)),
    ))
}

impl Encoder {
    /// The tokenizer at `path`, or the one beside the model, of the kind that a pipeline uses, or
    /// the one inside the weight file.
    fn tokenizer_for(
        &self,
        path: Option<String>,
        class: TokenizerClass,
    ) -> Result<quintic::Tokenizer> {
        let Some(folder) = path.or_else(|| self.tokenizer_folder()) else {
            return self.tokenizer_inside()?.ok_or_else(|| {
                Error::input(
                    "the model has no tokenizer beside it, and its weights have none inside",
                )
                .at(self.encoder.path().display())
                .hint("name one by `tokenizer`")
            });
        };
        let has = |file: &str| Path::new(&folder).join(file).is_file();
        let choice = match class {
            TokenizerClass::T5Slow if has("spiece.model") => TokenizerChoice::Slow,
            TokenizerClass::T5Fast if has("tokenizer.json") => TokenizerChoice::Fast,
            _ => TokenizerChoice::Auto,
        };
        open(&folder, choice)
    }

    fn width(&self, pooling: &Pooling) -> Result<usize> {
        let d_model = self.encoder.config().d_model;
        Ok(match pooling {
            Pooling::Sentence => self.head()?.width(d_model),
            Pooling::Plain(_) | Pooling::None => d_model,
        })
    }

    fn head(&self) -> Result<quintic::sentence::SentenceHead> {
        self.encoder.sentence_head()?.ok_or_else(|| {
            Error::input("pool `sentence` needs a modules.json beside the model")
                .at(self.encoder.path().display())
                .hint("`mean` pools without one")
        })
    }

    fn vectors(
        &self,
        rows: &[Vec<u32>],
        batch_tokens: usize,
        pool: &str,
        is_normalized: bool,
        options: &RowsOptions<'_>,
    ) -> Result<(Vec<Vec<f32>>, usize)> {
        let pooling = Pooling::parse(pool)?;
        let width = self.width(&pooling)?;
        let head = match pooling {
            Pooling::Sentence => Some(self.head()?),
            _ => None,
        };
        let pool = match (&pooling, &head) {
            (Pooling::Plain(pool), _) => Some(*pool),
            (_, Some(head)) => Some(head.pool()),
            (_, None) => None,
        };
        if pool.is_none() && is_normalized {
            return Err(Error::input(
                "`normalize` scales pooled vectors, but `pool` is `none`",
            ));
        }
        let mut vectors = self
            .encoder
            .encode_rows_with(rows, batch_tokens, pool, options)?;
        if pool.is_some() {
            let mut flat = vectors.concat();
            if let Some(head) = &head {
                flat = head.apply(flat, self.encoder.config().d_model);
            }
            if is_normalized {
                normalize(&mut flat, width);
            }
            vectors = vec![flat];
        }
        Ok((vectors, width))
    }
}
