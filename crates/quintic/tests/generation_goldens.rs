//! What transformers generates, token for token: every way to choose, on the decoders of seven tiny
//! models.
//!
//! `testdata/README.md` says how the files were made.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use quintic::backend::Chosen;
use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile};
use quintic::generate::{
    DecoderRows, GenerateOptions, GenerationConfig, Logits, Request, Sequence, generate,
};
use quintic::{BackendKind, Compute, Seq2Seq, Sources};
use serde_json::Value;

fn folders() -> Vec<PathBuf> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/decoder_goldens");
    let entries = std::fs::read_dir(goldens).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    folders.filter(|path| path.is_dir()).collect()
}

fn load(folder: &Path, backend: BackendKind) -> Seq2Seq {
    let checkpoint = Checkpoint::open(folder, &OpenOptions::default()).unwrap();
    Seq2Seq::from_checkpoint(&checkpoint, backend, &Compute::default()).unwrap()
}

fn sources(folder: &Path) -> Vec<Vec<u32>> {
    let file = SafetensorsFile::open(&folder.join("cases.safetensors")).unwrap();
    let read = |row: usize| {
        let tensor = file.take(&format!("{row}.source")).unwrap();
        let ids = tensor.bytes().chunks_exact(8);
        ids.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
            .collect()
    };
    (0..3).map(read).collect()
}

struct Case {
    config: GenerationConfig,
    /// All sequences of all sources, padded.
    sequences: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

fn cases(folder: &Path, model: &Seq2Seq) -> Vec<Case> {
    let text = std::fs::read(folder.join("generation.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    cases
        .iter()
        .map(|case| {
            let mut config = GenerationConfig::of_model(model.config(), None).unwrap();
            config.choose(case["options"].as_object().unwrap()).unwrap();
            Case {
                config,
                sequences: serde_json::from_value(case["sequences"].clone()).unwrap(),
                scores: serde_json::from_value(case["scores"].clone()).unwrap(),
            }
        })
        .collect()
}

fn check(case: &Case, found: &[Sequence], first: usize, what: &str) {
    for (at, found) in found.iter().enumerate() {
        let expected = &case.sequences[first + at];
        // transformers fills beams up with the first end token where the pad token is 0.
        let config = &case.config;
        let fill = match config.num_beams > 1 && config.pad_token_id == Some(0) {
            true => config.eos_token_id[0],
            false => config.pad_token_id.unwrap(),
        };
        let mut padded = found.tokens.clone();
        padded.resize(expected.len().max(padded.len()), fill);
        assert_eq!(&padded, expected, "{what} {config:?}");
        if let Some(score) = case.scores.get(first + at) {
            let bound = 1e-4 * score.abs().max(1.0);
            assert!(
                (found.score - score).abs() <= bound,
                "{what}: score {} of {:?}, expected {score}",
                found.score,
                found.tokens
            );
        }
    }
}

/// Each case by itself, its three sources together.
#[test]
fn tokens_and_scores_are_those_of_transformers() {
    let mut n_cases = 0;
    for folder in folders() {
        let sources = sources(&folder);
        for backend in [BackendKind::Reference, BackendKind::Cpu] {
            let model = load(&folder, backend);
            for case in cases(&folder, &model) {
                let prefix = [case.config.decoder_start_token_id.unwrap()];
                let requests: Vec<Request<'_>> = (0..sources.len())
                    .map(|source| Request {
                        source,
                        prefix: &prefix,
                        config: &case.config,
                        stop: None,
                    })
                    .collect();
                let mut rows = model.rows(Sources::Ids(&sources), None).unwrap();
                let options = GenerateOptions::default();
                let found = generate(rows.as_mut(), &requests, &options, None).unwrap();
                let n = case.config.num_return_sequences;
                for (source, found) in found.iter().enumerate() {
                    assert_eq!(found.len(), n);
                    let what = format!("{folder:?} {backend:?} source {source}");
                    check(&case, found, source * n, &what);
                    n_cases += 1;
                }
            }
        }
    }
    assert!(n_cases > 1000, "{n_cases}");
}

/// All cases of a model at once, whatever they ask for: greedy beside beams, coming and leaving.
#[test]
fn requests_do_not_disturb_each_other() {
    for folder in folders() {
        let sources = sources(&folder);
        let model = load(&folder, BackendKind::Cpu);
        let cases = cases(&folder, &model);
        let prefixes: Vec<[u32; 1]> = cases
            .iter()
            .map(|case| [case.config.decoder_start_token_id.unwrap()])
            .collect();
        let requests: Vec<Request<'_>> = cases
            .iter()
            .zip(&prefixes)
            .flat_map(|(case, prefix)| {
                (0..sources.len()).map(|source| Request {
                    source,
                    prefix,
                    config: &case.config,
                    stop: None,
                })
            })
            .collect();
        for max_rows in [1, 11, 64] {
            let mut rows = model.rows(Sources::Ids(&sources), None).unwrap();
            let options = GenerateOptions {
                max_rows,
                interrupted: None,
            };
            let found = generate(rows.as_mut(), &requests, &options, None).unwrap();
            assert_eq!(rows.n_rows(), 0);
            for (request, found) in found.iter().enumerate() {
                let case = &cases[request / sources.len()];
                let n = case.config.num_return_sequences;
                let source = request % sources.len();
                check(case, found, source * n, &format!("{folder:?} {max_rows}"));
            }
        }
    }
}

/// Guesses change nothing but the number of steps: greedy, drawn, with rules, in any company.
#[test]
fn guesses_change_no_token() {
    /// Rows that count how often they are fed.
    struct Counted<'a>(Box<dyn DecoderRows + 'a>, usize);

    impl DecoderRows for Counted<'_> {
        fn vocab_size(&self) -> usize {
            self.0.vocab_size()
        }
        fn n_rows(&self) -> usize {
            self.0.n_rows()
        }
        fn source_tokens(&self, source: usize) -> &[u32] {
            self.0.source_tokens(source)
        }
        fn admit(&mut self, sources: &[usize]) -> quintic::Result<()> {
            self.0.admit(sources)
        }
        fn select(&mut self, rows: &[usize]) {
            self.0.select(rows);
        }
        fn advance(&mut self, tokens: &[&[u32]], n_scored: &[usize]) -> quintic::Result<()> {
            self.1 += 1;
            self.0.advance(tokens, n_scored)
        }
        fn take_back(&mut self, n_tokens: &[usize]) {
            self.0.take_back(n_tokens);
        }
        fn logits(&self) -> quintic::Result<Logits> {
            self.0.logits()
        }
        fn top(&self, k: usize) -> quintic::Result<Vec<Vec<Chosen>>> {
            self.0.top(k)
        }
    }

    let mut all_steps = [0, 0];
    for folder in folders() {
        let sources = sources(&folder);
        let model = load(&folder, BackendKind::Cpu);
        for case in cases(&folder, &model) {
            if case.config.num_beams > 1 {
                continue;
            }
            let prefix = [case.config.decoder_start_token_id.unwrap()];
            let mut run = |n_guessed: usize, ngram: usize, max_rows: usize| {
                let mut config = case.config.clone();
                config.max_new_tokens = Some(40);
                config.prompt_lookup_num_tokens = n_guessed;
                config.max_matching_ngram_size = ngram;
                let requests: Vec<Request<'_>> = (0..sources.len())
                    .map(|source| Request {
                        source,
                        prefix: &prefix,
                        config: &config,
                        stop: None,
                    })
                    .collect();
                let rows = model.rows(Sources::Ids(&sources), None).unwrap();
                let mut rows = Counted(rows, 0);
                let options = GenerateOptions {
                    max_rows,
                    interrupted: None,
                };
                let found = generate(&mut rows, &requests, &options, None).unwrap();
                assert_eq!(rows.n_rows(), 0);
                if max_rows == 1 {
                    all_steps[usize::from(n_guessed > 0)] += rows.1;
                }
                found
            };
            let expected = run(0, 2, 1);
            for (n_guessed, ngram, max_rows) in [(15, 2, 1), (1, 1, 4), (4, 3, 9)] {
                let found = run(n_guessed, ngram, max_rows);
                assert_eq!(
                    found, expected,
                    "{folder:?} {n_guessed} {ngram} {:?}",
                    case.config
                );
            }
        }
    }
    // Tiny models repeat themselves, which is easy to guess; draws and rules against it make up half of the cases.
    let [plain, guessed] = all_steps;
    assert!(guessed * 10 < plain * 9, "{guessed} steps of {plain}");
}
