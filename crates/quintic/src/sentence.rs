//! What comes after the encoder in a sentence-transformers folder: pooling, dense layers,
//! normalisation.
//!
//! sentence-T5, GTR and Instructor models list their modules in `modules.json`; each module
//! has a folder (`1_Pooling`, `2_Dense`) with its own config. A module or setting that is
//! not computed here is an error, never skipped.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::backend::Pool;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::limits::{MAX_JSON_BYTES, read_file};
use crate::tensor::Tensor;
use crate::{Error, ErrorKind, Result};

/// The modules behind an encoder, applied in order.
#[derive(Debug)]
pub struct SentenceHead {
    pool: Pool,
    steps: Vec<Step>,
    max_length: Option<usize>,
}

#[derive(Debug)]
enum Step {
    Dense {
        weight: Tensor,
        bias: Option<Tensor>,
        tanh: bool,
    },
    Normalize,
}

#[derive(Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    pooling_mode: Option<String>,
    include_prompt: Option<bool>,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
}

#[derive(Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

fn yes() -> bool {
    true
}

impl SentenceHead {
    /// Reads `modules.json` of a model folder; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a file is damaged or the modules do not follow each other as
    /// transformer, pooling, then dense and normalising ones; [`ErrorKind::Unsupported`] for
    /// modules and settings that are not computed here; [`ErrorKind::Checkpoint`] if a dense
    /// layer's weights do not fit.
    pub fn open(folder: &Path, d_model: usize) -> Result<Option<Self>> {
        let path = folder.join("modules.json");
        if !path.is_file() {
            return Ok(None);
        }
        let modules: Vec<ModuleEntry> = read_json(&path)?;
        let mut pool = None;
        let mut width = d_model;
        let mut steps = Vec::new();
        for (module_idx, module) in modules.iter().enumerate() {
            let here = |e: Error| e.at(format!("module {module_idx}")).at(path.display());
            let module_folder = inside(folder, &module.path).map_err(here)?;
            let class = module.class.rsplit('.').next().unwrap_or_default();
            match (class, pool.is_some()) {
                ("Transformer", false) if module_idx == 0 => {}
                ("Pooling", false) if module_idx == 1 => pool = Some(read_pool(&module_folder)?),
                ("Dense", true) => steps.push(read_dense(&module_folder, &mut width)?),
                ("Normalize", true) => steps.push(Step::Normalize),
                _ => {
                    return Err(here(Error::unsupported(format!(
                        "found `{}`, expected Transformer, Pooling, then Dense or Normalize",
                        module.class
                    ))));
                }
            }
        }
        let Some(pool) = pool else {
            return Err(Error::config("there is no Pooling module").at(path.display()));
        };
        Ok(Some(SentenceHead {
            pool,
            steps,
            max_length: max_length(folder)?,
        }))
    }

    /// Files of a model folder that [`SentenceHead::open`] reads, if they are there, relative to
    /// the folder; none if it has no modules.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if `modules.json` is damaged.
    pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let path = folder.join("modules.json");
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let modules: Vec<ModuleEntry> = read_json(&path)?;
        let mut files = vec![
            PathBuf::from("modules.json"),
            PathBuf::from("sentence_bert_config.json"),
        ];
        for module in modules {
            inside(folder, &module.path).map_err(|e| e.at(path.display()))?;
            // The encoder itself may have the model's folder for its own.
            if !module.path.is_empty() && module.class.rsplit('.').next() != Some("Transformer") {
                for name in ["config.json", "model.safetensors", "pytorch_model.bin"] {
                    files.push(Path::new(&module.path).join(name));
                }
            }
        }
        Ok(files)
    }

    /// How tokens become one vector.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Longest text in tokens that the model was trained for, if it says so.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// A line that names the steps, such as `mean, dense 768 -> 768, normalize`.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}", self.pool).to_lowercase();
        for step in &self.steps {
            text += &match step {
                Step::Dense { weight, .. } => {
                    format!(", dense {} -> {}", weight.shape()[1], weight.shape()[0])
                }
                Step::Normalize => ", normalize".to_owned(),
            };
        }
        text
    }

    /// Width of a finished embedding, for pooled vectors of `d_model`.
    pub fn width(&self, d_model: usize) -> usize {
        let dense = self.steps.iter().rev().find_map(|step| match step {
            Step::Dense { weight, .. } => Some(weight.shape()[0]),
            Step::Normalize => None,
        });
        dense.unwrap_or(d_model)
    }

    /// Pooled vectors `[rows, d_model]` to embeddings. Sums run in f64.
    pub fn apply(&self, mut vectors: Vec<f32>, d_model: usize) -> Vec<f32> {
        let mut width = d_model;
        for step in &self.steps {
            match step {
                Step::Dense { weight, bias, tanh } => {
                    vectors = dense(&vectors, width, weight, bias.as_ref(), *tanh);
                    width = weight.shape()[0];
                }
                Step::Normalize => normalize(&mut vectors, width),
            }
        }
        vectors
    }
}

/// Scales each vector of `width` values to length 1; a zero vector stays zero.
///
/// The divisor is at least 1e-12, as in `torch.nn.functional.normalize`.
pub fn normalize(vectors: &mut [f32], width: usize) {
    for vector in vectors.chunks_exact_mut(width) {
        let squares: f64 = vector
            .iter()
            .map(|&value| f64::from(value) * f64::from(value))
            .sum();
        let length = squares.sqrt().max(1e-12);
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

fn dense(
    vectors: &[f32],
    width: usize,
    weight: &Tensor,
    bias: Option<&Tensor>,
    tanh: bool,
) -> Vec<f32> {
    let weights = weight.to_f32();
    let bias = bias.map(Tensor::to_f32);
    let mut out = Vec::with_capacity(vectors.len() / width * weight.shape()[0]);
    for vector in vectors.chunks_exact(width) {
        for (column, weights) in weights.chunks_exact(width).enumerate() {
            let sum: f64 = vector
                .iter()
                .zip(weights)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            let sum = sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
            out.push(if tanh { sum.tanh() } else { sum } as f32);
        }
    }
    out
}

fn read_pool(folder: &Path) -> Result<Pool> {
    let path = folder.join("config.json");
    let config: PoolingConfig = read_json(&path)?;
    let mut modes: Vec<&str> = [
        (config.pooling_mode_cls_token, "cls"),
        (config.pooling_mode_mean_tokens, "mean"),
        (config.pooling_mode_max_tokens, "max"),
        (
            config.pooling_mode_mean_sqrt_len_tokens,
            "mean_sqrt_len_tokens",
        ),
        (config.pooling_mode_weightedmean_tokens, "weightedmean"),
        (config.pooling_mode_lasttoken, "lasttoken"),
    ]
    .into_iter()
    .filter_map(|(set, mode)| set.then_some(mode))
    .collect();
    if let Some(mode) = &config.pooling_mode {
        modes = vec![mode];
    }
    if config.include_prompt == Some(false) {
        return Err(Error::unsupported(
            "`include_prompt` is false: prompts cannot be left out of the mean",
        )
        .at(path.display()));
    }
    match modes[..] {
        ["mean"] => Ok(Pool::Mean),
        ["cls"] => Ok(Pool::First),
        ["lasttoken"] => Ok(Pool::Last),
        _ => Err(Error::unsupported(format!(
            "found pooling modes {modes:?}, expected exactly one of mean, cls, lasttoken"
        ))
        .at(path.display())),
    }
}

fn read_dense(folder: &Path, width: &mut usize) -> Result<Step> {
    let path = folder.join("config.json");
    let config: DenseConfig = read_json(&path)?;
    let here = |e: Error| e.at(path.display());
    if config.in_features != *width {
        return Err(here(Error::config(format!(
            "`in_features` is {}, but the vectors that reach it have {width} values",
            config.in_features
        ))));
    }
    let function = config
        .activation_function
        .as_deref()
        .unwrap_or("torch.nn.modules.activation.Tanh");
    let tanh = match function.rsplit('.').next().unwrap_or_default() {
        "Identity" => false,
        "Tanh" => true,
        _ => {
            return Err(here(Error::unsupported(format!(
                "`activation_function` is `{function}`, expected Identity or Tanh"
            ))));
        }
    };
    let file = ["model.safetensors", "pytorch_model.bin"]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "neither model.safetensors nor pytorch_model.bin is there",
            )
            .at(folder.display())
        })?;
    let options = OpenOptions {
        prefix: Some(String::new()),
        ..OpenOptions::default()
    };
    let weights = Checkpoint::open(&file, &options)?;
    let take = |name: &str, shape: &[usize]| -> Result<Tensor> {
        let tensor = weights.take(name)?;
        if tensor.shape() == shape && tensor.dtype().is_float() {
            return Ok(tensor);
        }
        Err(Error::checkpoint(format!(
            "found {tensor:?}, expected a float tensor {shape:?}"
        ))
        .at(file.display()))
    };
    let weight = take("linear.weight", &[config.out_features, config.in_features])?;
    let bias = config
        .bias
        .then(|| take("linear.bias", &[config.out_features]))
        .transpose()?;
    *width = config.out_features;
    Ok(Step::Dense { weight, bias, tanh })
}

fn max_length(folder: &Path) -> Result<Option<usize>> {
    let path = folder.join("sentence_bert_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config: TransformerConfig = read_json(&path)?;
    if config.do_lower_case {
        return Err(Error::unsupported("`do_lower_case` is true").at(path.display()));
    }
    Ok(config.max_seq_length)
}

/// A module's folder, which must lie inside the model's.
fn inside(folder: &Path, relative: &str) -> Result<std::path::PathBuf> {
    let plain = Path::new(relative).components().all(|part| {
        matches!(
            part,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    if !plain {
        return Err(Error::config(format!(
            "`path` is `{relative}`, expected a folder inside the model"
        )));
    }
    Ok(folder.join(relative))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_file(path, MAX_JSON_BYTES, ErrorKind::Config)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::config(format!("not what was expected: {e}")).at(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::output::safetensors::{SafetensorsWriter, TensorSpec};

    const MODULES: &str = r#"[
        {"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
        {"idx":2,"name":"2","path":"2_Dense","type":"sentence_transformers.models.Dense"},
        {"idx":3,"name":"3","path":"3_Normalize","type":"sentence_transformers.models.Normalize"}]"#;

    fn folder(modules: &str, pooling: &str, dense: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("1_Pooling")).unwrap();
        std::fs::create_dir(path.join("2_Dense")).unwrap();
        std::fs::write(path.join("modules.json"), modules).unwrap();
        std::fs::write(path.join("1_Pooling/config.json"), pooling).unwrap();
        std::fs::write(path.join("2_Dense/config.json"), dense).unwrap();
        let specs = [TensorSpec::new("linear.weight", DType::F32, &[2, 3])];
        let file = path.join("2_Dense/model.safetensors");
        let mut writer = SafetensorsWriter::create(&file, &specs, &[]).unwrap();
        writer.append(0, &[1.0, 0.0, 0.0, 0.0, 2.0, 0.0]).unwrap();
        writer.finish().unwrap();
        folder
    }

    const POOLING: &str = r#"{"word_embedding_dimension":3,"pooling_mode_mean_tokens":true}"#;
    const DENSE: &str = r#"{"in_features":3,"out_features":2,"bias":false,
        "activation_function":"torch.nn.modules.linear.Identity"}"#;

    #[test]
    fn dense_and_normalize_in_order() {
        let folder = folder(MODULES, POOLING, DENSE);
        let head = SentenceHead::open(folder.path(), 3).unwrap().unwrap();
        assert_eq!(head.describe(), "mean, dense 3 -> 2, normalize");
        assert_eq!((head.width(3), head.max_length()), (2, None));
        assert_eq!(
            head.apply(vec![3.0, 2.0, 9.0, 0.0, 0.0, 1.0], 3),
            [0.6, 0.8, 0.0, 0.0]
        );
        std::fs::write(
            folder.path().join("sentence_bert_config.json"),
            r#"{"max_seq_length": 256, "do_lower_case": false}"#,
        )
        .unwrap();
        let head = SentenceHead::open(folder.path(), 3).unwrap().unwrap();
        assert_eq!(head.max_length(), Some(256));
    }

    #[test]
    fn the_published_sentence_t5_configs_are_understood() {
        let published =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs/sentence-t5-base");
        let text = |name: &str| std::fs::read_to_string(published.join(name)).unwrap();
        let folder = folder(
            &text("modules.json"),
            &text("1_Pooling_config.json"),
            &text("2_Dense_config.json"),
        );
        let file = folder.path().join("2_Dense/model.safetensors");
        let specs = [TensorSpec::new("linear.weight", DType::F16, &[768, 768])];
        let mut writer = SafetensorsWriter::create(&file, &specs, &[]).unwrap();
        writer.append(0, &vec![0.0; 768 * 768]).unwrap();
        writer.finish().unwrap();
        let head = SentenceHead::open(folder.path(), 768).unwrap().unwrap();
        assert_eq!(head.describe(), "mean, dense 768 -> 768, normalize");
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        let error = |modules: &str, pooling: &str, dense: &str| {
            let folder = folder(modules, pooling, dense);
            SentenceHead::open(folder.path(), 3)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&MODULES.replace("Normalize", "LSTM"), POOLING, DENSE).contains("LSTM"));
        assert!(
            error(&MODULES.replace("2_Dense", "../2_Dense"), POOLING, DENSE).contains("inside")
        );
        let max = POOLING.replace("mean", "max");
        assert!(error(MODULES, &max, DENSE).contains(r#"found pooling modes ["max"]"#));
        let prompt = POOLING.replace('}', r#","include_prompt":false}"#);
        assert!(error(MODULES, &prompt, DENSE).contains("include_prompt"));
        assert!(error(MODULES, POOLING, &DENSE.replace("Identity", "ReLU")).contains("ReLU"));
        assert!(error(MODULES, POOLING, &DENSE.replace(":3", ":4")).contains("`in_features` is 4"));
        assert!(
            error(MODULES, POOLING, &DENSE.replace(":2", ":5"))
                .contains("expected a float tensor [5, 3]")
        );
        assert!(error(MODULES, POOLING, &DENSE.replace("false", "true")).contains("linear.bias"));
        assert!(error("[]", POOLING, DENSE).contains("there is no Pooling module"));
        assert!(error("{", POOLING, DENSE).contains("not what was expected"));
    }

    #[test]
    fn a_folder_without_modules_has_no_head() {
        let folder = tempfile::tempdir().unwrap();
        assert!(SentenceHead::open(folder.path(), 3).unwrap().is_none());
    }
}
