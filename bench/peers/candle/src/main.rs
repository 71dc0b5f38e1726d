//! candle's own T5 as one engine of the benchmark (see `../README.md` for the protocol).
//!
//! ```text
//! candle-t5 --model FOLDER --dtype f32|bf16 --ids-json FILE [--save-output FILE]
//!           [--new-tokens N --num-beams 1]
//! ```
//!
//! candle's T5 takes no padding mask, so rows are encoded one by one and nothing is padded. The
//! output file holds every row's hidden states, one after another, as little-endian f32.
//!
//! With `--new-tokens` rows, all of one length, generate greedily as one batch with candle's cache,
//! and the output is JSON, a list of tokens a row.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5::{Config, T5EncoderModel, T5ForConditionalGeneration};

trait Engine {
    fn run(&mut self) -> Result<()>;
    fn save(&mut self, path: &str) -> Result<()>;
}

struct Encoder {
    model: T5EncoderModel,
    rows: Vec<Vec<u32>>,
}

struct Generator {
    model: T5ForConditionalGeneration,
    rows: Vec<Vec<u32>>,
    new_tokens: usize,
}

fn open(folder: &str, dtype: DType) -> Result<(VarBuilder<'static>, Config)> {
    let config = std::fs::read(format!("{folder}/config.json"))?;
    let config: Config = serde_json::from_slice(&config)?;
    let weights = [format!("{folder}/model.safetensors")];
    // SAFETY: nothing writes to the checkpoint while the benchmark runs.
    let builder = unsafe { VarBuilder::from_mmaped_safetensors(&weights, dtype, &Device::Cpu)? };
    Ok((builder, config))
}

impl Generator {
    /// New tokens, `[rows, new_tokens]`.
    fn generate(&mut self) -> Result<Tensor> {
        self.model.clear_kv_cache();
        let ids = Tensor::new(self.rows.clone(), &Device::Cpu)?;
        let encoded = self.model.encode(&ids)?;
        let mut token = Tensor::zeros((self.rows.len(), 1), DType::U32, &Device::Cpu)?;
        let mut made = Vec::new();
        for _ in 0..self.new_tokens {
            let logits = self.model.decode(&token, &encoded)?;
            token = logits.argmax(D::Minus1)?.unsqueeze(1)?;
            made.push(token.clone());
        }
        Ok(Tensor::cat(&made, 1)?)
    }
}

impl Engine for Generator {
    fn run(&mut self) -> Result<()> {
        self.generate().map(|_| ())
    }

    fn save(&mut self, path: &str) -> Result<()> {
        let tokens: Vec<Vec<u32>> = self.generate()?.to_vec2()?;
        Ok(std::fs::write(path, serde_json::to_string(&tokens)?)?)
    }
}

impl Encoder {
    /// Hands each row's hidden states, `[1, tokens, d_model]`, to `keep`.
    fn encode(&mut self, mut keep: impl FnMut(Tensor) -> Result<()>) -> Result<()> {
        for row in &self.rows {
            let ids = Tensor::new(row.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
            keep(self.model.forward(&ids)?)?;
        }
        Ok(())
    }
}

impl Engine for Encoder {
    fn run(&mut self) -> Result<()> {
        self.encode(|_| Ok(()))
    }

    fn save(&mut self, path: &str) -> Result<()> {
        let mut bytes = Vec::new();
        self.encode(|states| {
            let values: Vec<f32> = states.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            Ok(())
        })?;
        Ok(std::fs::write(path, bytes)?)
    }
}

/// A line of `/proc/self/status`, in MB of 2^20 bytes; 0 where there is none.
fn status_mb(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn say(message: &serde_json::Value) -> Result<()> {
    println!("@{message}");
    Ok(std::io::stdout().flush()?)
}

fn options() -> Result<HashMap<String, String>> {
    let mut found = HashMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("`{name}` needs a value"))?;
        found.insert(name, value);
    }
    Ok(found)
}

fn main() -> Result<()> {
    let options = options()?;
    let option = |name: &str| options.get(name).with_context(|| format!("`{name}` is missing"));
    let dtype = match option("--dtype")?.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("no type `{other}`: expected `f32` or `bf16`"),
    };
    let rows = serde_json::from_slice(&std::fs::read(option("--ids-json")?)?)?;

    let start = Instant::now();
    let (weights, config) = open(option("--model")?, dtype)?;
    let mut engine: Box<dyn Engine> = match options.get("--new-tokens") {
        None => Box::new(Encoder { model: T5EncoderModel::load(weights, &config)?, rows }),
        Some(_) if option("--num-beams")? != "1" => bail!("candle's T5 has no beam search"),
        Some(n) => Box::new(Generator {
            model: T5ForConditionalGeneration::load(weights, &config)?,
            rows,
            new_tokens: n.parse()?,
        }),
    };
    let load = start.elapsed().as_secs_f64();
    let start = Instant::now();
    engine.run()?;
    let first = start.elapsed().as_secs_f64();
    if let Some(path) = options.get("--save-output") {
        engine.save(path)?;
    }
    say(&serde_json::json!({"ready": true, "load": load, "first": first}))?;

    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                let start = Instant::now();
                engine.run()?;
                say(&serde_json::json!({"ms": start.elapsed().as_secs_f64() * 1e3}))?;
            }
            "quit" => break,
            other => bail!("no command `{other}`: expected `run` or `quit`"),
        }
    }
    say(&serde_json::json!({"rss_mb": status_mb("VmRSS"), "peak_mb": status_mb("VmHWM")}))
}
