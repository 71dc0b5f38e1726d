//! The command line's shape.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quintic::backend::Pool;
use quintic::batch::PadRows;
use quintic::{ComputeChoice, ComputeType, DType, Keep, MatmulPrecision, Result, WeightType};

use crate::commands::calibrate::CalibrateArgs;

/// Runs T5-family models: hidden states, generated text, scores.
#[derive(Debug, Parser)]
#[command(name = "quintic", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Encode texts or token ids.
    Encode(Box<EncodeArgs>),
    /// Generate text from text.
    Generate(Box<GenerateArgs>),
    /// Translate texts with a model that is told the language by a tag, as MADLAD is.
    Translate(Box<TranslateArgs>),
    /// Say how probable targets are, or which of a few answers is.
    Score(Box<ScoreArgs>),
    /// Say what a model is, what it needs, and what is odd about it.
    Inspect(InspectArgs),
    /// Show the tokens of texts.
    Tokenize(TokenizeArgs),
    /// Compare the tensors of two safetensors files.
    Compare(CompareArgs),
    /// Write a model in another form.
    Convert(ConvertArgs),
    /// Measure a model's speed, or what this machine can do at most.
    Bench(Box<BenchArgs>),
    /// Find out which products may be kept in integers, and how f16 holds a model's values.
    Calibrate(Box<CalibrateArgs>),
    /// Check the backends of this machine, operation by operation, against exact sums.
    Check(CheckArgs),
    /// Say how far each way to compute is from exact sums, on a model and real texts.
    Verify(Box<VerifyArgs>),
}

/// Which model, and which of its files.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// Model folder, diffusers folder, weight file, or repository id in the local cache.
    #[arg(long, value_name = "DIR|FILE|ID")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) files: FileArgs,
}

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FileArgs {
    /// Folder inside the model that holds the encoder, such as `text_encoder_2`.
    #[arg(long)]
    pub(crate) subfolder: Option<String>,
    /// Weights of this variant, such as `fp16` for `model.fp16.safetensors`.
    #[arg(long)]
    pub(crate) variant: Option<String>,
    /// What precedes tensor names in a single file; found by itself if not given.
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Branch, tag or commit of a repository id.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// Hugging Face cache folder; default as in `huggingface_hub`.
    #[arg(long)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Fetch the files of a repository id that are not in the cache (builds with feature `hub`).
    #[arg(long)]
    pub(crate) download: bool,
    /// Tokenizer folder or file (`tokenizer.json`, `spiece.model`), if not the model's own.
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Which tokenizer of the model's folder.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) tokenizer_kind: TokenizerKind,
}

/// Which tokenizer files to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenizerKind {
    /// As transformers' AutoTokenizer: tokenizer.json if there is one.
    #[default]
    Auto,
    /// tokenizer.json.
    Fast,
    /// spiece.model with the flags of tokenizer_config.json.
    Slow,
}

/// What computes, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct ComputeArgs {
    /// What computes: `cpu`, `cuda` (or `cuda:1` for another device), or `reference` for plain
    /// loops with f64 sums.
    #[arg(long, default_value = "cpu")]
    pub(crate) backend: String,
    /// Type of weights and products; by default f32, or what a packed model is packed for.
    #[arg(long, value_parser = ["f32", "bf16", "f16"])]
    pub(crate) dtype: Option<String>,
    /// Precision of f32 products: f32, two bf16 parts each, or bf16; by default highest, or what
    /// a packed model is packed for.
    #[arg(long, value_parser = ["highest", "high", "medium"])]
    pub(crate) matmul_precision: Option<String>,
    /// Threads; by default as many as there are cores.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Multiply the norms' gains into the products behind them at load.
    #[arg(long)]
    pub(crate) fold_norm_gains: bool,
    /// Keep the weights of products as integers: of 8 bits, of 4 bits, or of 8 bits with what flows
    /// in rounded to 8 bits too (16 for `wo` and `head`). Less memory and less precise; off unless
    /// asked for.
    #[arg(long, value_parser = ["int8", "int4", "w8a8"])]
    pub(crate) weights: Option<String>,
    /// Products whose weights are not kept so: qkv, o, wi, wo, head, those of layers such as
    /// encoder.0-3.wo, or none, which is the default.
    #[arg(long, value_name = "A,B,..", requires = "weights")]
    pub(crate) keep: Option<String>,
    /// Plan that `quintic calibrate` made of this model: says `--weights`, `--keep` and `--dtype`, and
    /// with which powers of two f16 begins on a GPU.
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["weights", "keep"])]
    pub(crate) plan: Option<PathBuf>,
}

impl ComputeArgs {
    /// # Errors
    ///
    /// As [`ComputeType::parse`], [`MatmulPrecision::parse`], [`WeightType::parse`] and
    /// [`Keep::parse`].
    pub(crate) fn choice(&self) -> Result<ComputeChoice> {
        let precision = self.matmul_precision.as_deref();
        Ok(ComputeChoice {
            dtype: self.dtype.as_deref().map(ComputeType::parse).transpose()?,
            matmul_precision: precision.map(MatmulPrecision::parse).transpose()?,
            threads: self.threads,
            fold_norm_gains: self.fold_norm_gains.then_some(true),
            weights: self.weights.as_deref().map(WeightType::parse).transpose()?,
            keep: self.keep.as_deref().map(Keep::parse).transpose()?,
        })
    }
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false)
    .args(["texts", "input", "input_ids"]))]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Texts to encode.
    #[arg(value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
    /// File of texts: .txt (one a line), .tsv (with a header), .jsonl; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Column of a .tsv or field of a .jsonl that holds the text.
    // With TEXT, clap would take `requires` for satisfied: TEXT excludes `--input`.
    #[arg(long, requires = "input", conflicts_with_all = ["texts", "input_ids"])]
    pub(crate) column: Option<String>,
    /// safetensors file with `input_ids` [rows, len] and optionally `attention_mask`
    /// ([rows, len] or [rows, len, len]) or `document_ids` [rows, len].
    #[arg(long, value_name = "FILE")]
    pub(crate) input_ids: Option<PathBuf>,
    /// Output: .safetensors, .npy or .jsonl; `-` is JSON lines on standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Conditioning contract of a pipeline: length, mask, padding, text cleaning.
    #[arg(long, conflicts_with_all = ["input_ids", "pool", "pad_rows", "store"])]
    pub(crate) preset: Option<String>,
    /// Cut texts to this many tokens, end token included.
    #[arg(long, conflicts_with = "input_ids")]
    pub(crate) max_length: Option<usize>,
    /// One vector a text instead of one a token.
    #[arg(long, value_enum)]
    pub(crate) pool: Option<PoolArg>,
    /// Scale pooled vectors to length 1.
    #[arg(long, requires = "pool")]
    pub(crate) normalize: bool,
    /// Also write `hidden_states.0` (embeddings) to `hidden_states.N` (after the last norm).
    #[arg(long, conflicts_with = "pool")]
    pub(crate) hidden_states: bool,
    /// Results at padding: zeros, or computed as Hugging Face does.
    #[arg(long, value_enum, requires = "input_ids", conflicts_with_all = ["texts", "input"])]
    pub(crate) pad_rows: Option<PadRowsArg>,
    /// Layout of texts' results: real tokens laid end to end, or padded to the longest text.
    #[arg(long, value_enum, conflicts_with_all = ["input_ids", "pool"])]
    pub(crate) store: Option<Store>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Type of the written values.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output_dtype: OutputDType,
    /// Tokens computed at a time; more need more memory.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_tokens: u32,
    /// Print a summary as a JSON object on standard output; not together with `--output -`.
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress bar and no notes.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolArg {
    /// Mean of all tokens.
    Mean,
    /// First token.
    First,
    /// Last token.
    Last,
    /// As the model's `modules.json` says: pooling, dense layers, normalisation.
    Sentence,
}

impl PoolArg {
    /// The pooling that is not the model's own.
    pub(crate) fn plain(self) -> Option<Pool> {
        match self {
            PoolArg::Mean => Some(Pool::Mean),
            PoolArg::First => Some(Pool::First),
            PoolArg::Last => Some(Pool::Last),
            PoolArg::Sentence => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PadRowsArg {
    /// Zeros; padding is not computed.
    Zero,
    /// Computed as Hugging Face does.
    Compute,
}

impl From<PadRowsArg> for PadRows {
    fn from(arg: PadRowsArg) -> Self {
        match arg {
            PadRowsArg::Zero => PadRows::Zero,
            PadRowsArg::Compute => PadRows::Compute,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// Real tokens only, rows laid end to end, with `row_starts`.
    Real,
    /// Padded to the longest text, with `attention_mask`.
    Padded,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputDType {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats; values beyond their range are an error.
    F16,
}

impl From<OutputDType> for DType {
    fn from(arg: OutputDType) -> Self {
        match arg {
            OutputDType::F32 => DType::F32,
            OutputDType::Bf16 => DType::BF16,
            OutputDType::F16 => DType::F16,
        }
    }
}

/// Texts that go into a decoder's encoder.
#[derive(Args, Debug)]
pub(crate) struct SourceArgs {
    /// Texts.
    #[arg(value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
    /// File of texts: .txt (one a line), .tsv (with a header), .jsonl; `-` is standard input.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "texts",
        required_unless_present = "texts"
    )]
    pub(crate) input: Option<PathBuf>,
    /// Column of a .tsv or field of a .jsonl that holds the text.
    #[arg(long, conflicts_with = "texts")]
    pub(crate) column: Option<String>,
    /// Cut texts to this many tokens, end token included.
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
}

/// How tokens are chosen; what is not given is as the model's generation_config.json says.
#[derive(Args, Debug)]
pub(crate) struct ChoiceArgs {
    /// Most new tokens; 20 if neither this nor the model says.
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<u64>,
    /// Beams of a beam search.
    #[arg(long, value_name = "N")]
    pub(crate) num_beams: Option<u64>,
    /// Sequences a text.
    #[arg(long, value_name = "N")]
    pub(crate) num_return_sequences: Option<u64>,
    /// Draw tokens instead of taking the best.
    #[arg(long)]
    pub(crate) do_sample: bool,
    /// Divides scores before a draw.
    #[arg(long, value_name = "X")]
    pub(crate) temperature: Option<f64>,
    /// Draw among so many of the best; 0 is all.
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<u64>,
    /// Draw among the fewest tokens whose probabilities reach this.
    #[arg(long, value_name = "X")]
    pub(crate) top_p: Option<f64>,
    /// Seed of draws.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Divides the scores of tokens that are there already.
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// No sequence of so many tokens comes twice.
    #[arg(long, value_name = "N")]
    pub(crate) no_repeat_ngram_size: Option<u64>,
    /// Exponent of the length by which a beam's score is divided.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) length_penalty: Option<f64>,
    /// Guess up to so many tokens at a time, 15 at most, from the text and from what was generated: the
    /// same result in fewer steps where text is copied.
    #[arg(long, value_name = "N")]
    pub(crate) prompt_lookup_num_tokens: Option<u64>,
    /// Any generation options by transformers' names, as a JSON object.
    #[arg(long, value_name = "JSON")]
    pub(crate) options: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    /// Put before each text, such as `summarize: `.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) text_prefix: String,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Args, Debug)]
pub(crate) struct TranslateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    /// Language to translate to, such as `de`: the model's tokenizer has a token `<2de>`.
    #[arg(long, value_name = "LANGUAGE")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// What `generate` and `translate` share.
#[derive(Args, Debug)]
pub(crate) struct GenerationArgs {
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// Output: .txt (a sequence a line) or .jsonl; by default lines on standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Print JSON lines with tokens, scores and reasons.
    #[arg(long, conflicts_with = "output")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Most sequences computed at a time; more need more memory.
    #[arg(long, default_value = "32", value_name = "N")]
    pub(crate) max_rows: NonZeroUsize,
    /// No notes and no summary.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("of").required(true).multiple(false)
    .args(["targets", "target_column", "answers"]))]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    /// Target of each text, in their order.
    #[arg(long = "target", value_name = "TEXT")]
    pub(crate) targets: Vec<String>,
    /// Column of a .tsv or field of a .jsonl that holds the target.
    #[arg(long, value_name = "NAME", requires = "input")]
    pub(crate) target_column: Option<String>,
    /// Answers of one token each, such as `true,false`: one decoder step says which one it is,
    /// as rerankers do.
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    pub(crate) answers: Vec<String>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Tokens of sources and targets computed at a time.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_tokens: u32,
    /// Also the log-probability of every token.
    #[arg(long)]
    pub(crate) tokens: bool,
    /// No notes.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// Model folder, diffusers folder, weight file, or repository id in the local cache.
    #[arg(required_unless_present = "machine")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// Say what this machine has: instruction sets and the one in use, cores, caches, memory.
    #[arg(long)]
    pub(crate) machine: bool,
    /// Also list every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TokenizeArgs {
    /// Model whose tokenizer it is, or a folder of tokenizer files.
    #[arg(
        long,
        value_name = "DIR|FILE|ID",
        required_unless_present = "tokenizer"
    )]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// Texts to split.
    #[arg(value_name = "TEXT", required_unless_present = "input")]
    pub(crate) texts: Vec<String>,
    /// File of texts, as for `encode`.
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    pub(crate) input: Option<PathBuf>,
    /// Column of a .tsv or field of a .jsonl that holds the text.
    #[arg(long, requires = "input", conflicts_with = "texts")]
    pub(crate) column: Option<String>,
    /// Cut to this many tokens, end token included.
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
    /// Add no end token.
    #[arg(long, conflicts_with = "max_length")]
    pub(crate) no_special_tokens: bool,
    /// Print a JSON object a text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("form").required(true).multiple(false).args(["pack", "to"]))]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Pack the weights as the CPU's products read them: the model then loads without packing.
    #[arg(long)]
    pub(crate) pack: bool,
    /// Write encoder and decoder in another format.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) to: Option<ModelFormat>,
    /// New folder for the model; or, if the name ends so, a `.safetensors` or `.gguf` file.
    #[arg(short, long, value_name = "DIR|FILE")]
    pub(crate) output: PathBuf,
    /// With `--pack`, what to pack for; with `--to`, the type of the weights, those with a `q` in
    /// GGUF alone. By default f32 with `--pack`, and as stored in safetensors.
    #[arg(long, value_parser = ["f32", "bf16", "f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0",
        "q4_k", "q4_1", "q4_0", "q3_k", "q2_k"])]
    pub(crate) dtype: Option<String>,
    // `requires` would be taken for satisfied: `--to` excludes `--pack`.
    /// Cut the weights of a folder into files of at most this size, such as 5GB or 500MB.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "pack")]
    pub(crate) max_shard_size: Option<u64>,
    /// Make values beyond the range of f16 or bf16 the largest instead of an error.
    #[arg(long, conflicts_with = "pack")]
    pub(crate) saturate: bool,
    /// Precision of f32 products to pack for; by default highest.
    #[arg(long, value_parser = ["highest", "high", "medium"], conflicts_with = "to")]
    pub(crate) matmul_precision: Option<String>,
    /// Multiply the norms' gains into the packed products behind them.
    #[arg(long, conflicts_with = "to")]
    pub(crate) fold_norm_gains: bool,
    /// Pack weights as integers, as `--weights` of other commands keeps them.
    #[arg(long, value_parser = ["int8", "int4", "w8a8"], conflicts_with = "to")]
    pub(crate) weights: Option<String>,
    /// Products that are not packed so: qkv, o, wi, wo, head, those of layers such as
    /// encoder.0-3.wo, or none.
    #[arg(long, value_name = "A,B,..", requires = "weights")]
    pub(crate) keep: Option<String>,
    /// Plan that `quintic calibrate` made of this model: says `--weights`, `--keep` and `--dtype`.
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["weights", "keep", "to"])]
    pub(crate) plan: Option<PathBuf>,
    /// Threads that pack; by default as many as there are cores.
    #[arg(long, value_name = "N", conflicts_with = "to")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What is packed for: the CPU alone reads packed weights.
    #[arg(long, default_value = "cpu", conflicts_with = "to")]
    pub(crate) backend: String,
    /// Print a summary as a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress bar and no notes.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// A format of whole models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelFormat {
    /// As transformers reads it: a model folder, or one file.
    Safetensors,
    /// One file in llama.cpp's layout for T5.
    Gguf,
}

/// A number of bytes, such as `5GB`, `500MB` or `2GiB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => {
            return Err(format!(
                "found the unit `{other}`, expected B, KB, MB, GB, KiB, MiB or GiB"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("found `{digits}`, expected a whole number and a unit"))?;
    match number.checked_mul(factor) {
        Some(0) => Err("expected at least 1 byte".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("the size is too large".to_owned()),
    }
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Backend to check, such as `cpu`, or `all`.
    #[arg(long, value_name = "NAME|all", default_value = "all")]
    pub(crate) backend: String,
    /// Type that it computes in.
    #[arg(long, value_parser = ["f32", "bf16", "f16", "all"], default_value = "all")]
    pub(crate) dtype: String,
    /// Run only cases whose `group/name` contains this, such as `attention/` or `1000 tokens`.
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Option<String>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// File of texts, as for `encode`; by default 24 captions and sentences in a dozen languages.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Column of a .tsv or field of a .jsonl that holds the text.
    #[arg(long, requires = "input")]
    pub(crate) column: Option<String>,
    /// Cut texts to this many tokens, end token included.
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
    /// Ways to compute: f32, f32-high, f32-medium, bf16, f16, int8, w8a8, int4; by default all that
    /// differ here.
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    pub(crate) compute: Vec<String>,
    /// Plan that `quintic calibrate` made of this model: one more way to compute, `plan`.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) plan: Option<PathBuf>,
    /// What computes: `cpu`, `cuda` (or `cuda:1` for another device), or `reference`.
    #[arg(long, default_value = "cpu")]
    pub(crate) backend: String,
    /// Threads; by default as many as there are cores.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Most tokens that a decoder writes behind each of the first 32 texts, greedily, to compare
    /// its logits; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) new_tokens: usize,
    /// Tokens computed at a time; more need more memory.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_tokens: u32,
    /// Exit with code 1 if the hidden states of any way are farther off than this, or NaN.
    #[arg(long, value_name = "X")]
    pub(crate) max_relative_rms: Option<f64>,
    /// Write the reference's states, ids and `row_starts`, for a comparison elsewhere.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) save_states: Option<PathBuf>,
    /// Show results of others against the same states too, as tools/verify_transformers.py
    /// writes them. May be given several times.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) others: Vec<PathBuf>,
    /// Draw the quantiles.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// First file.
    pub(crate) a: PathBuf,
    /// Second file.
    pub(crate) b: PathBuf,
    /// Compare only this tensor.
    #[arg(long)]
    pub(crate) tensor: Option<String>,
    /// Exit with code 1 if any absolute difference is above this, or NaN.
    #[arg(long, value_name = "X")]
    pub(crate) max: Option<f64>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("work").required(true).multiple(false)
    .args(["tokens", "lengths", "input_ids", "ids_json", "machine"]))]
pub(crate) struct BenchArgs {
    /// A synthetic model of a published shape (`v1_1-xl`, `umt5-xxl`, `t5-base`, `tiny`, ...), or
    /// a model as `encode --model` takes it.
    #[arg(
        long,
        value_name = "SHAPE|DIR|FILE|ID",
        required_unless_present = "machine",
        conflicts_with = "machine"
    )]
    pub(crate) shape: Option<String>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Type that a synthetic model's weights are stored in, if not `--dtype`.
    #[arg(long, value_parser = ["f32", "bf16", "f16"])]
    pub(crate) stored: Option<String>,
    /// Use the first N layers only, for a quick look.
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<NonZeroUsize>,
    /// Rows of a batch; by default 1, or 32 with `--lengths lognormal`.
    #[arg(long, value_name = "N", conflicts_with_all = ["input_ids", "ids_json"])]
    pub(crate) rows: Option<NonZeroUsize>,
    /// Tokens of every row.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<NonZeroUsize>,
    /// Tokens of each row, such as `5,31,8`; or `lognormal`, lengths as captions have them.
    #[arg(long, value_name = "lognormal|L1,L2,..")]
    pub(crate) lengths: Option<String>,
    /// Measure a batch of these lengths too, on the model that is loaded; one more report. May be
    /// given several times.
    #[arg(long, value_name = "lognormal|L1,L2,..", conflicts_with_all = ["serve", "machine", "save_output"])]
    pub(crate) also: Vec<String>,
    /// safetensors file of ids and masks, as for `encode`.
    #[arg(long, value_name = "FILE")]
    pub(crate) input_ids: Option<PathBuf>,
    /// JSON file of ids: a list of rows, each a list of numbers.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids_json: Option<PathBuf>,
    /// Load the decoder too and write so many tokens after every row, without an end.
    #[arg(long, value_name = "N", conflicts_with_all = ["machine", "on_device", "also"])]
    pub(crate) new_tokens: Option<NonZeroUsize>,
    /// Beams that `--new-tokens` searches with; 1 is greedy.
    #[arg(long, value_name = "N", default_value = "1", requires = "new_tokens")]
    pub(crate) num_beams: NonZeroUsize,
    /// Timed runs; by default as many as fit into 3 seconds, but 5 at least and 50 at most.
    #[arg(long, value_name = "N", conflicts_with = "serve")]
    pub(crate) runs: Option<NonZeroUsize>,
    /// Runs before the first timed one.
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) warmup: NonZeroUsize,
    /// Write the result of the last warm-up run: f32, [tokens, d_model], or [rows, len, d_model]
    /// with `--input-ids`; with `--new-tokens` a JSON list of rows of tokens.
    #[arg(long, value_name = "FILE.npy|FILE.json", conflicts_with = "machine")]
    pub(crate) save_output: Option<PathBuf>,
    /// Do not measure the machine's limits; what is a share of them is left out.
    #[arg(long)]
    pub(crate) skip_limits: bool,
    /// Leave the results on the device that computed them: the time of a pass alone. What the
    /// CPU computes is in host memory either way.
    #[arg(long, conflicts_with_all = ["machine", "save_output"])]
    pub(crate) on_device: bool,
    /// MiB of memory that reading is measured with at most; never more than a quarter of what is free.
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) read_mib: NonZeroUsize,
    /// Time one run for each line `run` on standard input, until `quit`.
    #[arg(long, conflicts_with_all = ["machine", "json"])]
    pub(crate) serve: bool,
    /// Measure this machine: arithmetic in registers, reading of memory.
    #[arg(long)]
    pub(crate) machine: bool,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("2MiB"), Ok(2 << 20));
        assert_eq!(parse_size("7"), Ok(7));
        for (text, part) in [
            ("5gb", "`gb`"),
            ("GB", "found ``"),
            ("1.5GB", "found `1.5`"),
            ("0MB", "at least 1"),
            ("99999999999999999GB", "too large"),
            ("-1", "found `-1`"),
        ] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
