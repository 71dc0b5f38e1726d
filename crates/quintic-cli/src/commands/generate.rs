//! `quintic generate` and `quintic translate`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use quintic::generate::{
    Event, Finish, GenerateOptions, GenerationConfig, Listener, Request, Sequence, Stop, generate,
};
use quintic::output::AtomicFile;
use quintic::tokenizer::Tokenizer;
use quintic::{Error, Result, Seq2Seq, Sources};
use serde_json::{Map, Value, json};

use crate::args::{ChoiceArgs, GenerateArgs, GenerationArgs, ModelArgs, SourceArgs, TranslateArgs};
use crate::sink::{print, unknown_ending};
use crate::{model, texts};

/// Sources that are encoded and generated from before their results are written.
const ROUND: usize = 1024;

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let job = Job::open(&args.model, &args.sources, &args.generation)?;
    job.run(&args.text_prefix)
}

pub(crate) fn translate(args: &TranslateArgs) -> Result<()> {
    let job = Job::open(&args.model, &args.sources, &args.generation)?;
    let tag = format!("<2{}>", args.to);
    // A tag that is no token would be translated as text.
    let is_token = job.tokenizer.token_id(&tag).is_some_and(|id| {
        Some(id) != job.tokenizer.unk_id() && (id as usize) < job.model.config().vocab_size
    });
    if !is_token {
        return Err(Error::input(format!(
            "the model's tokenizer has no token `{tag}`, so it cannot be told to translate to `{}`",
            args.to
        ))
        .hint("for a model that takes its task in words, use `quintic generate --text-prefix`"));
    }
    job.run(&format!("{tag} "))
}

/// A model with its tokenizer, and what it is to do.
struct Job<'a> {
    model: Seq2Seq,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    texts: Vec<String>,
    max_length: Option<usize>,
    args: &'a GenerationArgs,
    load_s: f64,
}

impl<'a> Job<'a> {
    fn open(model: &ModelArgs, sources: &SourceArgs, args: &'a GenerationArgs) -> Result<Self> {
        let started = Instant::now();
        // Wrong options are found before a large model is loaded.
        let chosen = chosen(&args.choice)?;
        if let Some(path) = &args.output {
            ending(path)?;
        }
        let texts = match &sources.input {
            Some(path) => texts::read(path, sources.column.as_deref())?,
            None => sources.texts.clone(),
        };
        let checkpoint = model::open(&model.model, &model.files)?;
        let tokenizer = model::tokenizer(&checkpoint, &model.files, None)?;
        let model = model::load_seq2seq(&checkpoint, &args.compute, args.quiet)?;
        let mut config = model.generation_config()?;
        config.choose(&chosen)?;
        Ok(Job {
            tokenizer,
            config,
            texts,
            max_length: sources.max_length,
            args,
            load_s: started.elapsed().as_secs_f64(),
            model,
        })
    }

    fn run(&self, prefix: &str) -> Result<()> {
        let started = Instant::now();
        let mut file = match &self.args.output {
            Some(path) => Some((AtomicFile::create(path)?, ending(path)?)),
            None => None,
        };
        let mut n_tokens = 0;
        for texts in self.texts.chunks(ROUND) {
            let sources = texts
                .iter()
                .map(|text| {
                    let text = format!("{prefix}{text}");
                    match self.max_length {
                        Some(max_length) => self.tokenizer.encode_truncated(&text, max_length),
                        None => self.tokenizer.encode(&text, true),
                    }
                })
                .collect::<Result<Vec<_>>>()?;
            // One text on a terminal or in a pipe is shown as it comes.
            let streams = self.texts.len() == 1
                && file.is_none()
                && !self.args.json
                && self.config.num_beams == 1
                && self.config.num_return_sequences == 1;
            let results = self.generate(&sources, streams)?;
            for (text, sequences) in texts.iter().zip(&results) {
                n_tokens += sequences
                    .iter()
                    .map(|sequence| sequence.new_tokens().len())
                    .sum::<usize>();
                if streams {
                    continue;
                }
                match &mut file {
                    None if self.args.json => print(&self.json(text, sequences)?)?,
                    None => {
                        for sequence in sequences {
                            print(&one_line(&self.text(sequence)?))?;
                        }
                    }
                    Some((file, Ending::Json)) => {
                        file.write(format!("{}\n", self.json(text, sequences)?).as_bytes())?;
                    }
                    Some((file, Ending::Text)) => {
                        for sequence in sequences {
                            let line = one_line(&self.text(sequence)?);
                            file.write(format!("{line}\n").as_bytes())?;
                        }
                    }
                }
            }
        }
        if let Some((file, _)) = file {
            file.finish()?;
        }
        if !self.args.quiet {
            let seconds = started.elapsed().as_secs_f64();
            eprintln!(
                "{} texts, {n_tokens} new tokens, loaded in {:.2} s, generated in {seconds:.2} s: \
                 {:.1} tokens/s",
                self.texts.len(),
                self.load_s,
                n_tokens as f64 / seconds
            );
        }
        Ok(())
    }

    fn generate(&self, sources: &[Vec<u32>], streams: bool) -> Result<Vec<Vec<Sequence>>> {
        let start: Vec<u32> = self.config.decoder_start_token_id.into_iter().collect();
        let stop = |tokens: &[u32]| {
            let text = self.tokenizer.decode(&tokens[start.len()..], true);
            text.is_ok_and(|text| {
                self.config
                    .stop_strings
                    .iter()
                    .any(|end| text.contains(end))
            })
        };
        let stop: Option<Stop<'_>> = match self.config.stop_strings.is_empty() {
            true => None,
            false => Some(&stop),
        };
        let requests: Vec<Request<'_>> = (0..sources.len())
            .map(|source| Request {
                source,
                prefix: &start,
                config: &self.config,
                stop,
            })
            .collect();
        let options = GenerateOptions {
            max_rows: self.args.max_rows.get(),
            interrupted: None,
        };
        let mut rows = self.model.rows(Sources::Ids(sources), None)?;
        let mut stream = Stream::new(&self.tokenizer);
        let mut tell = |event: Event| stream.push(event.token);
        let listener: Option<Listener<'_>> = match streams {
            true => Some(&mut tell),
            false => None,
        };
        let results = generate(rows.as_mut(), &requests, &options, listener)?;
        if streams {
            stream.finish()?;
        }
        Ok(results)
    }

    fn text(&self, sequence: &Sequence) -> Result<String> {
        self.tokenizer.decode(sequence.new_tokens(), true)
    }

    fn json(&self, text: &str, sequences: &[Sequence]) -> Result<Value> {
        let sequences = sequences
            .iter()
            .map(|sequence| {
                Ok(json!({
                    "text": self.text(sequence)?,
                    "tokens": sequence.new_tokens(),
                    "log_probs": sequence.log_probs,
                    "score": sequence.score,
                    "finish": match sequence.finish {
                        Finish::Eos(_) => "eos",
                        Finish::Stop => "stop",
                        Finish::Length => "length",
                        Finish::Cancelled => "cancelled",
                    },
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(json!({ "source": text, "sequences": sequences }))
    }
}

/// How results are written to a file.
#[derive(Clone, Copy)]
enum Ending {
    Text,
    Json,
}

fn ending(path: &Path) -> Result<Ending> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("txt") => Ok(Ending::Text),
        Some("jsonl" | "ndjson") => Ok(Ending::Json),
        other => {
            Err(unknown_ending(other.unwrap_or_default(), ".txt or .jsonl").at(path.display()))
        }
    }
}

/// A sequence is one line of text.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// The options that were given, by transformers' names.
fn chosen(args: &ChoiceArgs) -> Result<Map<String, Value>> {
    let mut chosen = match &args.options {
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => {
                return Err(Error::input("expected a JSON object").at("`--options`"));
            }
            Err(e) => return Err(Error::input(format!("not valid JSON: {e}")).at("`--options`")),
        },
        None => Map::new(),
    };
    let flags = [
        ("max_new_tokens", args.max_new_tokens.map(Value::from)),
        ("num_beams", args.num_beams.map(Value::from)),
        (
            "num_return_sequences",
            args.num_return_sequences.map(Value::from),
        ),
        ("do_sample", args.do_sample.then_some(Value::Bool(true))),
        ("temperature", args.temperature.map(Value::from)),
        ("top_k", args.top_k.map(Value::from)),
        ("top_p", args.top_p.map(Value::from)),
        ("seed", args.seed.map(Value::from)),
        (
            "repetition_penalty",
            args.repetition_penalty.map(Value::from),
        ),
        (
            "no_repeat_ngram_size",
            args.no_repeat_ngram_size.map(Value::from),
        ),
        ("length_penalty", args.length_penalty.map(Value::from)),
        (
            "prompt_lookup_num_tokens",
            args.prompt_lookup_num_tokens.map(Value::from),
        ),
    ];
    for (name, value) in flags {
        if let Some(value) = value
            && chosen.insert(name.to_owned(), value).is_some()
        {
            return Err(Error::input(format!(
                "`{name}` is given twice: by its flag and by `--options`"
            )));
        }
    }
    // Values are checked before a model is there.
    GenerationConfig::default().choose(&chosen)?;
    Ok(chosen)
}

/// Text that is shown as its tokens come. A token may end inside a character, and a later one may
/// change how those before it are spelt, so that the end of the text is held back.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    shown: String,
    failed: Option<Error>,
}

impl<'a> Stream<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Stream {
            tokenizer,
            tokens: Vec::new(),
            shown: String::new(),
            failed: None,
        }
    }

    fn push(&mut self, token: u32) -> ControlFlow<()> {
        self.tokens.push(token);
        match self.show(false) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn show(&mut self, all: bool) -> Result<()> {
        let text = one_line(&self.tokenizer.decode(&self.tokens, true)?);
        let safe = match all {
            true => text.as_str(),
            // What follows the last space may still change.
            false => &text[..text.rfind(' ').unwrap_or(0)],
        };
        if let Some(new) = safe.strip_prefix(self.shown.as_str())
            && !new.is_empty()
        {
            let mut out = std::io::stdout().lock();
            out.write_all(new.as_bytes())
                .and_then(|()| out.flush())
                .map_err(|e| Error::io(Path::new("standard output"), "write", e))?;
            self.shown = safe.to_owned();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.show(true)?;
        print(&"")
    }
}
