//! What transformers generates, token for token: every way to choose, on the decoders of seven tiny
//! models.
//!
//! `testdata/README.md` says how the files were made.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use quintic::checkpoint::{Checkpoint, OpenOptions, SafetensorsFile};
use quintic::generate::{GenerateOptions, GenerationConfig, Request, Sequence, generate};
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
