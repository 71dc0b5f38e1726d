//! candle's own T5 encoder as one engine of the benchmark (see `../README.md` for the protocol).
//!
//! ```text
//! candle-t5 --model FOLDER --dtype f32|bf16 --ids-json FILE [--save-output FILE]
//! ```
//!
//! candle's T5 takes no padding mask, so rows are encoded one by one and nothing is padded. The
//! output file holds every row's hidden states, one after another, as little-endian f32.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5::{Config, T5EncoderModel};

struct Engine {
    model: T5EncoderModel,
    rows: Vec<Vec<u32>>,
}

impl Engine {
    fn load(folder: &str, dtype: DType, rows: Vec<Vec<u32>>) -> Result<Self> {
        let config = std::fs::read(format!("{folder}/config.json"))?;
        let config: Config = serde_json::from_slice(&config)?;
        let weights = [format!("{folder}/model.safetensors")];
        // SAFETY: nothing writes to the checkpoint while the benchmark runs.
        let builder =
            unsafe { VarBuilder::from_mmaped_safetensors(&weights, dtype, &Device::Cpu)? };
        Ok(Self { model: T5EncoderModel::load(builder, &config)?, rows })
    }

    /// Hands each row's hidden states, `[1, tokens, d_model]`, to `keep`.
    fn run(&mut self, mut keep: impl FnMut(Tensor) -> Result<()>) -> Result<()> {
        for row in &self.rows {
            let ids = Tensor::new(row.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
            keep(self.model.forward(&ids)?)?;
        }
        Ok(())
    }

    fn save(&mut self, path: &str) -> Result<()> {
        let mut bytes = Vec::new();
        self.run(|states| {
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
    let mut engine = Engine::load(option("--model")?, dtype, rows)?;
    let load = start.elapsed().as_secs_f64();
    let start = Instant::now();
    engine.run(|_| Ok(()))?;
    let first = start.elapsed().as_secs_f64();
    if let Some(path) = options.get("--save-output") {
        engine.save(path)?;
    }
    say(&serde_json::json!({"ready": true, "load": load, "first": first}))?;

    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                let start = Instant::now();
                engine.run(|_| Ok(()))?;
                say(&serde_json::json!({"ms": start.elapsed().as_secs_f64() * 1e3}))?;
            }
            "quit" => break,
            other => bail!("no command `{other}`: expected `run` or `quit`"),
        }
    }
    say(&serde_json::json!({"rss_mb": status_mb("VmRSS"), "peak_mb": status_mb("VmHWM")}))
}
